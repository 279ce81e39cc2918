"""Grammars made of several schemas and fixed text, such as those of guided tool calls."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from phi3ov.errors import OptionError
from phi3ov.structured.json_schema import schema_part
from phi3ov.structured.parts import GrammarPart, grammar, one_of, repeated, sequence, text

from .grammar_sampler import GrammarSampler
from .test_schemas import fits

TOOLS: dict[str, Any] = {
    "weather": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 9}, "days": {"$ref": "#/$defs/n"}},
        "required": ["city"],
        "additionalProperties": False,
        "$defs": {"n": {"type": "integer", "minimum": 1, "maximum": 7}},
    },
    "add": {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/n"}, "b": {"$ref": "#/$defs/n"}},
        "required": ["a", "b"],
        "additionalProperties": False,
        "$defs": {"n": {"type": "array", "items": {"type": "number"}, "maxItems": 2}},
    },
}


def call(name: str, index: int) -> GrammarPart:
    """Return the call of a tool in JSON."""
    return sequence(
        text(f'{{"name": "{name}", "arguments": '),
        schema_part(TOOLS[name], f"arguments{index}"),
        text("}"),
    )


def test_every_call_parses_and_fits_its_tools_schema() -> None:
    """Definitions of the same name in two schemas stay apart."""
    calls = one_of(*(call(name, index) for index, name in enumerate(TOOLS)))
    whole = grammar(
        sequence(text("["), repeated(calls, least=1, most=3, separator=", "), text("]"))
    )
    sampler, counts, names = GrammarSampler(whole), set[int](), set[str]()
    for seed in range(200):
        found = json.loads(sampler.draw(random.Random(seed)))
        counts.add(len(found))
        for one in found:
            names.add(one["name"])
            assert fits(one["arguments"], TOOLS[one["name"]]), one
    assert (counts, names) == ({1, 2, 3}, set(TOOLS))


def test_repetitions_have_their_bounds() -> None:
    """Also none, and none but one."""
    for least, most, lengths in ((0, 2, {0, 1, 2}), (0, 0, {0}), (1, 1, {1}), (2, 3, {2, 3})):
        sampler = GrammarSampler(
            grammar(repeated(text("x"), least=least, most=most, separator=";"))
        )
        drawn = {sampler.draw(random.Random(seed)) for seed in range(60)}
        assert drawn == {";".join("x" * count) for count in lengths}


def test_parts_of_one_name_are_refused() -> None:
    """One would take the place of the other."""
    with pytest.raises(OptionError, match="named 'a'"):
        sequence(schema_part({"const": 1}, "a"), schema_part({"const": 2}, "a"))
    same = schema_part({"const": 1}, "a")
    assert GrammarSampler(grammar(sequence(same, same))).draw(random.Random(0)) == "11"


@pytest.mark.parametrize("name", ["", "a-b", "1a", "é", "json_string", "answer", "class0"])
def test_a_name_that_grammars_cannot_have_is_refused(name: str) -> None:
    """By the name itself: openvino-genai would speak of a character at some position."""
    with pytest.raises(OptionError, match="name="):
        schema_part({}, name)


def test_all_schemas_share_one_limit() -> None:
    """The matcher pays for the whole grammar."""
    parts = [
        schema_part({"type": "string", "maxLength": 15_000 + index}, f"part{index}")
        for index in range(2)
    ]
    grammar(parts[0])
    with pytest.raises(OptionError, match="30001 repetitions"):
        grammar(one_of(*parts))
