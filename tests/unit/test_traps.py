"""The page of known traps says what the tests check."""

from __future__ import annotations

import pytest

from tests.traps import PAGE, find_traps, render


def test_the_page_of_traps_is_current() -> None:
    """``python -m tests.traps`` writes it."""
    assert PAGE.read_text(encoding="utf-8") == render()


def test_no_trap_is_told_twice() -> None:
    """Two tests of one promise are one line."""
    sentences = [trap.sentence for trap in find_traps()]
    assert sentences
    assert len(sentences) == len(set(sentences))


def test_a_mark_is_known_to_pytest(pytestconfig: pytest.Config) -> None:
    """It is declared with what it means."""
    assert any(line.startswith("trap(") for line in pytestconfig.getini("markers"))
