"""Structured answers, enforced by openvino-genai: drawn wildly, they fit or they were cut off.

The tiny models speak nonsense at a temperature of 100, so every token that a grammar lets
through comes up. One has a byte-level vocabulary, one a Llama-like (Phi-3's kind): with bytes,
with spaces as ``▁``, with control tokens that are no stop tokens, and with ids that no token has.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import phi3ov
from phi3ov import OptionError, Phi3Chat, Phi3Model
from phi3ov.engine.genai.vocabulary import loses_first_space, token_bytes
from phi3ov.engine.protocol import EngineName

from ..unit import fakes
from ..unit.test_schemas import LEAVES, branches, fits
from . import checkpoints
from .checkpoints import MINI_TEMPLATE, Row, build_checkpoint
from .conftest import LoadModel, Zoo

KINDS = ("byte-level", "llama-like")
PROMPT = "<|user|>\nhello<|end|>\n<|assistant|>\n"
WILD: dict[str, Any] = {"temperature": 100.0, "max_new_tokens": 120}


@pytest.fixture(scope="session")
def artifacts(zoo: Zoo, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One export per kind of vocabulary."""
    root = tmp_path_factory.mktemp("structured")
    definition = json.loads(fakes.llama_like())
    size = max(token["id"] for token in definition["added_tokens"]) + 1
    with pytest.MonkeyPatch.context() as patched:
        first = size - len(fakes.PHI3_CONTROL)
        patched.setattr(checkpoints, "FIRST_CONTROL_ID", first)
        row = Row(template=MINI_TEMPLATE, control_tokens=fakes.PHI3_CONTROL)
        checkpoint = build_checkpoint(
            root / "llama", row, vocab_size=size + 13, tokenizer_json=fakes.llama_like()
        )
    phi3ov.export_model(checkpoint, root / "llama-fp16", compression="fp16", progress=False)
    return {"byte-level": zoo.artifact("phi-3-mini-4k"), "llama-like": root / "llama-fp16"}


@dataclass
class Person:
    """A dataclass to be filled."""

    name: str
    age: int
    kind: Literal["cat", "dog"] | None


SCHEMAS: list[Any] = [
    {},
    {"type": "string", "maxLength": 12},
    {"type": "string", "minLength": 3, "maxLength": 3},
    {"type": "string", "minLength": 2, "maxLength": 40},
    {"type": "string", "minLength": 20},
    {"type": "string", "pattern": r"^[^a-y]{2,6}\"?$"},
    {"type": "integer", "minimum": -20, "exclusiveMaximum": 1310},
    {"type": ["number", "null"]},
    {"type": "number", "minimum": 0, "maximum": 1},
    {"type": "number", "exclusiveMinimum": -0.5, "exclusiveMaximum": 100.5},
    {"type": "integer", "minimum": 100, "maximum": 999, "multipleOf": 97},
    {"type": "array", "items": {"enum": ["a", 1, None]}, "uniqueItems": True, "minItems": 1},
    {"type": "string", "pattern": "[A-Z]{2}[0-9]+", "maxLength": 6},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "email"},
    {"enum": ['a"b', "é\n😀", 3, None, {"a": [1, "x"]}, 1.5, "<|placeholder1|>"]},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    {"type": "array", "prefixItems": [{"type": "integer"}, {"const": "x"}]},
    {"type": "object", "additionalProperties": {"type": "integer", "minimum": 7}},
    {
        "type": "object",
        "properties": {
            "first": {"type": "boolean"},
            "sec\"ond": {"type": "null"},
            "third": {"anyOf": [{"type": "integer"}, {"const": "none"}]},
        },
        "required": ["third"],
        "additionalProperties": False,
    },
    {
        "$ref": "#/$defs/n",
        "$defs": {"n": {"type": "object", "properties": {"c": {"$ref": "#/$defs/n"}}}},
    },
]  # fmt: skip


