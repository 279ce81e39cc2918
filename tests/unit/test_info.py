"""The picture that `phi3ov info` draws of a model's layers."""

from __future__ import annotations

from typing import cast

from phi3ov.artifact.ir import Precision, WeightLayer
from phi3ov.cli.info import draw_layers


def _layer(name: str, precision: Precision) -> WeightLayer:
    return WeightLayer(
        name=name, precision=precision, group_size=0, symmetric=True, parameters=1, size_bytes=1
    )


LAYERS = (
    _layer("model.layers.10.mlp.down_proj.weight", "int8"),
    _layer("model.layers.0.mlp.down_proj.weight", "int4"),
    _layer("model.layers.9.mlp.down_proj.weight", "int4"),
    _layer("model.layers.0.self_attn.qkv_proj.weight", "fp16"),
    _layer("model.embed_tokens.weight", "int8"),
)


def test_each_kind_of_weight_has_a_row_with_a_mark_per_block() -> None:
    """In the order of the blocks' numbers, not of their names; what is no block comes first."""
    rows = [line.split() for line in draw_layers(LAYERS, "ascii").splitlines()]
    assert rows[:3] == [["embed_tokens", "8"], ["down_proj", "448"], ["qkv_proj", "f"]]
    assert rows[3] == ["4", "int4,", "8", "int8,", "f", "fp16"]


def test_a_terminal_that_has_bars_gets_bars() -> None:
    """Others, such as an old Windows console, get letters."""
    assert "▂▂▄" in draw_layers(LAYERS, "utf-8")
    for encoding in ("cp1252", "no-such-encoding"):
        assert "448" in draw_layers(LAYERS, encoding)


def test_experts_have_a_row_for_each_of_their_matrices() -> None:
    """They are stacked, so a block has a mark in each."""
    parts = {"router": "fp32", "experts.gate_proj": "int4", "experts.up_proj": "int8"}
    layers = [
        _layer(f"model.layers.{index}.mlp.{part}.weight", precision)
        for index in range(2)
        for part, precision in cast("dict[str, Precision]", parts).items()
    ]
    rows = [line.split() for line in draw_layers(layers, "ascii").splitlines()]
    assert rows[:3] == [["gate_proj", "44"], ["router", "FF"], ["up_proj", "88"]]
