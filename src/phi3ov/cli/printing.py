"""How commands write values: plain text, emphasis on a terminal, JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO


def bold(text: str, stream: TextIO | None = None) -> str:
    """Return a text in bold where ``stream`` (stdout) is a terminal that shows it."""
    return _emphasize(text, "1", stream)


def dim(text: str, stream: TextIO | None = None) -> str:
    """Return a text in the terminal's weaker colour, or as it is where there is none."""
    return _emphasize(text, "2", stream)


def print_json(value: Mapping[str, Any]) -> None:
    """Write a value to stdout as JSON, paths as text."""
    print(json.dumps(value, indent=2, default=_to_json))


def flatten(value: Any) -> str:
    """Return a value on one line."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {one}" for name, one in value.items())
    return "-" if value is None else str(value)


def gigabytes(size_bytes: int) -> str:
    """Return a size in GB of 10^9 bytes."""
    return f"{size_bytes / 1e9:.2f} GB"


def _emphasize(text: str, code: str, stream: TextIO | None) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if _shows_colours(stream or sys.stdout) else text


def _shows_colours(stream: TextIO) -> bool:
    """Whether escape codes are welcome: a terminal, not a dumb one, and nobody said NO_COLOR."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    if os.name == "nt" and "WT_SESSION" not in os.environ:  # an old console would show the codes
        return False
    return stream.isatty()


def _to_json(value: object) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")
