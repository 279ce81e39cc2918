"""``validate="after"``: the grammar holds what it can, and the finished answer is checked."""

from __future__ import annotations

import json
import random
import sys
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from phi3ov.answer.options import GenerationOptions
from phi3ov.errors import GenerationError, MissingDependencyError, OptionError
from phi3ov.structured.relaxation import relaxed
from phi3ov.structured.shape import AnswerShape

from .grammar_sampler import GrammarSampler
from .test_schemas import JSON, KEYWORDS, fits
from .test_structured import ask

UNIQUE: dict[str, Any] = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0, "maximum": 9},
    "uniqueItems": True,
    "minItems": 2,
    "maxItems": 3,
}


def after(schema: Any) -> AnswerShape:
    """Return the shape of answers that are checked when they are finished."""
    shape = GenerationOptions(json_schema=schema, validate="after").shape()
    assert shape is not None
    return shape


def test_what_a_grammar_can_hold_is_still_enforced() -> None:
    """Only the rest is checked afterwards: here, that no two items are alike."""
    shape = after(UNIQUE)
    sampler, refused = GrammarSampler(shape.grammar), 0
    for seed in range(60):
        text = sampler.draw(random.Random(seed))
        value = json.loads(text)
        assert fits(value, UNIQUE | {"uniqueItems": False})
        if len(set(value)) < len(value):
            refused += 1
            with pytest.raises(ValueError, match=r"\$: .* has non-unique elements"):
                shape.parse(text)
        else:
            assert shape.parse(text) == value
    assert refused


def test_an_answer_that_does_not_fit_fails_its_turn() -> None:
    """With the place, the reason and the text."""
    with pytest.raises(GenerationError, match=r"not fit json_schema: \$: .* non-unique") as caught:
        ask("[3, 3]", json_schema=UNIQUE, validate="after")
    assert caught.value.partial_text == "[3, 3]"
    assert ask("[3, 4]", json_schema=UNIQUE, validate="after").parsed == [3, 4]


