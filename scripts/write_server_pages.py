"""Write the generated parts of docs/server/: the field tables and the table of settings.

python scripts/write_server_pages.py
"""

from __future__ import annotations

import re
from pathlib import Path

from phi3ov.server.fields import describe_fields
from phi3ov.server.settings import describe_settings

PAGES = Path(__file__).parents[1] / "docs" / "server"


def main() -> None:
    """Replace the tables; what stands before them stays."""
    fields = PAGES / "fields.md"
    before = fields.read_text(encoding="utf-8").partition("### `POST ")[0]
    fields.write_text(before + "\n".join(describe_fields()).strip() + "\n", encoding="utf-8")
    index = PAGES / "index.md"
    rows = ["| setting | default | meaning |", "|---|---|---|"]
    rows += [f"| `{name}` | `{default}` | {text} |" for name, default, text in describe_settings()]
    table = re.compile(r"\| setting \| default \| meaning \|\n(?:\|.*\n)+")
    text = index.read_text(encoding="utf-8")
    index.write_text(table.sub(lambda _: "\n".join(rows) + "\n", text), encoding="utf-8")


if __name__ == "__main__":
    main()
