"""The terminal recording of the docs: its format, its picture, and that the two agree."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]
CAST, PICTURE = ROOT / "docs" / "assets" / "chat.cast", ROOT / "docs" / "assets" / "chat.svg"


@pytest.fixture(scope="module")
def recorder() -> ModuleType:
    """scripts/record_terminal.py."""
    path = ROOT / "scripts" / "record_terminal.py"
    spec = importlib.util.spec_from_file_location("record_terminal", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["record_terminal"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_is_drawn_from_the_recording(recorder: ModuleType) -> None:
    """So both are of one run: draw the picture again after a new recording."""
    drawn = recorder.draw(recorder.frames_of(recorder.read_cast(CAST)))
    assert PICTURE.read_text(encoding="utf-8") == drawn
    assert ElementTree.fromstring(drawn).tag.endswith("svg")
    assert len(drawn) < 200_000


def test_the_recording_shows_what_the_docs_say(recorder: ModuleType) -> None:
    """Two commands, two answers, and no path of the machine that recorded it."""
    said = "".join(text for _, text in recorder.read_cast(CAST))
    for expected in ("phi3ov info phi3-int4", "phi3ov chat phi3-int4", "Paris", "Berlin"):
        assert expected in said
    assert "/tmp" not in said
    assert "/home" not in said


def test_frames_hold_what_is_seen_for_as_long_as_it_is_seen(recorder: ModuleType) -> None:
    """Events within a frame's time are one picture; equal pictures are one frame."""
    events = [(0.0, "a"), (0.01, "b"), (0.5, "\x1b[31mc\x1b[0m"), (1.0, "\x1b[0m"), (2.0, "d")]
    frames = recorder.frames_of(events)
    texts = ["".join(text for text, _, _ in frame.rows[0]) for frame in frames]
    assert texts == ["ab", "abc", "abcd"]
    assert [round(frame.seconds, 2) for frame in frames] == [0.5, 1.5, 3.0]
    assert frames[1].rows[0][1] == ("c", recorder.COLOURS["red"], False)


def test_text_is_escaped_in_the_picture(recorder: ModuleType) -> None:
    """A terminal may show markup."""
    drawn = recorder.draw(recorder.frames_of([(0.0, "<b>&</b>")]))
    assert "".join(ElementTree.fromstring(drawn).itertext()).count("<b>&</b>") == 1


def test_a_recording_is_written_and_read(recorder: ModuleType, tmp_path: Path) -> None:
    """In asciinema's format; one of another size or with time backwards is refused."""
    path = tmp_path / "a.cast"
    events = [(0.0, "é"), (0.5, "\r\n")]
    recorder.write_cast(events, path)
    assert recorder.read_cast(path) == events
    recorder.write_cast(events[::-1], path)
    with pytest.raises(ValueError, match="time runs backwards"):
        recorder.read_cast(path)
    path.write_text('{"version": 1, "width": 1, "height": 1}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="not a recording of version 2"):
        recorder.read_cast(path)
