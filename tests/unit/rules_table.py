"""The table of the rules for settings, as the guide "Load" shows it.

`python -m tests.unit.rules_table` writes it into the guide; a test compares.
"""

from __future__ import annotations

from pathlib import Path

from phi3ov.runtime.settings import RULES

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "load.md"
_START = "<!-- rules: written by `python -m tests.unit.rules_table` -->\n"
_END = "<!-- end of rules -->"


def rules_table() -> str:
    """Return the rules as a Markdown table."""
    lines = [
        "| processor | weights | precision | activation groups | measured |",
        "|---|---|---|---|---|",
    ]
    for rule in RULES:
        group = f"up to {rule.largest_group}" if rule.largest_group else "OpenVINO's own"
        precision = rule.inference_precision or "OpenVINO's own"
        lines.append(f"| {rule.name} | {rule.weights} | {precision} | {group} | {rule.measured} |")
    return "\n".join(lines) + "\n"


def with_table(page: str) -> str:
    """Return the guide with the table as it is now."""
    before, rest = page.split(_START)
    return f"{before}{_START}{rules_table()}{_END}{rest.split(_END)[1]}"


if __name__ == "__main__":
    GUIDE.write_text(with_table(GUIDE.read_text(encoding="utf-8")), encoding="utf-8")
