"""Patterns and counts as grammars: what would hold up the engine, how counts are written out."""

from __future__ import annotations

import itertools
import re
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
    ("pattern", "reason"),
    [
        ("a{9999}b{9999}c{9999}", "more than 20000 characters"),
        ("(a{9999}|b{9999}|c{9999})", "more than 20000 characters"),
        ("(.|){30}", "20 parts in a row"),
        ("(.?.?){60}", "20 parts in a row"),
        ("(.?.?){11}", "20 parts in a row"),
        ("[a-z]?" * 21, "20 parts in a row"),
        ("a" + ".?" * 40 + "b", "20 parts in a row"),
        ("(a.?" + ".*" * 20 + "b)", "20 parts in a row"),
        (r"(\w+ ?){1,200}", "120 parts of variable length"),
        ("(a?b?c){61}", "120 parts of variable length"),
    ],
)
def test_a_pattern_that_would_hold_up_the_engine_is_refused(pattern: str, reason: str) -> None:
    """Many characters when written out, or many ways to read the same text."""
    with pytest.raises(OptionError, match=f"more than {reason}|{reason}"):
        GenerationOptions(regex=pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        r"(\w+ ?){1,50}", ".* - .* - .* - .* - .* - .* - .*", "[^,]*(,[^,]*){0,40}", ".*" * 20,
        r"\s*\w+\s*=\s*\d*\s*,?\s*", "(.|\n)*", r"\d{1,3}(\.\d{1,3}){3}", "(.|\n)+" * 6,
        "(.+){99}", "(, .*)?" * 20, ".{0,400}.*", r"(\S+ ?){1,49}", ".?.?.?.?.?", ".{1,20}.{1,20}",
        "[a-z]{1,90}" * 3, "(x.*.*.*.*.*.*y)*", "(.*,?){10}", "[a-z]?" * 20, "(.?.?){10}",
    ],
)  # fmt: skip
def test_a_pattern_of_ordinary_looseness_is_read(pattern: str) -> None:
    """A character that must be there ends a row."""
    assert GenerationOptions(regex=pattern).shape() is not None


@pytest.mark.parametrize(
    ("pattern", "lengths"),
    [
        ("", (0, 0)), ("a|bcd", (1, 3)), ("a{2,5}b?", (2, 6)), ("(ab){3}", (6, 6)),
        ("a*", (0, None)),
        ("(a?){0,3}", (0, 3)), ("(a*){2}", (0, None)), ("(){5,}", (0, 0)), ("a{0}b", (1, 1)),
        ("(a*){0}", (0, 0)), ("x(a|b+)?", (1, None)), (r"\d{3,}", (3, None)),
    ],
)  # fmt: skip
def test_lengths_of_a_patterns_texts_are_known(
    pattern: str, lengths: tuple[int, int | None]
) -> None:
    """The shortest and the longest, in characters."""
    found = regex_grammar.regex_grammar(pattern)
    assert (found.shortest, found.longest) == lengths


@pytest.mark.parametrize(
    ("pattern", "lengths"),
    [
        ("[ab]+", (2, 4)), ("x[ab]*y", (0, 3)), ("(ab)+", (3, 7)), ("a{2,9}|b|c{5}", (1, 4)),
        ("a?b?", (0, 2)), ("(ab){2,}c", (0, 6)), ("a{3,}", (0, 5)), ("[ab]*", (3, None)),
    ],
)  # fmt: skip
def test_a_pattern_within_lengths_loses_nothing_else(
    pattern: str, lengths: tuple[int, int | None]
) -> None:
    """Compared with all texts of up to seven characters."""
    found = regex_grammar.regex_grammar(pattern, lengths=lengths)
    sampler = GrammarSampler(rules(found.expression))
    least, most = lengths
    for count in range(7):
        for letters in itertools.product("abcxy", repeat=count):
            text = "".join(letters)
            expected = re.fullmatch(pattern, text) and least <= count <= (
                count if most is None else most
            )
            if expected or sum(letters.count(letter) for letter in "cxy") < 3:
                assert sampler.accepts(text) == bool(expected), text


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
