"""Patterns and counts as grammars: what would hold up the engine, how counts are written out."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phi3ov.answer.options import GenerationOptions
from phi3ov.errors import OptionError
from phi3ov.structured import regex as regex_grammar
from phi3ov.structured.ebnf import repeat, rules

from .grammar_sampler import GrammarSampler

TraceFunction = Callable[[Any, str, Any], Any]


@given(least=st.integers(0, 3), more=st.integers(0, 90))
def test_a_count_is_written_out_as_itself(least: int, more: int) -> None:
    """Whatever rules stand for ``{least,most}``, they allow these lengths and no others."""
    assert rules(repeat("[a]", least + 2, None)).startswith(
        f"answer ::= (class0){{{least + 2}}} (class0)*\n"
    )
    sampler = GrammarSampler(rules(repeat("[a]", least, least + more)))
    known: dict[str, set[int]] = {}

    def lengths(node: Any) -> set[int]:
        if node[0] == "rule":
            if node[1] not in known:
                known[node[1]] = lengths(sampler.rules[node[1]])
            return known[node[1]]
        if node[0] == "repeat":
            unit = lengths(node[1])
            assert len(unit) == 1
            return {count * min(unit) for count in range(node[2], node[3] + 1)}
        if node[0] == "all":
            return {sum(one) for one in itertools.product(*map(lengths, node[1]))}
        if node[0] == "either":
            return set().union(*map(lengths, node[1]))
        return {len(node[1])}

    assert lengths(sampler.rules["answer"]) == set(range(least, least + more + 1))


@pytest.mark.parametrize(
    "pattern",
    [
        "a{9999}b{9999}c{9999}", "(a{9999}|b{9999}|c{9999})", ".*.*.*.*.*.*", "(.|\n)+" * 6,
        ".+.+.+.+.+.+", "(.*,?){50}", "(.|){30}", "(.?.?){60}", "a(.*.*.*)(.*.*.*)b",
        "(x.*.*.*.*.*.*y)*",
        "(.*.*.*a.*.*.*){2}", "[a-z]?" * 101, ".{1,20}.{1,20}",
        "(.{0,400}){2}", "[a-z]{1,90}" * 3,
    ],
)  # fmt: skip
def test_a_pattern_that_would_hold_up_the_engine_is_refused(pattern: str) -> None:
    """Many characters when written out, or many ways to read the same text."""
    with pytest.raises(OptionError, match=r"more than 20000 characters|too many parts in a row"):
        GenerationOptions(regex=pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        r"(\w+ ?){1,200}", ".* - .* - .* - .* - .* - .* - .*", "[^,]*(,[^,]*){0,40}", ".*.*.*.*.*",
        r"\s*\w+\s*=\s*\d*\s*,?\s*", "(.|\n)*", r"\d{1,3}(\.\d{1,3}){3}",
        "(.+){100}", "(, .*)?" * 20, ".{0,400}.*", r"(\S+ ?){1,50}", ".?.?.?.?.?",
    ],
)  # fmt: skip
def test_a_pattern_of_ordinary_looseness_is_read(pattern: str) -> None:
    """A character that must be there ends a row."""
    assert GenerationOptions(regex=pattern).shape() is not None


def lines_run(call: Callable[[], object]) -> int:
    """Return how many lines of Python a call runs: its work, without a clock."""
    count, before = 0, sys.gettrace()

    def trace(_frame: object, event: str, _argument: object) -> TraceFunction:
        nonlocal count
        count += event == "line"
        return trace

    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


def test_the_work_for_a_class_grows_with_its_members() -> None:
    """And not with their square: a class may list thousands of characters."""

    def work(members: int) -> int:
        listed = "".join(chr(0x4E00 + 2 * number) for number in range(members))
        return lines_run(lambda: regex_grammar.regex_grammar(f"[{listed}]|[^{listed}]"))

    assert work(2000) < 5 * work(500)
