"""What an IR really holds is read from its XML."""

from __future__ import annotations

from pathlib import Path

import pytest

from phi3ov.artifact.ir import (
    WeightLayer,
    WeightSummary,
    bits_per_weight,
    is_router,
    read_weights,
    summarize,
)

DOWN = "model.layers.0.mlp.down_proj.weight"
QKV = "model.layers.0.self_attn.qkv_proj.weight"


def constant(name: str, element_type: str, shape: str, size: int) -> str:
    """Write one constant as openvino does."""
    return (
        f'<layer id="1" name="{name}" type="Const" version="opset1"><data element_type='
        f'"{element_type}" shape="{shape}" offset="0" size="{size}"/><output><port id="0"/>'
        "</output></layer>"
    )


def read(tmp_path: Path, *layers: str) -> tuple[WeightLayer, ...]:
    """Read an IR of ``layers`` among others that are no constants."""
    other = '<layer id="0" name="input_ids" type="Parameter"><data shape="?,?"/></layer>'
    file = tmp_path / "openvino_model.xml"
    file.write_text(f"<net><layers>{other}{''.join(layers)}</layers></net>", encoding="utf-8")
    return read_weights(file)


def test_grouped_symmetric_int4(tmp_path: Path) -> None:
    """A matrix with a scale per group: [rows, groups, group size], no zero points."""
    found = read(
        tmp_path,
        constant(f"self.{DOWN}", "i4", "64, 2, 128", 8192),
        constant(f"self.{DOWN}/scale", "f16", "64, 2, 1", 256),
    )
    assert found == (
        WeightLayer(
            name=DOWN,
            precision="int4",
            group_size=128,
            symmetric=True,
            parameters=16384,
            size_bytes=8448,
        ),
    )


def test_grouped_asymmetric_int4(tmp_path: Path) -> None:
    """Zero points make it asymmetric, and count among its bytes."""
    found = read(
        tmp_path,
        constant(f"self.{DOWN}", "u4", "64, 4, 64", 8192),
        constant(f"self.{DOWN}/zero_point", "u4", "64, 4, 1", 128),
        constant(f"self.{DOWN}/scale", "f16", "64, 4, 1", 512),
    )
    (layer,) = found
    assert (layer.precision, layer.group_size, layer.symmetric) == ("int4", 64, False)
    assert layer.size_bytes == 8192 + 128 + 512


def test_int8_per_row(tmp_path: Path) -> None:
    """One scale per row: two dimensions, group size 0."""
    (layer,) = read(
        tmp_path,
        constant(f"self.{QKV}", "u8", "64, 256", 16384),
        constant(f"self.{QKV}/zero_point", "u8", "64, 1", 64),
        constant(f"self.{QKV}/scale", "f16", "64, 1", 128),
    )
    assert (layer.precision, layer.group_size, layer.symmetric) == ("int8", 0, False)
    assert (layer.parameters, layer.size_bytes) == (16384, 16384 + 64 + 128)


EXPERTS = "model.layers.0.mlp.experts.up_proj.weight"


