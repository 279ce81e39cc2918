"""Numbers as grammars: between bounds and multiples, compared with Python's own numbers."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from phi3ov.answer.options import GenerationOptions
from phi3ov.errors import OptionError
from phi3ov.structured.json_schema import json_grammar

from .grammar_sampler import GrammarSampler

DECIMALS = st.decimals(-1100, 1100, places=3).map(lambda value: value.normalize())
BOUND = (
    st.sampled_from(["minimum", "exclusiveMinimum"]),
    st.sampled_from(["maximum", "exclusiveMaximum"]),
)


def within(value: Decimal, schema: dict[str, Any]) -> bool:
    """Whether a number fits, by exact decimals."""
    bounds = {name: Decimal(str(bound)) for name, bound in schema.items() if name != "type"}
    return (
        value >= bounds.get("minimum", value)
        and value <= bounds.get("maximum", value)
        and value > bounds.get("exclusiveMinimum", value - 1)
        and value < bounds.get("exclusiveMaximum", value + 1)
        and ("multipleOf" not in bounds or value % bounds["multipleOf"] == 0)
    )


def sampler(schema: dict[str, Any]) -> GrammarSampler:
    """Return the grammar of a schema that has a number."""
    try:
        return GrammarSampler(json_grammar(schema))
    except OptionError as error:
        assume("no number between" not in str(error))
        assume("no multiple of" not in str(error))
        raise


@settings(deadline=None)
@given(
    bounds=st.tuples(DECIMALS, DECIMALS),
    keywords=st.tuples(*BOUND),
    kind=st.sampled_from(["number", "integer"]),
    probes=st.lists(DECIMALS, max_size=8),
    both=st.booleans(),
)
def test_a_number_is_allowed_exactly_where_it_is_within_its_bounds(
    bounds: tuple[Decimal, Decimal],
    keywords: tuple[str, str],
    kind: str,
    probes: list[Decimal],
    both: bool,
) -> None:
    """At the bounds and a digit beside them, too; texts are compared as exact decimals."""
    low, high = bounds
    schema: dict[str, Any] = {"type": kind, keywords[0]: float(low)}
    schema |= {keywords[1]: float(high)} if both else {}
    grammar = sampler(schema)
    beside = [
        bound + step for bound in (low, high) for step in map(Decimal, ("0", "0.001", "-0.001"))
    ]
    for probe in (*probes, *beside):
        if probe % 1 != 0 and kind == "integer":
            continue
        text = f"{probe:f}"
        if text == "-0" or (kind == "integer" and "." in text):
            continue
        assert grammar.accepts(text) == within(probe, schema), text


@settings(deadline=None, max_examples=60)
@given(
    step=st.one_of(st.integers(1, 97), st.sampled_from([0.01, 0.25, 0.5, 2.5])),
    low=st.integers(-500, 500),
    width=st.integers(0, 1000),
    probes=st.lists(st.integers(-60_000, 160_000), min_size=5, max_size=20),
)
def test_a_number_is_allowed_exactly_where_it_is_a_multiple(
    step: float, low: int, width: int, probes: list[int]
) -> None:
    """Of an integer or of a fraction, between bounds."""
    kind = "integer" if isinstance(step, int) else "number"
    schema = {"type": kind, "multipleOf": step, "minimum": low, "maximum": low + width}
    grammar = sampler(schema)
    exact = Decimal(str(step))
    for probe in probes:
        near = Decimal(probe) / 100 // exact * exact
        for value in (near, Decimal(probe) / 100):
            places = max(0, -int(exact.as_tuple().exponent))
            text = f"{value:.{places}f}"
            if text.startswith("-") and Decimal(text) == 0:
                continue
            assert grammar.accepts(text) == within(Decimal(text), schema), text


@pytest.mark.parametrize(
    ("schema", "allowed", "refused"),
    [
        ({"minimum": 0, "maximum": 1}, ["0", "1", "0.5", "1.0", "0.00000000000001"],
         ["1.1", "1.00000000000001", "-0", "-0.1", "2", "00", "0.", ".5", "0J5", "1e0"]),
        ({"exclusiveMinimum": 0}, ["0.1", "3.14", "999999999999999"], ["0", "0.0", "-1"]),
        ({"minimum": -0.5, "maximum": -0.25}, ["-0.25", "-0.5", "-0.333"], ["-0.2", "-0.51", "0"]),
        ({"minimum": 0.1}, ["0.1", "0.11", "1"], ["0.09", "0.09999999999999", "0"]),
        ({"minimum": 99.5, "exclusiveMaximum": 100.5}, ["99.5", "100", "100.4999"],
         ["99.4", "100.5", "100.50", "9.95"]),
        ({"minimum": 1e-7, "maximum": 1e-6}, ["0.0000001", "0.0000005"], ["0", "0.000002"]),
    ],
)  # fmt: skip
def test_numbers_at_their_bounds(
    schema: dict[str, Any], allowed: list[str], refused: list[str]
) -> None:
    """The form of JSON, without an exponent."""
    grammar = GrammarSampler(json_grammar({"type": "number"} | schema))
    for text in allowed:
        assert grammar.accepts(text), text
        json.loads(text)
    for text in refused:
        assert not grammar.accepts(text), text


def test_a_number_without_bounds_may_have_an_exponent() -> None:
    """Nothing is lost there."""
    grammar = GrammarSampler(json_grammar({"type": "number"}))
    for text in ("1e5", "-0.25e-12", "0", "-0"):
        assert grammar.accepts(text)


def test_an_integer_or_a_number_is_a_number() -> None:
    """Bounds are about both."""
    shape = GenerationOptions(json_schema={"type": ["integer", "number"], "minimum": 3}).shape()
    assert shape is not None
    grammar = GrammarSampler(shape.grammar)
    assert grammar.accepts("3.5")
    assert grammar.accepts("3")
    assert not grammar.accepts("2.9")
