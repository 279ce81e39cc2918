"""Hook of mkdocs: fills the API page with the public names."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MARK = "<!-- public names -->"

ORDER = [
    "exporter.export",
    "exporter.recipes",
    "exporter.progress",
    "artifact.folder",
    "artifact.publish",
    "loading",
    "model",
    "chat",
    "prompt.messages",
    "prompt.dictionaries",
    "answer.options",
    "answer.reply",
    "answer.stream",
    "prompt.tools",
    "batch.runner",
    "runtime.config",
    "runtime.settings",
    "runtime.limits",
    "runtime.devices",
    "runtime.speculation",
    "runtime.lora",
]
"""Modules in the order in which a newcomer meets them; the rest follows, errors come last."""


def list_public_names() -> str:
    """Return a section per module with public names, and a directive per name."""
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
    """Replace `MARK` by the public names; mkdocs calls this for every page."""
    return markdown.replace(MARK, list_public_names()) if MARK in markdown else markdown
