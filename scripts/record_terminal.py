"""Record the command in a terminal, and draw the recording as an animated SVG.

    python scripts/record_terminal.py record MODEL docs/assets/chat.cast
    python scripts/record_terminal.py draw docs/assets/chat.cast docs/assets/chat.svg

The recording is asciinema's format, version 2, which ``asciinema play`` plays. The picture needs no
script: a strip of frames that CSS moves. Recording needs a pseudo-terminal, so Linux or macOS.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

COLUMNS, ROWS = 92, 22
TYPING_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 1.2
"""Longer pauses are cut: a reader waits for nothing."""
FRAME_SECONDS = 0.08
LAST_FRAME_SECONDS = 3.0
LINE_HEIGHT, CHARACTER_WIDTH, MARGIN = 18, 8.4, 12
COLOURS = {
    "black": "#3b4048", "red": "#e06c75", "green": "#98c379", "brown": "#e5c07b",
    "blue": "#61afef", "magenta": "#c678dd", "cyan": "#56b6c2", "white": "#dcdfe4",
}  # fmt: skip
BOLD = ' font-weight="bold"'
FOREGROUND, BACKGROUND = "#dcdfe4", "#1e2127"

Event = tuple[float, str]
"""Seconds since the start, and what the terminal was sent."""


@dataclass(frozen=True)
class Frame:
    """A picture of the terminal: for how long it is seen, and its rows of coloured runs."""

    seconds: float
    rows: tuple[tuple[tuple[str, str, bool], ...], ...]


def record(model: str) -> Iterator[Event]:
    """Run the command and yield what a terminal shows.

    Args:
        model: An exported folder.
    """
    import pexpect

    clock = Clock()
    command = f"phi3ov info {Path(model).name}"
    yield from clock.type_line(f"$ {command}\r\n")
    yield from clock.follow(_spawn(pexpect, ["info", model]), lines=12)
    yield from clock.type_line(f"$ phi3ov chat {Path(model).name}\r\n")
    chat = _spawn(pexpect, ["chat", model, "--no-history", "--max-new-tokens", "48"])
    for question in ("What is the capital of France?", "And of Germany?"):
        yield from clock.follow(chat, until="> ")
        for letter in question:
            chat.send(letter)
            yield from clock.follow(chat, seconds=TYPING_SECONDS)
        chat.send("\r")
    yield from clock.follow(chat, until="> ")
    chat.sendeof()
    yield from clock.follow(chat)


def _spawn(pexpect: Any, arguments: Sequence[str]) -> Any:
    return pexpect.spawn(
        sys.executable,
        ["-m", "phi3ov", *arguments],
        dimensions=(ROWS, COLUMNS),
        encoding="utf-8",
        env={**os.environ, "TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1"},
        timeout=120,
    )


class Clock:
    """Gives events their time, with long pauses cut."""

    def __init__(self) -> None:
        """Start at 0."""
        self._shown = 0.0
        self._last = time.monotonic()

    def _event(self, text: str) -> Event:
        now = time.monotonic()
        self._shown += min(now - self._last, LONGEST_PAUSE_SECONDS)
        self._last = now
        return round(self._shown, 3), text

    def type_line(self, text: str) -> Iterator[Event]:
        """Yield a line letter by letter."""
        for letter in text:
            time.sleep(TYPING_SECONDS)
            yield self._event(letter)

    def follow(
        self, process: Any, *, until: str = "", seconds: float = 0.0, lines: int = 0
    ) -> Iterator[Event]:
        """Yield a program's output: to its end, to a text at the end, or for some time."""
        import pexpect

        begun, tail, seen = time.monotonic(), "", 0
        while True:
            try:
                text = process.read_nonblocking(4096, timeout=0.05)
            except pexpect.TIMEOUT:
                text = ""
            except pexpect.EOF:
                return
            if text and not (lines and seen >= lines):
                yield self._event(text)
            seen += text.count("\n")
            tail = (tail + text)[-200:]
            if until and _plain(tail).endswith(until) and not text:
                return
            if seconds and time.monotonic() - begun > seconds:
                return


def _plain(text: str) -> str:
    """Return the last line of a screen that was sent ``text``."""
    import pyte

    screen = pyte.Screen(COLUMNS, ROWS)
    pyte.Stream(screen).feed(text)
    line = screen.display[screen.cursor.y][: screen.cursor.x]
    return str(line)


