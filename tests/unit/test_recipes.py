"""Recipes are values: each contradiction is refused by name, and the record says everything."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from phi3ov.artifact.ir import WeightLayer
from phi3ov.errors import CompressionError, OptionError
from phi3ov.exporter.calibration import cut_samples, default_texts, evaluation_text, hash_texts
from phi3ov.exporter.checkpoint import Checkpoint
from phi3ov.exporter.int4 import Int4Compression
from phi3ov.exporter.recipes import Compression, read_recipe
from phi3ov.prompt.chat_tokenizer import ChatTokenizer
from phi3ov.prompt.formats import FORMATS

from .fakes import make_config

PRESETS = (Int4Compression.accurate(), Int4Compression.small(), Int4Compression.npu())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        *(({name: value}, f"{name}={value!r}")
          for name in ("symmetric", "awq", "scale_estimation", "gptq") for value in (1, None)),
        *(({"backup": value}, f"backup={value!r}") for value in ("int4", "", None, "NONE")),
        *(({"target_bytes": value}, f"target_bytes={value!r}") for value in (0, -1, 1.5, True)),
        *(({"target_bits": value}, f"target_bits={value!r}") for value in (4, 16, "5", True)),
        *(({name: value}, f"{name}={value!r}") for name, value in (
            ("embeddings", "int8"), ("layer_choice", "best"), ("rounding", None),
            ("awq", "free"))),
        *(({"awq": True, name: value}, f"{name}={value!r}")
          for name in ("num_samples", "sample_tokens") for value in (0, -1, 1.5, True, None)),
        ({"ignored_layers": "model.layers.0.mlp.down_proj"}, "ignored_layers='model"),
        ({"ignored_layers": ["x", 5]}, "ignored_layers=\\['x', 5\\] must be a list or tuple"),
        ({"ignored_layers": {"x"}}, "ignored_layers={'x'} must be a list or tuple"),
        ({"ignored_layers": ("",)}, "ignored_layers=\\(''"),
        ({"awq": True, "texts": "one text"}, "texts='one text'"),
        ({"awq": True, "texts": ("",)}, "texts=\\(''"),
        ({"awq": True, "texts": ()}, "texts=\\(\\) is empty"),
    ],
)  # fmt: skip
def test_bad_value_names_field_and_value(values: dict[str, Any], message: str) -> None:
    """Each value out of its range is refused, and says which and what."""
    with pytest.raises(OptionError, match=f"^{message}"):
        Int4Compression(**values)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"texts": ("Some text.",), "layer_choice": "nncf"}, ("texts=", "awq")),
        ({"target_bits": 5.0, "target_bytes": 10}, ("target_bits=5.0", "target_bytes=10")),
        ({"target_bits": 5.0, "ratio": 0.7}, ("ratio=0.7", "target_bits=5.0")),
        ({"target_bytes": 10, "layer_choice": "nncf"}, ("target_bytes=10", "layer_choice=")),
        ({"target_bits": 5.0, "layer_choice": "nncf"}, ("target_bits=5.0", "layer_choice=")),
        ({"embeddings": "int4", "layer_choice": "nncf"}, ("embeddings='int4'", "layer_choice=")),
        ({"gptq": True, "awq": True}, ("gptq=True", "awq=True")),
        ({"gptq": True, "scale_estimation": True}, ("gptq=True", "scale_estimation=True")),
        ({"gptq": True, "layer_choice": "nncf"}, ("gptq=True", "rounding='nncf'")),
        ({"num_samples": 64}, ("num_samples=64", "awq")),
        ({"sample_tokens": 64}, ("sample_tokens=64", "awq")),
        ({"group_size": -1, "on_indivisible": "adjust"}, ("group_size=-1", "'adjust'")),
    ],
)
def test_contradictions_name_both_sides(values: dict[str, Any], named: tuple[str, str]) -> None:
    """An option that would be accepted and ignored is refused instead."""
    with pytest.raises(OptionError) as caught:
        Int4Compression(**values)
    assert all(one in str(caught.value) for one in named)


def test_a_preset_is_an_ordinary_value_that_can_be_changed() -> None:
    """Presets differ from the default where their names say, and `replace` checks again."""
    accurate, small, npu = PRESETS
    assert accurate.data_aware
    assert not small.data_aware
    assert (npu.symmetric, npu.ratio, npu.group_size) == (True, 1.0, 128)
    rows = Int4Compression.npu(14_000_000_000)
    assert (rows.symmetric, rows.ratio, rows.group_size) == (True, 1.0, -1)
    with pytest.raises(OptionError, match="parameters=0"):
        Int4Compression.npu(0)
    assert (small.target_bits, small.embeddings) == (4.5, "int4")
    assert Int4Compression.accurate(("Text.",)).texts == ("Text.",)
    with pytest.raises(OptionError, match="contradicts"):
        replace(rows, on_indivisible="adjust")


def test_accurate_fits_every_width_of_the_family_and_of_the_reference() -> None:
    """Its group size divides 576, 3072, 5120, 8192 and 17920."""
    for hidden, intermediate in ((576, 1536), (3072, 8192), (5120, 17920)):
        Int4Compression.accurate().check(checkpoint(hidden, intermediate))


@pytest.mark.parametrize("recipe", [Int4Compression(), *PRESETS])
def test_the_record_is_json_and_holds_every_field_but_text(recipe: Int4Compression) -> None:
    """Two recipes that differ have records that differ."""
    record = json.loads(json.dumps(recipe.describe()))
    assert record["mode"] == "int4"
    for name in ("group_size", "ratio", "symmetric", "on_indivisible", "backup", "awq", "gptq"):
        assert record[name] == getattr(recipe, name)
    assert ("calibration" in record) == recipe.data_aware
    assert len(json.dumps(record)) < 1000


def test_the_record_tells_texts_apart_without_holding_them() -> None:
    """Count and SHA-256 of the texts, where one ends included, stand for the texts."""
    text = "A secret."
    record = Int4Compression.accurate((text,)).describe([[1], [2]])
    assert record["calibration"] == {
        "origin": "given",
        "texts": 1,
        "sha256": hash_texts((text,)),
        "samples": 2,
    }
    assert text not in json.dumps(record)
    assert text not in repr(Int4Compression.accurate((text,)))
    assert hash_texts(("ab", "c")) != hash_texts(("a", "bc")) != hash_texts(("abc",))


def checkpoint(hidden: int = 512, intermediate: int = 256, **changes: Any) -> Checkpoint:
    """Return a checkpoint of two layers."""
    values = {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "max_position_embeddings": 64,
    }
    return Checkpoint(path=Path(), config=make_config(**values | changes), source="x")


@pytest.mark.parametrize(
    "pattern",
    [
        "model.layers.0.mlp.down_proj",
        "model.layers.0.mlp.down_proj.weight",
        "*.o_proj",
        "lm_head",
        "model.embed_tokens",
    ],
)
def test_layers_that_exist_can_be_ignored(pattern: str) -> None:
    """By name, with or without ".weight", or by a shell pattern."""
    Int4Compression(ignored_layers=(pattern,)).check(checkpoint())


@pytest.mark.parametrize(
    ("patterns", "config", "named"),
    [
        (("model.layers.2.mlp.down_proj",), {}, "model.layers.2.mlp.down_proj"),
        (("*.o_proj", "*.q_proj"), {}, r"\*.q_proj"),
        (("down_proj",), {}, "down_proj"),
        (("lm_head",), {"tie_word_embeddings": True}, "lm_head"),
        (("model.layers.*",), {}, "leaves no layer"),
    ],
)
def test_ignoring_nothing_or_everything_is_refused(
    patterns: tuple[str, ...], config: dict[str, Any], named: str
) -> None:
    """A misspelt layer is not ignored in silence."""
    with pytest.raises(CompressionError, match=named):
        Int4Compression(ignored_layers=patterns).check(checkpoint(**config))


def test_ignored_layers_need_not_divide() -> None:
    """The group size is for the layers that are compressed."""
    recipe = Int4Compression(ignored_layers=("*.qkv_proj", "*.o_proj", "*.gate_up_proj"))
    recipe.check(checkpoint(576))


def layer(name: str, precision: str = "int4", **changes: Any) -> WeightLayer:
    """Return a layer as an IR might hold it."""
    values: dict[str, Any] = {
        "name": f"{name}.weight",
        "precision": precision,
        "group_size": 128 if precision == "int4" else 0,
        "symmetric": precision == "int4",
        "parameters": 1000,
        "size_bytes": 520,
    }
    return WeightLayer(**(values | changes))


@pytest.mark.parametrize(
    ("rest", "recipe", "accepted"),
    [
        (layer("b", "int8"), Int4Compression(ratio=0.5), True),
        (layer("b", "int8", symmetric=True), Int4Compression(ratio=0.5), False),
        (layer("b", "int8"), Int4Compression(ratio=0.5, backup="int8_sym"), False),
        (layer("b", "int8", symmetric=True), Int4Compression(ratio=0.5, backup="int8_sym"), True),
        (layer("b", "fp16"), Int4Compression(ratio=0.5, backup="none"), True),
        (layer("b", "bf16"), Int4Compression(ratio=0.5, backup="none"), True),
        (layer("b", "int8"), Int4Compression(ratio=0.5, backup="none"), False),
        (layer("b", "fp16"), Int4Compression(ratio=1.0, ignored_layers=("b",)), True),
        (layer("b", "int8"), Int4Compression(ratio=1.0, ignored_layers=("b",)), False),
        (layer("b", "int4"), Int4Compression(ratio=1.0, ignored_layers=("b",)), False),
        (layer("lm_head", "fp16"), Int4Compression(ratio=1.0), False),
        (layer("lm_head", "fp16"), Int4Compression(ratio=1.0, backup="none"), True),
    ],
)
def test_the_rest_must_be_in_the_precision_asked_for(
    rest: WeightLayer, recipe: Int4Compression, accepted: bool
) -> None:
    """Backup layers in the backup precision, ignored ones untouched, nothing else let through."""
    layers = (layer("a"), rest)
    if accepted:
        read_recipe(recipe).verify(layers)
        return
    with pytest.raises(CompressionError) as caught:
        read_recipe(recipe).verify(layers)
    assert caught.value.layers == (rest.name,)


ROUTER = "model.layers.0.mlp.router"


@pytest.mark.parametrize(
    ("compression", "compressed"),
    [
        (Int4Compression(ratio=1.0), layer("a")),
        ("int8", layer("a", "int8")),
        ("fp16", layer("a", "fp16")),
    ],
    ids=str,
)
def test_a_router_stays_as_it_is(compression: Compression, compressed: WeightLayer) -> None:
    """Every recipe refuses an export whose router was rounded, and accepts one in float."""
    recipe = read_recipe(compression)
    recipe.verify((compressed, layer(ROUTER, "fp32")))
    for precision in ("int8", "int4"):
        with pytest.raises(CompressionError) as caught:
            recipe.verify((compressed, layer(ROUTER, precision)))
        assert caught.value.layers == (f"{ROUTER}.weight",)


@pytest.fixture(scope="module")
def bytes_tokenizer() -> ChatTokenizer:
    """One token per byte, and Phi-3's control tokens."""
    alphabet = {one: index for index, one in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
    )
    return ChatTokenizer(tokenizer.to_str(), next(one for one in FORMATS if one.name == "phi3"))


