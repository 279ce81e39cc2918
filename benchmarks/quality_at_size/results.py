"""The results file: one entry per row, kept from run to run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from phi3ov.atomic_file import replace_file

from .recipes import BASE
from .texts import TEXTS, Windows


class OtherTextError(RuntimeError):
    """The rows in the file were measured on other tokens than the ones at hand."""


class Results:
    """The file's content. Every change is written at once, so a run may be stopped anywhere."""

    def __init__(self, file: Path) -> None:
        """Read the file, if it exists."""
        self._file = file
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        self.texts: dict[str, Any] = content.get("texts", {})
        self.versions: dict[str, str] = content.get("versions", {})
        self.rows: dict[str, Any] = content.get("rows", {})

    def use(self, windows: Windows) -> None:
        """Record a text, or check that the rows were measured on the same one.

        Raises:
            OtherTextError: They were not; rows on different texts cannot be compared.
        """
        record: dict[str, Any] = {
            "title": TEXTS[windows.name].title,
            "sha256": windows.sha256,
            "windows": len(windows.ids),
            "window_tokens": len(windows.ids[0]),
            "predictions": windows.predictions,
        }
        known = self.texts.setdefault(windows.name, record)
        if known["sha256"] != record["sha256"]:
            raise OtherTextError(
                f"{self._file} was measured on another text {windows.name!r}: sha256 "
                f"{known['sha256'][:12]}, here {record['sha256'][:12]}. Python's texts differ "
                "between its versions. Use the same Python and window size, or another --json."
            )

    def is_current(self, name: str, settings: dict[str, Any]) -> bool:
        """Whether there is an entry that was made with these settings, on every text."""
        entry = self.rows.get(name)
        return (
            entry is not None
            and entry["settings"] == settings
            and set(entry["texts"]) >= set(self.texts)
        )

    def keep(self, name: str, entry: dict[str, Any]) -> None:
        """Keep a row's entry; a new base makes every speed relative to an old one, so drop them."""
        self.rows[name] = entry
        if name == BASE:
            for other in self.rows.values():
                other.pop("speed", None)
        self.write()

    def write(self) -> None:
        """Overwrite the file atomically."""
        content = {"texts": self.texts, "versions": self.versions, "rows": self.rows}
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(self._file) as stream:
            stream.write(f"{json.dumps(content, indent=1)}\n".encode())