RELAXED: list[tuple[Any, Any]] = [
    ({"type": "string", "pattern": "(?=a)b", "maxLength": 3}, {"type": "string", "maxLength": 3}),
    ({"type": "string", "pattern": "a+b+", "maxLength": 3}, {"type": "string", "pattern": "a+b+"}),
    ({"type": "string", "format": "iri", "minLength": 3}, {"type": "string", "minLength": 3}),
    ({"type": "string", "format": "date", "minLength": 3}, {"type": "string", "format": "date"}),
    ({"type": "integer", "multipleOf": 10**9, "minimum": 1}, {"type": "integer", "minimum": 1}),
    ({"type": "integer", "multipleOf": 7}, {"type": "integer", "multipleOf": 7}),
    ({"oneOf": [{"type": "null"}, {"const": 3}]}, {"anyOf": [{"type": "null"}, {"const": 3}]}),
    ({"allOf": [{"minimum": 3}, {"maximum": 5}]}, {"anyOf": [{"minimum": 3}]}),
    ({"$ref": "#/$defs/a", "minimum": 3, "$defs": {"a": {"not": {}, "type": "null"}}},
     {"$ref": "#/$defs/a", "$defs": {"a": {"type": "null"}}}),
    ({"not": {"type": "null"}}, {}),
    ({"enum": [1, 2], "not": {"const": 1}}, {"enum": [1, 2]}),
    ({"type": "object", "minProperties": 2, "required": ["a"], "properties": {"b": {"not": {}}}},
     {"type": "object", "required": ["a"], "properties": {"b": {}, "a": {}}}),
    ({"type": "array", "prefixItems": [{"not": {}}], "items": {}},
     {"type": "array", "prefixItems": [{}]}),
    ({"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True},
     {"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True}),
    ({"type": "object", "additionalProperties": {"not": {}}},
     {"type": "object", "additionalProperties": {}}),
    ({"type": 3}, {"type": 3}),
    ({"format": ["date"]}, {"format": ["date"]}),
    ({"properties": {}, "required": [["a"]]}, {"properties": {}, "required": [["a"]]}),
    ({"allOf": 3}, {}),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "expected"), RELAXED, ids=str)
def test_a_schema_loses_only_what_no_grammar_holds(schema: Any, expected: Any) -> None:
    """All else stays as it is."""
    assert relaxed(schema) == expected


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    given=st.dictionaries(st.sampled_from(KEYWORDS), JSON, min_size=1, max_size=3),
    kind=st.sampled_from([None, "object", "array", "string", "integer", "number"]),
    chance=st.randoms(use_true_random=False),
)
def test_every_answer_fits_or_is_refused(
    given: dict[str, Any], kind: str | None, chance: random.Random
) -> None:
    """Whatever the schema: what comes out of `parse` is valid by the standard."""
    schema: Any = given if kind is None else {"type": kind} | given
    try:
        shape = after(schema)
    except OptionError:  # malformed, too large, without a value, or with a broken reference
        return
    text = GrammarSampler(shape.grammar).draw(chance)
    try:
        value = shape.parse(text)
    except ValueError:
        return
    assert fits(value, schema)


def test_the_way_out_is_named_where_it_is_one() -> None:
    """A schema without a value, or one that is malformed, is refused in either way."""
    for schema, helps in (
        (UNIQUE, True),
        ({"type": "string", "pattern": "(?=a)b"}, True),
        ({"type": "integer", "minimum": 3, "maximum": 2}, False),
        ({"type": "strin"}, False),
    ):
        with pytest.raises(OptionError) as caught:
            GenerationOptions(json_schema=schema)
        assert ("validate='after'" in str(caught.value)) == helps


def test_a_dictionary_needs_jsonschema(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error holds the command, and comes with the options."""
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(MissingDependencyError, match="pip install jsonschema"):
        GenerationOptions(json_schema={"const": "without jsonschema"}, validate="after")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validate": "later", "json_schema": {}}, "validate='later' is not 'grammar' or 'after'"),
        ({"validate": "after"}, "no effect without json_schema"),
        ({"validate": "after", "regex": "a"}, "no effect without json_schema"),
        ({"validate": "after", "json_schema": {"type": "strin"}}, "is not a JSON schema"),
    ],
)
def test_a_check_that_would_do_nothing_is_refused(options: Any, message: str) -> None:
    """As every option that has no effect."""
    with pytest.raises(OptionError, match=message):
        GenerationOptions(**options)


UNIQUE_ENUM: dict[str, Any] = {"type": "array", "uniqueItems": True}


@pytest.mark.parametrize(
    ("schema", "count"),
    [
        ({"items": {"enum": ["a", "b", "c"]}}, 8),
        ({"items": {"enum": ["a", "b", "c"]}, "minItems": 1, "maxItems": 2}, 6),
        ({"items": {"enum": ["a", "b", "c"]}, "minItems": 3}, 1),
        ({"items": {"type": "boolean"}, "maxItems": 5}, 4),
        ({"items": {"enum": [1, True, 1.0, "1", None, 0, False]}, "minItems": 6}, 1),
        ({"items": {"const": 3}}, 2),
    ],
    ids=str,
)
def test_different_items_of_an_enum_are_every_subset(schema: dict[str, Any], count: int) -> None:
    """In the enum's order; true and 1 are two values, 1 and 1.0 are one."""
    schema = UNIQUE_ENUM | schema
    shape = GenerationOptions(json_schema=schema).shape()
    assert shape is not None
    sampler = GrammarSampler(shape.grammar)
    drawn = {sampler.draw(random.Random(seed)) for seed in range(150)}
    assert len(drawn) == count
    assert all(fits(json.loads(text), schema) for text in drawn)


def test_more_different_items_than_there_are_values_are_refused() -> None:
    """By the numbers."""
    schema = UNIQUE_ENUM | {"items": {"enum": [1, 2]}, "minItems": 3}
    with pytest.raises(OptionError, match="3 different items of 2 values"):
        GenerationOptions(json_schema=schema)
