"""A coarse KV cache: keys and values apart, and what OpenVINO does with each option."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import openvino
import pytest
from openvino import _offline_transformations

import phi3ov
from phi3ov import OptionError, RuntimeConfig
from phi3ov.engine.logits import divergence, log_probabilities
from phi3ov.engine.paged.model import BLOCK_TOKENS, PagedModel
from phi3ov.engine.protocol import EngineName
from phi3ov.runtime.rope import ContextChoice

from .checkpoints import BORDER, LONGEST
from .conftest import EXACT, LoadModel, Zoo
from .truth import greedy, prompt_text

ROW = "phi-4"
TOKENS = 256
COARSE = replace(EXACT, kv_cache_precision=None)


def predict(zoo: Zoo, **fields: Any) -> Any:
    """Return the log-probabilities after each token of a text, read block by block."""
    artifact = phi3ov.Artifact.open(zoo.artifact(ROW))
    context = ContextChoice(tokens=1024, factors="none")
    model = PagedModel(artifact, device="CPU", config=replace(COARSE, **fields), context=context)
    ids = [*prompt_text(TOKENS).encode()]
    model.reserve(TOKENS, keep=0)
    starts = range(0, TOKENS, BLOCK_TOKENS)
    return np.concatenate(
        [log_probabilities(model.read_all(ids[n : n + BLOCK_TOKENS], past=n)) for n in starts]
    )


def loss(zoo: Zoo, exact: Any, **fields: Any) -> float:
    """Return the mean divergence from the float32 cache."""
    return float(divergence(exact, predict(zoo, **fields)).mean())


def test_each_part_of_the_cache_has_a_precision_of_its_own(zoo: Zoo) -> None:
    """Four bits cost more than eight, and for keys more than for values."""
    exact = predict(zoo, kv_cache_precision="f32")
    both = {bits: loss(zoo, exact, kv_cache_precision=bits) for bits in ("u8", "u4")}
    values = loss(zoo, exact, key_cache_precision="u8", value_cache_precision="u4")
    keys = loss(zoo, exact, key_cache_precision="u4", value_cache_precision="u8")
    assert 0 < both["u8"] < values < keys < both["u4"]


def test_scales_and_groups_change_the_numbers(zoo: Zoo) -> None:
    """No option that phi3ov takes is ignored by OpenVINO."""
    fields: list[dict[str, Any]] = [
        {},
        {"key_cache_scales": "token"},
        {"key_cache_scales": "token", "key_cache_group_size": 16},
        {"value_cache_group_size": 16},
    ]
    found = [predict(zoo, kv_cache_precision="u8", **each) for each in fields]
    assert len({each.tobytes() for each in found}) == len(fields)
    by_channel = predict(zoo, kv_cache_precision="u8", key_cache_scales="channel")
    assert np.array_equal(by_channel, found[0])  # a CPU's default


def test_upstream_openvino_ignores_how_values_are_scaled(zoo: Zoo) -> None:
    """Why VALUE_CACHE_QUANT_MODE is refused, and a group of keys without scales by token."""
    artifact = phi3ov.Artifact.open(zoo.artifact(ROW))
    core = openvino.Core()
    shapes = set()
    for extra in ({}, {"VALUE_CACHE_QUANT_MODE": "BY_CHANNEL"}, {"KEY_CACHE_GROUP_SIZE": "16"}):
        model = core.read_model(artifact.path / "openvino_model.xml")
        _offline_transformations.paged_attention_transformation(model)
        properties = {"KEY_CACHE_PRECISION": "u8", "VALUE_CACHE_PRECISION": "u8"}
        compiled = core.compile_model(model, "CPU", properties | extra)
        shapes.add(
            tuple(
                str(port.get_partial_shape())
                for port in compiled.inputs
                if "_cache." in port.get_any_name()
            )
        )
    assert len(shapes) == 1


@pytest.mark.parametrize("engine", ["pipeline", "worker", "paged"])
def test_engines_answer_with_split_precisions(
    zoo: Zoo, load: LoadModel, engine: EngineName
) -> None:
    """The settings name both parts, and neither names the whole."""
    config = RuntimeConfig(
        inference_precision="f32", key_cache_precision="u8", value_cache_precision="u4"
    )
    model = load(zoo.artifact(ROW), engine=engine, config=config)
    assert len(model.complete(prompt_text(80), max_new_tokens=8).token_ids) == 8
    names = {setting.name: setting.value for setting in model.settings}
    assert (names["KEY_CACHE_PRECISION"], names["VALUE_CACHE_PRECISION"]) == ("u8", "u4")
    assert "KV_CACHE_PRECISION" not in names


def test_a_group_that_divides_no_head_is_refused(zoo: Zoo, load: LoadModel) -> None:
    """OpenVINO would fail at the first token."""
    config = RuntimeConfig(kv_cache_precision="u8", value_cache_group_size=24)
    with pytest.raises(OptionError, match="value_cache_group_size=24 does not divide"):
        load(zoo.artifact(ROW), config=config)


@pytest.mark.parametrize("row", ["phi-3-mini-128k"])
@pytest.mark.parametrize("engine", ["pipeline", "worker", "paged"])
def test_a_needle_is_found_over_the_border(
    row: str, engine: EngineName, zoo: Zoo, load: LoadModel
) -> None:
    """The answer depends on one letter, on either side of the original context's border.

    Two texts that differ in that letter alone get different answers, and each is the one of
    transformers with the long factors for all positions.
    """
    length = BORDER + 40
    model = load(zoo.artifact(row), engine=engine, context_tokens=LONGEST)
    for place in (2, BORDER - 1, BORDER + 1, length - 2):
        text = prompt_text(length, seed=place)
        needles = [text[:place] + letter + text[place + 1 :] for letter in "QZ"]
        encode = model.tokenizer.encode_raw
        truths = [greedy(zoo.checkpoint(row), encode(needle), 8, pin="long") for needle in needles]
        assert truths[0] != truths[1]
        found = [model.complete(needle, max_new_tokens=8).token_ids for needle in needles]
        assert found == truths, place
