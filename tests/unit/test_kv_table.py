"""The table of coarse KV caches shows the figures that were measured."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_guide_shows_the_measured_figures() -> None:
    """Row by row and position by position, as ``benchmarks/kv_precision.py`` printed them."""
    results = REPOSITORY / "benchmarks" / "results" / "kv_precision.json"
    measured = json.loads(results.read_text(encoding="utf-8"))
    page = (REPOSITORY / "docs" / "guides" / "load.md").read_text(encoding="utf-8")
    table = page.partition("results/kv_precision.json -->\n")[2].partition("<!-- end of kv")[0]
    head, _, *rows = table.splitlines()
    assert [f"{low} to {high - 1}" for low, high in pairwise(measured["edges"])] == [
        cell.strip() for cell in head.strip("|").split("|")
    ][2:-1]
    expected = [
        f"| {name} | {row['bytes']} | "
        + " | ".join(f"{kl:.5f}" for kl in row["kl"])
        + f" | {row['same']:.3f} |"
        for name, row in measured["rows"].items()
    ]
    assert rows == expected
