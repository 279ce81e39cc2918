"""What CONTRIBUTING says of the code: sizes, and that one place is enough to add something."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import phi3ov
from phi3ov import ExportError, Int4Compression
from phi3ov.cli import main
from phi3ov.engine.protocol import ENGINES, load_engine
from phi3ov.exporter.recipes import PRESETS
from phi3ov.prompt import formats as chat_format
from phi3ov.prompt.formats import ChatFormat, recognize_format

ROOT = Path(__file__).parents[2]
SOURCE = Path(phi3ov.__file__).parent
MODULES = sorted(path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py"))

MOST_LINES = 350  # near 300 is the aim
MOST_FUNCTION_LINES = 55  # near 50 at most is the aim
"""Without the docstring."""


class ToyEngine:
    """An engine in a module that phi3ov does not know."""


def functions(module: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Return every function and method of a module."""
    for node in ast.walk(ast.parse((SOURCE / module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@pytest.mark.parametrize("module", MODULES)
def test_files_and_functions_stay_short(module: str) -> None:
    """A file is read in one sitting, a function on one screen."""
    lines = (SOURCE / module).read_text(encoding="utf-8").count("\n")
    assert lines <= MOST_LINES, "split it by what it is about"
    for function in functions(module):
        body = function.body[1:] if ast.get_docstring(function) else function.body
        if body:
            length = (body[-1].end_lineno or 0) - body[0].lineno + 1
            assert length <= MOST_FUNCTION_LINES, f"{function.name}: {length} lines"


def test_an_engine_is_added_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line in ENGINES is all that loading an engine needs."""
    monkeypatch.setitem(ENGINES, "toy", f"{__name__}:ToyEngine")  # type: ignore[misc]
    assert load_engine("toy") is ToyEngine  # type: ignore[arg-type, comparison-overlap]


def test_a_recipe_is_added_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line in PRESETS is all that the command needs; the library takes any value anyway."""
    asked: list[object] = []

    def note(*_: object, compression: object, **__: object) -> None:
        asked.append(compression)
        raise ExportError("enough")

    monkeypatch.setitem(PRESETS, "toy", lambda: Int4Compression(ratio=0.25))
    monkeypatch.setattr("phi3ov.exporter.export.export_model", note)
    assert main(["export", "source", "output", "--preset", "toy", "--group-size", "64"]) == 1
    assert asked == [Int4Compression(ratio=0.25, group_size=64)]


def test_a_chat_format_is_added_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shape is all that recognizing a family member's template needs."""
    toy = ChatFormat(name="toy", header="<|{role}|>: ", footer="<|over|>\n")

    def template(messages: list[dict[str, str]]) -> str:
        turns = (f"<|{one['role']}|>: {one['content']}<|over|>\n" for one in messages)
        return "".join(turns) + "<|assistant|>: "

    with pytest.raises(phi3ov.UnsupportedModelError):
        recognize_format(template)
    monkeypatch.setattr(chat_format, "FORMATS", (*chat_format.FORMATS, toy))
    assert recognize_format(template) == toy


def test_the_tests_that_documents_name_exist() -> None:
    """Pages point at the tests that prove them; none of those was renamed meanwhile."""
    written = "\n".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")
    )
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    missing = [
        f"{page.name}: {name}"
        for page in pages
        for name in re.findall(r"`(test_\w+)`", page.read_text(encoding="utf-8"))
        if not re.search(rf"def {name}\b", written)
    ]
    assert not missing
