"""The examples in the docstrings do what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from collections.abc import Iterator

import pytest

import phi3ov

NEEDS_A_MODEL = {"phi3ov.chat.Phi3Chat", "phi3ov.reference.build.build_reference"}
"""Run elsewhere, by the end-to-end tests, with a real model."""


def _examples() -> Iterator[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    for info in pkgutil.walk_packages(phi3ov.__path__, "phi3ov."):
        if info.name == "phi3ov.__main__":  # runs when imported
            continue
        module = importlib.import_module(info.name)
        names = {name: getattr(phi3ov, name) for name in phi3ov.__all__}
        for test in finder.find(module, info.name, extraglobs={**names, "phi3ov": phi3ov}):
            if test.examples:
                yield test


EXAMPLES = {test.name: test for test in _examples()}


def test_there_are_examples() -> None:
    """The finder finds, and the excluded names exist."""
    assert len(EXAMPLES) >= 8
    assert set(EXAMPLES) >= NEEDS_A_MODEL


@pytest.mark.parametrize("name", sorted(EXAMPLES.keys() - NEEDS_A_MODEL))
def test_example_does_what_it_says(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every example that is not marked +SKIP gives what the docstring shows."""
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    result = runner.run(EXAMPLES[name])
    assert result.failed == 0, capsys.readouterr().out
