"""A model's dimensions come from config.json once, and agree with transformers' own model."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from phi3ov.errors import UnsupportedModelError
from phi3ov.family import Phi3Config

from .fakes import SMALL_CONFIG, make_config

LONGROPE = {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}


def test_what_config_json_leaves_out_is_derived() -> None:
    """Heads of keys and values, head size and vocabulary have the architecture's defaults."""
    config = make_config()
    assert (config.num_key_value_heads, config.head_dim, config.vocab_size) == (4, 16, 32064)
    assert (config.sliding_window, config.tie_word_embeddings) == (None, False)
    assert config == make_config(num_key_value_heads=None, head_dim=None, sliding_window=None)


@pytest.mark.parametrize("name", ["num_key_value_heads", "head_dim", "sliding_window"])
@pytest.mark.parametrize("value", [0, -1, "4", 1.5, True])
def test_an_optional_number_must_be_one(name: str, value: Any) -> None:
    """A field that may be missing is not thereby free to hold anything."""
    with pytest.raises(UnsupportedModelError, match=f"{name}={value!r} must be a positive"):
        make_config(**{name: value})


@pytest.mark.parametrize("value", [-1, "4", 1.5, True])
def test_a_longrope_border_must_be_a_number(value: Any) -> None:
    """It decides which factors are in force, so a wrong one would answer garbage."""
    with pytest.raises(UnsupportedModelError, match="original_max_position_embeddings"):
        make_config(rope_scaling=LONGROPE, original_max_position_embeddings=value)


def test_linear_shapes_are_outputs_and_inputs() -> None:
    """Every linear layer of every block, by name; head_dim counts where it is given."""
    shapes = make_config(num_key_value_heads=2).linear_shapes()
    assert len(shapes) == 8
    assert shapes["model.layers.1.mlp.down_proj"] == (64, 128)
    assert shapes["model.layers.0.self_attn.o_proj"] == (64, 64)
    assert shapes["model.layers.0.self_attn.qkv_proj"] == (128, 64)
    assert shapes["model.layers.0.mlp.gate_up_proj"] == (256, 64)
    wide = make_config(head_dim=32).linear_shapes()
    assert wide["model.layers.0.self_attn.o_proj"] == (64, 128)


@pytest.mark.export
@pytest.mark.parametrize(
    "changes", [{}, {"num_key_value_heads": 2}, {"head_dim": 32}, {"tie_word_embeddings": True}]
)
def test_tensor_shapes_are_those_of_transformers(changes: dict[str, Any]) -> None:
    """Name by name, for a model that transformers builds from the same config.json."""
    import torch
    import transformers

    values = SMALL_CONFIG | {"vocab_size": 96, "pad_token_id": 0} | changes
    with torch.device("meta"):
        model = transformers.Phi3ForCausalLM(transformers.Phi3Config(**values))
    theirs = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if values.get("tie_word_embeddings"):
        del theirs["lm_head.weight"]  # a checkpoint stores the matrix once
    assert make_config(vocab_size=96, **changes).tensor_shapes() == theirs


def test_a_config_travels() -> None:
    """It can be pickled, copied, compared and hashed."""
    config = make_config(rope_scaling=LONGROPE, original_max_position_embeddings=64)
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config
    assert hash(config) == hash(Phi3Config.parse(config_values()))


def config_values() -> dict[str, Any]:
    """Return the config.json of `test_a_config_travels`."""
    return SMALL_CONFIG | {"rope_scaling": LONGROPE, "original_max_position_embeddings": 64}