@pytest.mark.parametrize("engine", ["pipeline", "worker"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_finished_answer_always_fits_its_schema(
    kind: str, engine: EngineName, artifacts: dict[str, Path], load: LoadModel
) -> None:
    """It parses, the jsonschema package agrees, and it is laid out as ``json.dumps`` does."""
    model = load(artifacts[kind], engine=engine)
    for schema in SCHEMAS:
        replies = draw(model, 12, json_schema=schema)
        finished = [reply for reply in replies if reply.finish_reason == "stop"]
        assert finished, schema
        for reply in replies:
            if reply.finish_reason == "length":
                assert reply.parsed is None
                continue
            assert fits(json.loads(reply.text), schema), (schema, reply.text)
            assert reply.parsed == json.loads(reply.text)
            assert not re.search(r"[\n\t]|^ | $", reply.text)


def test_answers_fit_whatever_schema_they_have(artifacts: dict[str, Path], load: LoadModel) -> None:
    """Schemas drawn at random, as in the unit tests, but with genai's matcher instead of a model
    of it: grammars mean to it what they mean there.
    """
    model, finished = load(artifacts["byte-level"]), 0

    @settings(
        max_examples=60, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(schema=st.recursive(LEAVES, branches, max_leaves=4))
    def check(schema: Any) -> None:
        nonlocal finished
        try:
            replies = draw(model, 4, json_schema=schema)
        except OptionError:  # it has no value; the unit tests bound how often
            return
        for reply in replies:
            if reply.finish_reason == "stop":
                finished += 1
                assert fits(json.loads(reply.text), schema), (schema, reply.text)

    check()
    assert finished > 60


def draw(model: Phi3Model, count: int, **options: Any) -> list[phi3ov.Reply]:
    """Return the candidates of the seeds 0 to ``count``."""
    reply = model.complete(PROMPT, seed=0, candidates=count, **WILD, **options)
    return list(reply.candidates)


PATTERNS = [
    r"[^a-c]{1,5}(x|é\d)+?.{0,3}", r"\W{3}\S?[\u00e9-\U0001f600]{5}", r"[a-z]?[\u00e9-\u07ff]{5}",
    r" (yes|no) ?", r"[^,]{0,40},\d{2,30}", r"\D{4}|[\u0800-\uffff]{3}", r"^<\|end\|>$|\d{3}",
    r"(?:a.?){2,3}[^\s]",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_finished_answer_always_matches_its_pattern(
    kind: str, artifacts: dict[str, Path], load: LoadModel
) -> None:
    """As ``re.fullmatch`` sees it: no invalid bytes, no control tokens, every space."""
    model = load(artifacts[kind])
    for pattern in PATTERNS:
        finished = [one for one in draw(model, 25, regex=pattern) if one.finish_reason == "stop"]
        assert finished
        for reply in finished:
            assert re.fullmatch(pattern, reply.text, re.ASCII), (pattern, reply.text)
            assert not model.tokenizer.control_tokens.keys() & set(reply.token_ids)


@pytest.mark.parametrize("kind", KINDS)
def test_a_choice_is_one_of_the_choices(
    kind: str, artifacts: dict[str, Path], load: LoadModel
) -> None:
    """Every one comes up, also one that begins with a space or looks like a control token."""
    model = load(artifacts[kind])
    choices = ("yes", "no", " maybe", "<|end|>", "né\n")
    assert {one.text for one in draw(model, 60, choices=choices)} == set(choices)


@pytest.mark.parametrize("kind", KINDS)
def test_the_vocabulary_is_what_the_tokenizer_shows(kind: str, artifacts: dict[str, Path]) -> None:
    """The bytes of ids, joined, are the text of the ids, but for a space at the beginning."""
    definition = json.loads((artifacts[kind] / "tokenizer.json").read_text(encoding="utf-8"))
    texts = token_bytes(definition)
    kit = fakes.MINI if kind == "llama-like" else None
    assert loses_first_space(artifacts[kind]) == (kit is not None)
    if kit is not None:
        for text in ("hello the user", "é😀 世界\n", "  two  spaces", "<|end|> as text", "a\tb"):
            ids = kit.chat.encode_text(text)
            assert b"".join(texts[token_id] for token_id in ids).decode() == " " + text
            assert kit.chat.decode(ids) == text
        assert all(texts[token_id] == b"" for token_id in kit.chat.control_tokens)


def test_a_dataclass_is_filled(artifacts: dict[str, Path], load: LoadModel) -> None:
    """From a chat's stream, whose joined pieces are the JSON text."""
    chat = Phi3Chat(load(artifacts["llama-like"]))
    for seed in range(40):
        stream = chat.stream("hi", json_schema=Person, seed=seed, **WILD)
        text = "".join(stream)
        if stream.reply.finish_reason == "stop":
            parsed = stream.reply.parsed
            assert isinstance(parsed, Person)
            assert json.loads(text) == {"name": parsed.name, "age": parsed.age, "kind": parsed.kind}
            return
    pytest.fail("no answer finished by itself")


@pytest.mark.parametrize("engine", ["paged", "transformers"])
def test_engines_without_grammars_refuse(
    engine: EngineName, artifacts: dict[str, Path], load: LoadModel
) -> None:
    """Before anything is generated, with the engines that have them."""
    model = load(artifacts["byte-level"], engine=engine)
    with pytest.raises(OptionError, match="engine='pipeline' or engine='worker'"):
        model.complete(PROMPT, choices=("yes",), max_new_tokens=4)


def test_every_character_of_a_choice_comes_out_before_any_digit(
    artifacts: dict[str, Path], load: LoadModel
) -> None:
    """The way genai spells a grammar takes digits behind such a character for part of it."""
    model = load(artifacts["byte-level"])
    digits = "0123456789abcdefABCDEF"
    for first in range(1, 0x180, 0x40):
        for shift in (0, 11):
            text = "".join(
                chr(code) + digits[(code + shift) % len(digits)]
                for code in range(first, first + 0x40)
            )
            reply = Phi3Chat(model).generate("x", choices=(text,), max_new_tokens=300)
            assert (reply.parsed, reply.finish_reason) == (text, "stop")
    reply = Phi3Chat(model).generate(
        "x", json_schema={"const": {"é7": "ÿf\x7fa"}}, max_new_tokens=100
    )
    assert reply.parsed == {"é7": "ÿf\x7fa"}


@pytest.mark.parametrize("shape", [{"choices": ("a\0b",)}, {"regex": r"a\0b"}, {"regex": r"[\0]"}])
def test_a_character_that_cannot_be_produced_is_refused(
    shape: dict[str, Any], artifacts: dict[str, Path], load: LoadModel
) -> None:
    """NUL would be left out of the answer without a word."""
    with pytest.raises(OptionError):
        Phi3Chat(load(artifacts["byte-level"])).generate("x", **shape)