def test_samples_are_whole_runs_spread_evenly(bytes_tokenizer: ChatTokenizer) -> None:
    """Each is a run of the text, none overlaps, and the first and last quarter are both seen."""
    text = "".join(chr(ord("a") + index % 26) for index in range(1000))
    samples = cut_samples(bytes_tokenizer, [text], num_samples=4, sample_tokens=10)
    assert [bytes_tokenizer.decode(one) for one in samples] == [
        text[at : at + 10] for at in (0, 250, 500, 750)
    ]
    every = cut_samples(bytes_tokenizer, [text], num_samples=1000, sample_tokens=10)
    assert bytes_tokenizer.decode([token for one in every for token in one]) == text


def test_control_tokens_in_calibration_text_stay_text(bytes_tokenizer: ChatTokenizer) -> None:
    """Calibration text is text like a user's."""
    (sample,) = cut_samples(bytes_tokenizer, ["<|end|>"], num_samples=1, sample_tokens=7)
    assert not set(sample) & set(bytes_tokenizer.control_tokens)


def test_text_too_short_for_a_sample_is_refused(bytes_tokenizer: ChatTokenizer) -> None:
    """Before any work, with both numbers."""
    recipe = Int4Compression(awq=True, texts=("short",), sample_tokens=6)
    with pytest.raises(CompressionError, match=r"5 tokens, less than .* sample_tokens=6"):
        draw_samples(recipe, bytes_tokenizer)
    with pytest.raises(CompressionError, match=r"sample_tokens=65 exceeds .* 64"):
        draw_samples(replace(recipe, sample_tokens=65), bytes_tokenizer)
    assert Int4Compression().calibration is None
    assert read_recipe("int8").calibration is None


def draw_samples(recipe: Int4Compression, tokenizer: ChatTokenizer) -> list[list[int]]:
    """Return what a data-aware recipe would run a model with a context of 64 tokens on."""
    assert recipe.calibration is not None
    return recipe.calibration.draw_samples(tokenizer, context_tokens=64)


def test_nothing_is_measured_on_the_text_that_it_was_fitted_to() -> None:
    """The default texts for calibration and for measuring share no paragraph."""
    measured = evaluation_text().split("\n\n")
    fitted = {one for text in default_texts() for one in text.split("\n\n")}
    assert not fitted & set(measured)
    assert len(measured) == len(set(measured))
    assert sum(map(len, measured)) > 100_000
    assert sum(map(len, default_texts())) > 100_000
