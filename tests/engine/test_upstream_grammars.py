"""Defects of openvino-genai's own conversion of schemas and patterns, reproduced.

They are why phi3ov compiles grammars itself (decision 29). When one of these tests fails, that
defect is mended: take it out of the list in the decision and the guide. When the last has gone,
give ``json_schema=`` and ``regex=`` to genai and remove the compiler.

At a temperature of 100 a model of random weights draws every token that the grammar allows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import openvino_genai
import pytest

from phi3ov.structured.ebnf import characters, literal, rules

from .conftest import Zoo

Draw = Callable[..., list[str]]


@pytest.fixture(scope="module")
def draw(zoo: Zoo) -> Draw:
    """Return a function that draws answers within a structure that genai makes itself."""
    pipeline = openvino_genai.LLMPipeline(str(zoo.artifact("phi-3-mini-4k")), "CPU")

    def draw_answers(count: int = 40, **structure: str) -> list[str]:
        config = openvino_genai.GenerationConfig(
            max_new_tokens=60, do_sample=True, temperature=100.0
        )
        config.structured_output_config = openvino_genai.StructuredOutputConfig(**structure)
        answers = []
        for seed in range(count):
            config.rng_seed = seed
            answers.append(str(pipeline.generate("a", config)))
        return answers

    return draw_answers


def finished_values(answers: list[str]) -> list[Any]:
    """Return the values of the answers that are JSON; the others may have been cut off."""
    values = []
    for answer in answers:
        try:
            values.append(json.loads(answer))
        except ValueError:
            continue
    return values


IGNORED: list[dict[str, Any]] = [
    {"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True, "minItems": 2, "maxItems": 2},
    {"type": "integer", "minimum": 1, "maximum": 3, "not": {"const": 2}},
    {"oneOf": [{"type": "integer", "minimum": 1, "maximum": 5},
               {"type": "integer", "minimum": 4, "maximum": 6}]},
    {"allOf": [{"type": "integer", "minimum": 3}, {"type": "integer", "maximum": 5}]},
    {"type": "integer", "minimum": 0, "maximum": 9, "if": {"minimum": 5}, "then": {"const": 7}},
    {"type": "string", "pattern": "^[ab]+$", "maxLength": 3},
    {"type": "string", "enum": [1, "a"]},
    {"type": "array", "items": {"enum": [1, 2]}, "contains": {"const": 1}, "minItems": 1,
     "maxItems": 2},
    {"type": "object", "properties": {"a": {"const": 1}, "b": {"const": 2}},
     "additionalProperties": False, "dependentRequired": {"a": ["b"]}},
]  # fmt: skip


@pytest.mark.parametrize("schema", IGNORED, ids=str)
def test_upstream_genai_ignores_a_keyword(schema: dict[str, Any], draw: Draw) -> None:
    """Answers that finished do not fit; phi3ov enforces the keyword or refuses it by name."""
    values = finished_values(draw(json_schema=json.dumps(schema)))
    assert values
    assert not all(jsonschema.Draft202012Validator(schema).is_valid(value) for value in values)


def test_upstream_genai_exceeds_the_bounds_of_a_number(draw: Draw) -> None:
    """Between 0 and 1 there is 1.7."""
    schema = {"type": "number", "minimum": 0, "maximum": 1}
    values = finished_values(draw(json_schema=json.dumps(schema)))
    assert any(value > 1 for value in values)


def test_upstream_genai_takes_any_character_for_a_point(draw: Draw) -> None:
    """Numbers with other bounds are not JSON: ``0J5``."""
    schema = {"type": "number", "minimum": 0.5, "maximum": 100.5}
    answers = draw(100, json_schema=json.dumps(schema))
    assert any(re.fullmatch(r"\d+[^\d.eE]\d+", answer) for answer in answers)


def test_upstream_genai_writes_what_is_not_json_for_a_pattern(draw: Draw) -> None:
    """Quotation marks and control characters stand bare in the string."""
    answers = draw(json_schema=json.dumps({"type": "string", "pattern": "^..$"}))
    assert any(re.search(r'"["\x00-\x1f]', answer) for answer in answers)


def test_upstream_genai_allows_white_space_without_end(draw: Draw) -> None:
    """A model that likes spaces never comes to the value."""
    schema = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}
    answers = draw(json_schema=json.dumps(schema | {"additionalProperties": False}))
    assert any(re.search(r"\s{4}", answer) for answer in answers)


def test_upstream_genai_allows_days_that_do_not_exist(draw: Draw) -> None:
    """Such as the 31st of April."""
    checker = jsonschema.FormatChecker(["date"])
    values = finished_values(
        draw(200, json_schema=json.dumps({"type": "string", "format": "date"}))
    )
    assert not all(checker.conforms(value, "date") for value in values)


@pytest.mark.parametrize("pattern", ["[^a-c]{5}", r"\W{5}", r"\S{5}"])
def test_upstream_genai_lets_invalid_bytes_through_a_class(pattern: str, draw: Draw) -> None:
    """Bytes that are no character: phi3ov splits each range where the first byte changes."""
    assert any("\N{REPLACEMENT CHARACTER}" in answer for answer in draw(200, regex=pattern))
    ours = rules(f"{characters(((0x80, 0xFFFF),))} " * 5).replace("answer", "root", 1)
    assert not any("\N{REPLACEMENT CHARACTER}" in answer for answer in draw(200, grammar=ours))


def test_upstream_genai_takes_a_line_break_for_a_point_in_a_pattern(draw: Draw) -> None:
    """In Python, as in most languages, ``.`` is any character but that."""
    assert any("\n" in answer for answer in draw(200, regex=".{5}"))


def test_upstream_genai_takes_digits_behind_an_escape_for_part_of_it(draw: Draw) -> None:
    """It rewrites a grammar: é7 becomes another character. phi3ov gives é a string of its own."""
    theirs = draw(1, grammar='root ::= "\\u00e97"')
    ours = draw(1, grammar=f"root ::= {literal('é7')}")
    assert (theirs == ["é7"], ours) == (False, ["é7"])


def test_upstream_genai_drops_nul(draw: Draw) -> None:
    """The character is left out of the answer; phi3ov refuses it."""
    assert draw(1, grammar='root ::= "a" "\\u0000" "z"') == ["az"]
