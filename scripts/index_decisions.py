"""Write docs/decisions/index.md from the titles of the records."""

from __future__ import annotations

import re
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "decisions"
HEAD = """# Decisions

Each record says what was decided, when and why; negative results are included. A new record takes \
the next free number. A record that is overturned stays, and names the one that replaces it.

| | decision |
|--:|---|
"""


def row(record: Path) -> str:
    """Return the line of a record, whose first line is ``# NUMBER. TITLE``."""
    title, _, text = record.read_text(encoding="utf-8").partition("\n")
    found = re.fullmatch(r"# (\d+)\. (.+)", title)
    if found is None:
        raise SystemExit(f"{record.name}: the first line must be '# NUMBER. TITLE', not {title!r}")
    replaced = re.search(r"^Date: [\d-]+\. Replaced by \[decision (\d+)\]", text, re.MULTILINE)
    remark = f" (replaced by {replaced[1]})" if replaced else ""
    return f"| {found[1]} | [{found[2]}]({record.name}){remark} |\n"


if __name__ == "__main__":
    records = sorted(path for path in FOLDER.glob("*.md") if path.name != "index.md")
    (FOLDER / "index.md").write_text(HEAD + "".join(map(row, records)), encoding="utf-8")
