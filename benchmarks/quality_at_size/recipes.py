"""phi3ov's recipes that the benchmarks compare: one table for all of them."""

from __future__ import annotations

from dataclasses import replace

from phi3ov import Int4Compression
from phi3ov.exporter.recipes import Compression

BASE = "default"
"""The recipe that speeds are relative to."""

_ADJUSTED = Int4Compression(on_indivisible="adjust")  # 128 does not divide the reference's 576

_ROWS = Int4Compression.npu(14_000_000_000)  # that of smaller models is `small` here

RECIPES: dict[str, Compression] = {
    "fp16": "fp16",
    "int8": "int8",
    BASE: _ADJUSTED,
    "asymmetric": replace(_ADJUSTED, symmetric=False),
    "accurate": Int4Compression.accurate(),
    "small": replace(Int4Compression.small(), on_indivisible="adjust"),
    "small, calibrated": replace(
        Int4Compression.small(), on_indivisible="adjust", awq=True, scale_estimation=True
    ),
    "npu, rows": _ROWS,
    "npu, rows, calibrated": replace(_ROWS, awq=True, scale_estimation=True),
}
"""Recipes by the name of their row. To add one, add a line."""

WITHOUT_GRID = (BASE, "int8", "small")
"""Rows of ``RECIPES`` that ``run --dithered`` measures unless told otherwise."""
