"""Output of commands: styled text and tables on a terminal, plain text in a pipe, JSON.

rich is imported only for a terminal, because importing it takes 80 ms.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console


def shows_style(stream: TextIO) -> bool:
    """Return whether to use colours and frames: on a terminal that supports them, no NO_COLOR."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return stream.isatty()


_CONTROLS = {
    code: f"\\u{code:04x}" if code > 0xFF else f"\\x{code:02x}"
    for code in (
        *(
            code
            for code in range(0xA0)
            if (code < 0x20 or code >= 0x7F) and chr(code) not in "\t\n"
        ),
        *range(0x202A, 0x202F),  # these and the next change the direction of text
        *range(0x2066, 0x206A),
    )
}
"""Visible replacement of each character that controls a terminal."""


def escape_controls(text: str) -> str:
    r"""Escape control characters, so that a terminal shows them instead of obeying them.

    Escape sequences can set the window's title, write the clipboard or move the cursor. Line feeds
    and tabs stay.

    Example:
        >>> escape_controls("\x1b]0;title\x07")
        '\\x1b]0;title\\x07'
    """
    return text.translate(_CONTROLS)


def write_text(text: str, stream: TextIO | None = None) -> None:
    """Write a text without a line break: escaped on a terminal, exact in a pipe or a file.

    Args:
        text: Text of a model, a file or a caller.
        stream: The output; None for stdout.
    """
    stream = sys.stdout if stream is None else stream
    print(escape_controls(text) if stream.isatty() else text, end="", file=stream, flush=True)


def write_line(text: str, *, style: str = "", stream: TextIO | None = None) -> None:
    """Write a line, escaped as in `write_text`.

    Args:
        text: The text.
        style: rich's name of a style, such as ``"bold"``, for a terminal.
        stream: The output; None for stdout.
    """
    stream = sys.stdout if stream is None else stream
    if style and shows_style(stream):
        make_console(stream).print(escape_controls(text), style=style, soft_wrap=True, end="")
        print(file=stream)
    else:
        write_text(f"{text}\n", stream)


def write_table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, right: str = "") -> None:
    """Write a table to stdout: framed on a terminal, columns of plain text in a pipe.

    Args:
        headers: A heading for each column.
        rows: The cells.
        right: The headings, separated by commas, of columns that are aligned on the right.
    """
    on_the_right = set(right.split(","))
    if shows_style(sys.stdout):
        from rich.table import Table
        from rich.text import Text

        table = Table()
        for name in headers:
            table.add_column(name, justify="right" if name in on_the_right else "left")
        for row in rows:
            table.add_row(*(Text(escape_controls(cell)) for cell in row))
        make_console(sys.stdout).print(table)
        return
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    for row in (headers, *rows):
        cells = (
            cell.rjust(width) if name in on_the_right else cell.ljust(width)
            for name, cell, width in zip(headers, row, widths, strict=True)
        )
        print("  ".join(cells).rstrip())


def write_facts(facts: Mapping[str, str]) -> None:
    """Write names and values to stdout, one per line; a terminal wraps long values."""
    if shows_style(sys.stdout):
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold", no_wrap=True)
        table.add_column()
        for name, value in facts.items():
            table.add_row(name, Text(escape_controls(value)))
        make_console(sys.stdout).print(table)
        return
    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        print(f"{name:{width}}  {value}")


def print_json(value: Mapping[str, Any] | Sequence[Any]) -> None:
    """Write a value to stdout as JSON; paths become text."""
    print(json.dumps(value, indent=2, default=_to_json))


def flatten(value: Any) -> str:
    """Return a value on one line."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    return "-" if value is None else str(value)


@contextmanager
def busy(doing: str) -> Iterator[None]:
    """Show a temporary status line during work that takes seconds, on a terminal only."""
    if not shows_style(sys.stderr):
        yield
        return
    with make_console(sys.stderr).status(escape_controls(doing)):
        yield


def gigabytes(size_bytes: int) -> str:
    """Return a size in GB of 10^9 bytes."""
    return f"{size_bytes / 1e9:.2f} GB"


def make_console(stream: TextIO) -> Console:
    """Return a rich console that writes to a terminal without interpreting markup in text."""
    from rich.console import Console

    class TerminalConsole(Console):
        def on_broken_pipe(self) -> None:
            """Let the command choose its exit code; rich would end the process with 1."""
            raise  # noqa: PLE0704 - rich calls this while it handles the BrokenPipeError

    return TerminalConsole(
        file=stream, force_terminal=True, markup=False, highlight=False, emoji=False
    )


def _to_json(value: object) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")
