"""A recipe is checked before the work, and its outcome after it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from phi3ov.artifact.ir import WeightLayer
from phi3ov.errors import CompressionError, OptionError
from phi3ov.exporter.checkpoint import Checkpoint
from phi3ov.exporter.int4 import Int4Compression
from phi3ov.exporter.recipes import Compression, read_recipe

from .fakes import make_config


def test_the_default_recipe() -> None:
    """Group 128, ratio 0.6, symmetric, and nothing adjusted in silence."""
    assert Int4Compression() == Int4Compression(
        group_size=128, ratio=0.6, symmetric=True, on_indivisible="error"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("group_size", value) for value in (0, 1, -2, 128.0, "128", True, None)),
        *(("ratio", value) for value in (0, -0.1, 1.01, "1", None, float("nan"), True)),
        *(("on_indivisible", value) for value in ("ignore", "", None)),
    ],
)
def test_bad_value_names_field_and_value(name: str, value: Any) -> None:
    """Each value out of its range is refused by name."""
    with pytest.raises(OptionError, match=f"^{name}={value!r}"):
        Int4Compression(**{name: value})


@pytest.mark.parametrize("values", [{"group_size": 2}, {"group_size": -1}, {"ratio": 1}])
def test_values_at_the_border_are_allowed(values: dict[str, Any]) -> None:
    """The borders belong to the ranges."""
    Int4Compression(**values)


@pytest.mark.parametrize(
    ("value", "way_out"),
    [
        ("INT8", "Pass 'int4' for the default"),
        (None, "Pass 'int4'"),
        (8, "Pass 'int4'"),
        ({"bits": 4}, "Pass 'int4'"),
        ([], "Pass 'int4'"),
        ("accurate", r"Pass Int4Compression\.accurate\(\)"),
    ],
)
def test_other_recipes_are_refused(value: Any, way_out: str) -> None:
    """No recipe is guessed from something like one, and the error says what to pass."""
    message = r"^compression=.* is not 'int4', 'int8', 'fp16' or an Int4Compression\. "
    with pytest.raises(OptionError, match=message + way_out):
        read_recipe(value)


def test_recipes_by_name_are_values_with_the_same_methods() -> None:
    """``"int4"`` is the default recipe, as ``--precision int4`` is."""
    assert read_recipe("int4") == Int4Compression()
    assert read_recipe(Int4Compression.small()) == Int4Compression.small()
    names: tuple[Literal["int4", "int8", "fp16"], ...] = ("int4", "int8", "fp16")
    for name in names:
        recipe = read_recipe(name)
        recipe.check(checkpoint(512))
        assert recipe.describe()["mode"] == name
        assert recipe == read_recipe(name)
    bits = [read_recipe(name).bits(checkpoint(512)) for name in names]
    assert bits == sorted(bits)


def test_lists_are_taken_where_strings_are_listed() -> None:
    """And kept as tuples, so that a recipe can be hashed and does not change with the list."""
    listed = ["model.layers.0.mlp.down_proj"]
    recipe = Int4Compression(ignored_layers=listed, awq=True, texts=["Text."])
    listed.append("lm_head")
    assert recipe == Int4Compression(
        ignored_layers=("model.layers.0.mlp.down_proj",), awq=True, texts=("Text.",)
    )
    assert hash(recipe) == hash(replace(recipe))
    assert Int4Compression.accurate(["Text."]).texts == ("Text.",)


def checkpoint(hidden: int, layers: int = 2) -> Checkpoint:
    """Return a checkpoint of some width."""
    config = make_config(
        hidden_size=hidden, intermediate_size=256, num_attention_heads=2, num_hidden_layers=layers
    )
    return Checkpoint(path=Path(), config=config, source="x")


def test_indivisible_layers_are_named() -> None:
    """All layers are kept in the error, the first four with their widths in its text."""
    with pytest.raises(CompressionError) as caught:
        Int4Compression().check(checkpoint(576))
    names = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj")
    assert caught.value.layers == tuple(
        f"model.layers.{index}.{name}" for index in range(2) for name in names
    )
    assert "model.layers.0.self_attn.qkv_proj (576)" in str(caught.value)
    assert "and 2 more" in str(caught.value)
    assert "a group size that does (group_size=64 does)" in str(caught.value)
    Int4Compression(group_size=64).check(checkpoint(576))
    with pytest.raises(CompressionError, match="none fits them all"):
        Int4Compression(group_size=100).check(checkpoint(576))
    with pytest.raises(CompressionError) as caught:
        Int4Compression().check(checkpoint(576, layers=1))
    assert "more" not in str(caught.value)


@pytest.mark.parametrize(
    ("hidden", "recipe"),
    [
        (512, Int4Compression()),
        (576, Int4Compression(group_size=64)),
        (576, Int4Compression(group_size=-1)),
        (576, Int4Compression(on_indivisible="adjust")),
    ],
)
def test_divisible_layers_pass(hidden: int, recipe: Int4Compression) -> None:
    """A group size that divides, a whole row and "adjust" are all right."""
    recipe.check(checkpoint(hidden))


def int4(index: int, **changes: Any) -> WeightLayer:
    """Return a layer as the default recipe makes it."""
    layer = WeightLayer(
        name=f"model.layers.{index}.mlp.down_proj.weight",
        precision="int4",
        group_size=128,
        symmetric=True,
        parameters=1000,
        size_bytes=520,
    )
    return replace(layer, **changes)


def int8(index: int, **changes: Any) -> WeightLayer:
    """Return a layer in the backup precision."""
    values = {"precision": "int8", "group_size": 0, "symmetric": False, "size_bytes": 1010}
    return int4(index, **{**values, **changes})


EMBEDDING = int8(99, name="model.embed_tokens.weight", parameters=10**6)
HEAD = int8(99, name="lm_head.weight", parameters=10**6)
DEFAULT = (EMBEDDING, *map(int4, range(6)), *map(int8, range(6, 10)), HEAD)


@pytest.mark.parametrize(
    ("layers", "recipe"),
    [
        (DEFAULT, Int4Compression()),
        ((EMBEDDING, *map(int4, range(10))), Int4Compression(ratio=1.0)),
        (
            (EMBEDDING, *(int4(one, group_size=0) for one in range(3))),
            Int4Compression(group_size=-1, ratio=1.0),
        ),
        ((int4(0, group_size=64), int4(1)), Int4Compression(ratio=1.0, on_indivisible="adjust")),
        ((int4(0, symmetric=False),), Int4Compression(ratio=1.0, symmetric=False)),
        ((EMBEDDING, int8(1)), "int8"),
        ((int8(1, precision="fp16"),), "fp16"),
    ],
)
def test_right_outcome_is_accepted(layers: tuple[WeightLayer, ...], recipe: Compression) -> None:
    """What NNCF makes of each recipe passes; embeddings and head do not count in the ratio."""
    read_recipe(recipe).verify(layers)


@pytest.mark.parametrize(
    ("layers", "recipe", "wrong"),
    [
        ((*DEFAULT, int8(20, precision="fp16")), Int4Compression(), 1),
        ((*DEFAULT, int8(20, precision="fp32")), Int4Compression(), 1),
        ((*DEFAULT[:-1], replace(HEAD, precision="bf16")), Int4Compression(), 1),
        ((*DEFAULT, int4(20, group_size=64)), Int4Compression(), 1),
        ((*DEFAULT, int4(20, group_size=256)), Int4Compression(on_indivisible="adjust"), 1),
        ((*DEFAULT, int4(20, symmetric=False)), Int4Compression(), 1),
        (DEFAULT, Int4Compression(symmetric=False), 6),
        (DEFAULT, Int4Compression(group_size=-1), 6),
        ((EMBEDDING, int8(0), HEAD), Int4Compression(), 0),
        ((), Int4Compression(), 0),
        ((int8(0), int4(1)), "int8", 1),
        ((int8(0, precision="fp16"), int8(1, precision="fp32")), "fp16", 1),
        ((), "int8", 0),
    ],
)
def test_wrong_outcome_is_refused(
    layers: tuple[WeightLayer, ...], recipe: Compression, wrong: int
) -> None:
    """A layer left uncompressed, another group size or symmetry, or nothing at all: named."""
    with pytest.raises(
        CompressionError, match=f"{wrong} of {len(layers)} layers are not"
    ) as caught:
        read_recipe(recipe).verify(layers)
    assert len(caught.value.layers) == wrong


@pytest.mark.parametrize("ratio", [0.1, 0.45, 0.75, 1.0])
def test_ratio_far_off_is_refused(ratio: float) -> None:
    """More than one layer beside the ratio asked for is another recipe."""
    with pytest.raises(CompressionError, match=f"60.0% .* where ratio={ratio} was asked"):
        Int4Compression(ratio=ratio).verify(DEFAULT)


@pytest.mark.parametrize("ratio", [0.51, 0.6, 0.69])
def test_ratio_within_one_layer_is_accepted(ratio: float) -> None:
    """Whole layers are compressed, so the share is right to one layer."""
    Int4Compression(ratio=ratio).verify(DEFAULT)


def test_a_model_that_is_larger_than_its_target_is_refused() -> None:
    """What is read back is counted, in bytes as in bits."""
    layers = [replace(layer, size_bytes=layer.parameters * 3 // 4) for layer in DEFAULT]
    size = sum(layer.size_bytes for layer in layers)
    bits = 8 * size / sum(layer.parameters for layer in layers)
    Int4Compression(target_bytes=size).verify(layers)
    Int4Compression(target_bits=bits).verify(layers)
    for recipe in (Int4Compression(target_bytes=size - 1), Int4Compression(target_bits=bits - 0.2)):
        with pytest.raises(CompressionError, match=f"have {size} bytes"):
            recipe.verify(layers)