@pytest.mark.parametrize(
    ("element_type", "shape", "scale", "group_size"),
    [("i4", "16, 64, 2, 128", "16, 64, 2, 1", 128), ("i8", "16, 64, 256", "16, 64, 1", 0)],
)
def test_stacked_experts_have_a_dimension_more(
    tmp_path: Path, element_type: str, shape: str, scale: str, group_size: int
) -> None:
    """Three dimensions are one scale per row there, and four are groups."""
    (layer,) = read(
        tmp_path,
        constant(f"self.{EXPERTS}", element_type, shape, 131072),
        constant(f"self.{EXPERTS}/scale", "f16", scale, 4096),
    )
    assert (layer.name, layer.group_size, layer.symmetric) == (EXPERTS, group_size, True)
    assert (layer.parameters, layer.size_bytes) == (16 * 64 * 256, 131072 + 4096)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("self.model.layers.0.mlp.experts.down_proj", "down_proj"),
        ("__module.model.layers.0.mlp.experts/prim::ListUnpack/VariadicSplit.0", "gate_proj"),
        ("__module.model.layers.0.mlp.experts/prim::ListUnpack/VariadicSplit.1", "up_proj"),
    ],
)
def test_experts_of_optimums_own_exports_are_found(tmp_path: Path, name: str, part: str) -> None:
    """They have names of operations there, and count among the weights all the same."""
    (layer,) = read(
        tmp_path,
        constant(name, "u4", "16, 64, 2, 128", 131072),
        constant(f"{name}/zero_point", "u4", "16, 64, 2, 1", 1024),
        constant(f"{name}/scale", "f16", "16, 64, 2, 1", 4096),
    )
    assert layer.name == f"model.layers.0.mlp.experts.{part}.weight"
    assert (layer.group_size, layer.symmetric) == (128, False)


@pytest.mark.parametrize(
    ("element_type", "precision"), [("f16", "fp16"), ("bf16", "bf16"), ("f32", "fp32")]
)
@pytest.mark.parametrize("suffix", [".weight", "._openvino_orig_weight"])
def test_floating_point_weights_by_both_names(
    tmp_path: Path, element_type: str, precision: str, suffix: str
) -> None:
    """Uncompressed matrices are found under either of openvino's names."""
    name = f"self.{DOWN.removesuffix('.weight')}{suffix}"
    (layer,) = read(tmp_path, constant(name, element_type, "64, 256", 32768))
    assert (layer.name, layer.precision, layer.group_size) == (DOWN, precision, 0)
    assert layer.symmetric


@pytest.mark.parametrize(
    "other",
    [
        constant("self.model.norm.weight", "f32", "1, 1, 256", 1024),
        constant("self.model.norm.weight", "f32", "256", 1024),
        constant("Constant_12", "i64", "2, 3", 48),
        constant("__module.model.rotary_emb/Constant", "f32", "1, 48, 2", 384),
        constant("self.position.weight", "i64", "2, 3", 48),
        constant("self.scalar.weight", "f32", "", 4),
    ],
)
def test_other_constants_are_no_weights(tmp_path: Path, other: str) -> None:
    """Norms, helper constants and integers are not counted."""
    assert read(tmp_path, other) == ()


def test_a_router_is_known_by_any_of_its_names() -> None:
    """The expert's own matrices are not routers."""
    for name in ("model.layers.7.mlp.router", "self.model.layers.7.mlp.router.weight"):
        assert is_router(name)
    assert not is_router(EXPERTS)


def layer_of(parameters: int, size_bytes: int, *, group_size: int = 128) -> WeightLayer:
    """Return a symmetric int4 layer."""
    return WeightLayer(
        name=DOWN,
        precision="int4",
        group_size=group_size,
        symmetric=True,
        parameters=parameters,
        size_bytes=size_bytes,
    )


def test_summary_counts_by_kind_the_largest_first() -> None:
    """Layers of one kind are added up; kinds are ordered by parameters."""
    layers = [layer_of(10, 5, group_size=64), layer_of(100, 52), layer_of(50, 26)]
    assert summarize(layers) == (
        WeightSummary(
            precision="int4",
            group_size=128,
            symmetric=True,
            layers=2,
            parameters=150,
            size_bytes=78,
        ),
        WeightSummary(
            precision="int4", group_size=64, symmetric=True, layers=1, parameters=10, size_bytes=5
        ),
    )


def test_bits_per_weight_counts_everything() -> None:
    """Bits of values, scales and zero points over all parameters; a generator will do."""
    layers = [layer_of(1000, 520), layer_of(1000, 1000, group_size=0)]
    assert bits_per_weight(one for one in summarize(layers)) == pytest.approx(8 * 1520 / 2000)
