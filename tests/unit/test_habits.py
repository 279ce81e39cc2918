"""What CONTRIBUTING says of the code: one place is enough to add something."""

from __future__ import annotations

import pytest

import phi3ov
from phi3ov import ExportError, Int4Compression
from phi3ov.cli import main
from phi3ov.engine.protocol import ENGINES, load_engine
from phi3ov.exporter.recipes import PRESETS
from phi3ov.prompt import formats as chat_format
from phi3ov.prompt.formats import ChatFormat, recognize_format


class ToyEngine:
    """An engine in a module that phi3ov does not know."""


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
