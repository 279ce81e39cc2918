"""Texts that commands read and write."""

from __future__ import annotations

from pathlib import Path

from ..errors import OptionError


def read_text(path: Path) -> str:
    """Return what a UTF-8 file holds, or raise `OptionError`."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"{path} cannot be read as UTF-8 text: {error}.") from error


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file, or raise `OptionError`."""
    try:
        path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise OptionError(f"{path} cannot be written: {error}.") from error
