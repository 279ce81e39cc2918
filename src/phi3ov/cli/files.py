"""Reads and writes the text files of commands."""

from __future__ import annotations

import io
import sys
from pathlib import Path

from ..errors import OptionError


def read_text(path: Path) -> str:
    """Return the content of a UTF-8 file, or raise `OptionError`."""
    try:
        return path.read_text(encoding="utf-8-sig")  # Windows editors write a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"{path} cannot be read as UTF-8 text: {error}.") from error


def read_stdin() -> str:
    """Return all of stdin, or raise `OptionError`."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="strict")  # in some locales Python accepts any byte
    try:
        return sys.stdin.read().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise OptionError(
            f"stdin cannot be read as {sys.stdin.encoding} text: {error}. Convert the input, or "
            "set PYTHONIOENCODING to its encoding."
        ) from error


def check_writable(path: Path) -> None:
    """Raise `OptionError` if a file cannot be written; keeps an existing file unchanged."""
    try:
        is_new = not path.exists()
        path.open("ab").close()
        if is_new:
            path.unlink()
    except OSError as error:
        raise OptionError(f"{path} cannot be written: {error}.") from error


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file, or raise `OptionError`."""
    try:
        path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise OptionError(f"{path} cannot be written: {error}.") from error
