"""What ``make docs`` does beside mkdocs: the API page lists the public names by itself."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MARK = "<!-- public names -->"

ORDER = [
    "exporter",
    "compression",
    "progress",
    "artifact",
    "hub",
    "model",
    "runtime",
    "limits",
    "chat",
    "chat_format",
    "generation",
    "stream",
    "batch",
    "tools",
]
"""Modules in the order in which a newcomer meets them; others follow, errors come last."""


def list_public_names() -> str:
    """Return a section for each module with public names, one directive a name."""
    sys.path.insert(0, str(ROOT / "src"))
    import phi3ov

    modules = phi3ov._MODULES
    others = [name for name in modules if name not in (*ORDER, "errors")]
    lines = []
    for module in (*ORDER, *others, "errors"):
        if module in modules:
            lines += [f"## `phi3ov.{module}`", ""]
            lines += [f"::: phi3ov.{module}.{name}" for name in sorted(modules[module])]
            lines.append("")
    return "\n".join(lines)


def on_page_markdown(markdown: str, **_context: Any) -> str:
    """Put the public names where a page asks for them (called by mkdocs for every page)."""
    return markdown.replace(MARK, list_public_names()) if MARK in markdown else markdown