def write_cast(events: Sequence[Event], path: Path) -> None:
    """Write a recording in asciinema's format, version 2."""
    head = {"version": 2, "width": COLUMNS, "height": ROWS, "title": "phi3ov"}
    lines = [json.dumps(head), *(json.dumps([when, "o", text]) for when, text in events)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_cast(path: Path) -> list[Event]:
    """Read such a recording.

    Raises:
        ValueError: The file has another version or size, or time runs backwards.
    """
    head, *lines = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    if (head["version"], head["width"], head["height"]) != (2, COLUMNS, ROWS):
        raise ValueError(f"{path} is not a recording of version 2, {COLUMNS} by {ROWS}.")
    events = [(float(when), str(text)) for when, _kind, text in lines]
    if any(later < earlier for (earlier, _), (later, _) in pairwise(events)):
        raise ValueError(f"{path}: time runs backwards.")
    return events


def frames_of(events: Sequence[Event]) -> list[Frame]:
    """Return the pictures of a recording; what changes within a frame's time is one picture."""
    import pyte

    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.Stream(screen)
    frames: list[Frame] = []
    shown_at = 0.0
    for index, (when, text) in enumerate(events):
        stream.feed(text)
        following = events[index + 1][0] if index + 1 < len(events) else when + LAST_FRAME_SECONDS
        if following - when < FRAME_SECONDS and index + 1 < len(events):
            continue
        rows = tuple(_runs(screen.buffer[row]) for row in range(ROWS))
        if frames and frames[-1].rows == rows:
            frames[-1] = Frame(frames[-1].seconds + following - shown_at, rows)
        else:
            frames.append(Frame(following - shown_at, rows))
        shown_at = following
    return frames


def _runs(line: Any) -> tuple[tuple[str, str, bool], ...]:
    """Return a row as runs of text of one colour and weight, without blanks at its end."""
    cells = [line[column] for column in range(COLUMNS)]
    while cells and cells[-1].data == " ":
        cells.pop()
    runs: list[tuple[str, str, bool]] = []
    for cell in cells:
        colour = COLOURS.get(cell.fg, FOREGROUND if cell.fg == "default" else f"#{cell.fg}")
        if runs and runs[-1][1:] == (colour, cell.bold):
            runs[-1] = (runs[-1][0] + cell.data, colour, cell.bold)
        else:
            runs.append((cell.data, colour, cell.bold))
    return tuple(runs)


def draw(frames: Sequence[Frame]) -> str:
    """Return an animated SVG; with reduced motion it shows the last frame."""
    width = COLUMNS * CHARACTER_WIDTH + 2 * MARGIN
    height = ROWS * LINE_HEIGHT + 2 * MARGIN
    total = sum(frame.seconds for frame in frames)
    steps, at = [], 0.0
    for number, frame in enumerate(frames):
        steps.append(f"{100 * at / total:.3f}%{{transform:translateY({-number * height}px)}}")
        at += frame.seconds
    last = -(len(frames) - 1) * height
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" role="img" '
        'aria-label="A terminal: phi3ov info and phi3ov chat">',
        "<style>text{font:14px ui-monospace,Menlo,Consolas,monospace;white-space:pre}"
        f"#strip{{animation:play {total:.2f}s step-end infinite}}"
        f"@keyframes play{{{''.join(steps)}}}"
        "@media(prefers-reduced-motion:reduce){#strip{animation:none;"
        f"transform:translateY({last}px)}}}}</style>",
        f'<rect width="100%" height="100%" rx="8" fill="{BACKGROUND}"/><g id="strip">',
    ]
    known: dict[tuple[tuple[str, str, bool], ...], str] = {}
    for number, frame in enumerate(frames):
        for row, runs in enumerate(frame.rows):
            if not runs:
                continue
            y = number * height + MARGIN + (row + 0.8) * LINE_HEIGHT
            if runs in known:  # a line that was drawn before is used again
                parts.append(f'<use href="#{known[runs]}" y="{y:.0f}"/>')
                continue
            known[runs] = f"t{len(known)}"
            parts.append(
                f'<defs><text id="{known[runs]}" x="{MARGIN}">{_spans(runs)}</text></defs>'
                f'<use href="#{known[runs]}" y="{y:.0f}"/>'
            )
    parts.append("</g></svg>\n")
    return "\n".join(parts)


def _spans(runs: Sequence[tuple[str, str, bool]]) -> str:
    return "".join(
        f'<tspan fill="{colour}"{BOLD if bold else ""}>{escape(text)}</tspan>'
        for text, colour, bold in runs
    )


def main(arguments: Sequence[str]) -> None:
    """Record or draw.

    Raises:
        SystemExit: The arguments are wrong.
    """
    match arguments:
        case ["record", model, cast]:
            write_cast(list(record(model)), Path(cast))
        case ["draw", cast, picture]:
            svg = draw(frames_of(read_cast(Path(cast))))
            Path(picture).write_text(svg, encoding="utf-8")
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
