"""The page on the family agrees with the code and with the tests that it names."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from phi3ov.errors import UnsupportedModelError
from phi3ov.family import REFUSED_TYPES, Phi3Config
from phi3ov.prompt.formats import FORMATS, ChatFormat

from .fakes import SMALL_CONFIG
from .test_real_files import ROWS, WITH_VOCABULARY
from .test_real_vocabularies import VOCABULARIES

TESTS = Path(__file__).resolve().parents[1]
PAGE = TESTS.parent / "docs" / "family.md"


def table(first_column: str) -> list[dict[str, str]]:
    """Return the rows of the page's table that begins with ``first_column``."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith(f"| {first_column} |"))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    head, _, *body = rows
    return [dict(zip(head, row, strict=True)) for row in body]


MODELS = table("model")


def format_of(row: dict[str, str]) -> ChatFormat:
    """Return the chat format that a row names."""
    wanted = (row["chat format"].strip("`"), row["system messages"])
    [found] = [each for each in FORMATS if (each.name, each.system_messages) == wanted]
    return found


def tiny_checkpoints() -> set[str]:
    """Return the names of the tiny checkpoints, without importing torch with them."""
    tree = ast.parse((TESTS / "engine" / "checkpoints.py").read_text(encoding="utf-8"))
    [family] = [
        node.value
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "FAMILY"
    ]
    assert isinstance(family, ast.Dict)
    return {str(ast.literal_eval(key)) for key in family.keys if key is not None}


@pytest.mark.parametrize("row", MODELS, ids=lambda row: row["model"])
def test_a_row_says_what_the_chat_format_does(row: dict[str, str]) -> None:
    """System messages, tools and thoughts are those of the format in the code."""
    chat_format = format_of(row)
    assert row["tools"] == ("yes" if chat_format.tool_call else "no")
    assert row["thoughts"] == ("yes" if chat_format.thoughts else "no")


def test_every_format_and_every_tiny_checkpoint_stands_in_the_table() -> None:
    """A format that no row names is one that a fine-tune's template writes."""
    named = {format_of(row).name for row in MODELS}
    assert {each.name for each in FORMATS} - named == {"phi4-mini without tools", "chatml"}
    tested = {row["architecture tested"].removeprefix("tiny: ").strip("`") for row in MODELS}
    assert tested == tiny_checkpoints()


@pytest.mark.parametrize("row", MODELS, ids=lambda row: row["model"])
def test_real_files_are_those_of_the_tests(row: dict[str, str]) -> None:
    """A template called real is compared with transformers, under the row's format."""
    kind, _, folder = row["template tested"].partition(": ")
    if kind in ("copy", "card"):
        assert (folder, row["vocabulary tested"]) == ("", "stand-in")
        return
    [real] = [each for each in ROWS if each.folder == folder.strip("`")]
    assert (kind, real.format_name) == ("real", format_of(row).name)
    assert real.system_messages == row["system messages"]
    kinds = dict.fromkeys(WITH_VOCABULARY, "real") | dict.fromkeys(VOCABULARIES, "public ranks")
    assert row["vocabulary tested"] == kinds[real.folder]


def test_contexts_are_ones_that_a_config_can_have() -> None:
    """A second number is the original context of LongRoPE."""
    for row in MODELS:
        longest, *original = map(int, row["context / original"].split(" / "))
        factors = [1.0] * 8
        rope = {"type": "longrope", "short_factor": factors, "long_factor": factors}
        changes: dict[str, object] = {"max_position_embeddings": longest}
        if original:
            changes |= {"original_max_position_embeddings": original[0], "rope_scaling": rope}
        config = Phi3Config.parse(SMALL_CONFIG | changes)
        assert config.has_longrope == bool(original)
        assert config.original_max_position_embeddings == (original or [longest])[0]


def test_refused_models_are_those_of_the_code() -> None:
    """Each with its reason, and each is refused with that reason."""
    listed = {row["`model_type`"].strip("`"): row["why"] for row in table("`model_type`")}
    assert listed == REFUSED_TYPES
    for model_type, why in listed.items():
        with pytest.raises(UnsupportedModelError) as caught:
            Phi3Config.parse({"model_type": model_type})
        assert why in str(caught.value)


def test_licences_are_named() -> None:
    """One for each model."""
    assert {row["licence"] for row in MODELS} == {"MIT"}
