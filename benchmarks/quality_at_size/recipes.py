"""phi3ov's recipes that the benchmarks compare: one table for all of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from phi3ov import Int4Compression
from phi3ov.exporter.recipes import Compression

BASE = "default"
"""The recipe that speeds are relative to."""

_ADJUSTED = Int4Compression(on_indivisible="adjust")  # 128 does not divide the reference's 576

_ROWS = Int4Compression.npu(14_000_000_000)  # that of smaller models is `small` here

_SIZED = Int4Compression(group_size=64, symmetric=False, embeddings="int4", target_bits=5.0)
_TO_93, _TO_86 = (
    replace(_SIZED, target_bits=None, target_bytes=size) for size in (93_000_000, 86_000_000)
)
_CALIBRATED: dict[str, Any] = {"gptq": True, "num_samples": 32}

RECIPES: dict[str, Compression] = {
    "fp16": "fp16",
    "int8": "int8",
    BASE: _ADJUSTED,
    "default, by NNCF": replace(_ADJUSTED, layer_choice="nncf", rounding="nncf"),
    "default, calibrated": replace(_ADJUSTED, **_CALIBRATED),
    "asymmetric": replace(_ADJUSTED, symmetric=False),
    "accurate": Int4Compression.accurate(),
    "to 93 MB": _TO_93,
    "to 86 MB": _TO_86,
    "to 86 MB, calibrated": replace(_TO_86, **_CALIBRATED),
    "small": Int4Compression.small(),
    "small, calibrated": replace(Int4Compression.small(), **_CALIBRATED),
    "npu, rows": _ROWS,
    "npu, rows, calibrated": replace(_ROWS, **_CALIBRATED),
}
"""Recipes by the name of their row. To add one, add a line."""

WITHOUT_GRID = (BASE, "int8", "small")
"""Rows of ``RECIPES`` that ``run --dithered`` measures unless told otherwise."""
