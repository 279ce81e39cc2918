"""Print the section of CHANGELOG.md for a tag, and refuse a tag that is not this version.

    python scripts/release_notes.py v0.2.0

The release workflow runs it before anything is built, with the standard library alone.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def release_notes(tag: str, *, version: str, changelog: str) -> str:
    """Return the section of ``changelog`` for ``tag``.

    Args:
        tag: Such as ``v0.2.0``.
        version: The version in pyproject.toml.
        changelog: Text in the form of Keep a Changelog.

    Raises:
        ValueError: The tag is not the version; or there is no section for it, or it has no date
            or no text.
    """
    if tag != f"v{version}":
        raise ValueError(f"The tag is {tag}, and pyproject.toml has version {version}.")
    heading = re.escape(f"## [{version}]") + r" - \d{4}-\d\d-\d\d\n"
    found = re.search(heading + r"(.*?)(?=^## \[|\Z)", changelog, re.DOTALL | re.MULTILINE)
    if found is None:
        raise ValueError(f"CHANGELOG.md has no heading '## [{version}] - YYYY-MM-DD'.")
    text = found[1].strip()
    if not text:
        raise ValueError(f"The section of {version} in CHANGELOG.md is empty.")
    return text


def main(tag: str) -> str:
    """Return the notes for a tag of this repository."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    return release_notes(tag, version=project["version"], changelog=changelog)


if __name__ == "__main__":
    try:
        print(main(sys.argv[1]))
    except ValueError as error:
        raise SystemExit(str(error)) from error
