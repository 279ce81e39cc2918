"""Write docs/traps.md from the tests that are marked with a trap.

A test says what it guards in one sentence, and what it is about:

    @pytest.mark.trap("A weight that is not a number is refused by name.", about="Checkpoints")

The page lists these sentences, so it cannot promise what no test checks. Run
``python -m tests.traps`` after adding one; a test compares the page with the marks.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "traps.md"

SUBJECTS = (
    "Checkpoints",
    "Tokenizers",
    "Exporting",
    "Publishing",
    "Answers",
    "Terminal",
    "Machines",
)
"""The page's sections, in this order."""

INTRODUCTION = """\
# Known traps, and what phi3ov does

Checkpoints, tokenizers, terminals and machines that people really bring, and what happens with
each. Every line is the promise of a test, whose name follows it. `python -m tests.traps` writes
this page from the tests.
"""


class Trap(NamedTuple):
    """One marked test."""

    about: str
    sentence: str
    test: str


def find_traps() -> Iterator[Trap]:
    """Yield the marked tests, file by file.

    Raises:
        ValueError: A mark has no sentence, or is about none of `SUBJECTS`.
    """
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                for mark in node.decorator_list:
                    if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.trap":
                        yield _read_mark(mark, node.name)


def _read_mark(mark: ast.Call, test: str) -> Trap:
    values = [ast.literal_eval(argument) for argument in mark.args]
    options = {option.arg: ast.literal_eval(option.value) for option in mark.keywords}
    if len(values) != 1 or not str(values[0]).endswith(".") or options.keys() != {"about"}:
        raise ValueError(f"{test}: a trap is one sentence and about=..., not {ast.unparse(mark)}")
    if options["about"] not in SUBJECTS:
        raise ValueError(f"{test}: about={options['about']!r} is not one of {SUBJECTS}")
    return Trap(options["about"], values[0], test)


def render() -> str:
    """Return the page's text."""
    sections: dict[str, list[str]] = defaultdict(list)
    for trap in find_traps():
        sections[trap.about].append(f"- {trap.sentence} (`{trap.test}`)")
    parts = [INTRODUCTION]
    for subject in SUBJECTS:
        if sections[subject]:
            parts.append(f"## {subject}\n\n" + "\n".join(sections[subject]) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8", newline="\n")
