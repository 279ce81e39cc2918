"""A model's dimensions come from config.json once, and agree with transformers' own model."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from phi3ov.errors import UnsupportedModelError
from phi3ov.family import Phi3Config

from .fakes import SMALL_CONFIG, SMALL_MIXTURE, make_config

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


@pytest.mark.export
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"head_dim": 8},
        {"attention_bias": False},
        {"lm_head_bias": False},
        {"tie_word_embeddings": True},
    ],
    ids=str,
)
def test_stored_shapes_of_a_mixture_are_those_of_transformers(changes: dict[str, Any]) -> None:
    """Name by name, for a checkpoint that transformers saves of the same config.json."""
    import torch
    import transformers
    from transformers.core_model_loading import revert_weight_conversion

    from phi3ov.exporter.experts import stored_shapes

    values = SMALL_MIXTURE | {"vocab_size": 96, "pad_token_id": 0} | changes
    with torch.device("meta"):
        model = transformers.PhimoeForCausalLM(transformers.PhimoeConfig(**values))
    state = revert_weight_conversion(model, model.state_dict())
    theirs = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if values.get("tie_word_embeddings"):
        del theirs["lm_head.weight"]
    assert stored_shapes(Phi3Config.parse(values)) == theirs


def test_a_mixture_has_its_sizes() -> None:
    """Experts are stacked, and the defaults are those of the architecture."""
    config = Phi3Config.parse(SMALL_MIXTURE)
    assert (config.num_local_experts, config.num_experts_per_tok) == (4, 2)
    assert (config.attention_bias, config.lm_head_bias, config.long_mscale) == (True, True, None)
    shapes = config.linear_shapes()
    assert shapes["model.layers.1.mlp.experts.down_proj"] == (4, 64, 32)
    assert shapes["model.layers.0.mlp.router"] == (4, 64)
    bare = {name: SMALL_MIXTURE[name] for name in SMALL_CONFIG}
    assert Phi3Config.parse(bare).num_local_experts == 16
    assert not make_config().has_experts


MSCALES = {"short_mscale": 1.25, "long_mscale": 1.5}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_experts_per_tok": 4}, "num_experts_per_tok=4 .*always chooses 2"),
        ({"num_local_experts": 1}, "num_local_experts=1.*always chooses 2"),
        ({"num_local_experts": 0}, "num_local_experts=0 must be a positive"),
        ({"architectures": ["Phi3ForCausalLM"]}, "does not name PhiMoEForCausalLM"),
        ({"rope_scaling": LONGROPE}, "short_mscale=None of the rope"),
        *(
            ({"rope_scaling": LONGROPE | MSCALES | {"long_mscale": value}}, "long_mscale=.*above 0")
            for value in (0, -1, "1", True, float("inf"), float("nan"))
        ),
        (
            {
                "rope_scaling": LONGROPE | MSCALES | {"original_max_position_embeddings": 64},
                "original_max_position_embeddings": 128,
            },
            "original_max_position_embeddings=128 contradicts 64",
        ),
    ],
    ids=str,
)
def test_a_mixture_that_would_answer_otherwise_is_refused(
    changes: dict[str, Any], message: str
) -> None:
    """What transformers would ignore or read otherwise is named with its value."""
    with pytest.raises(UnsupportedModelError, match=message):
        Phi3Config.parse(SMALL_MIXTURE | changes)


@pytest.mark.parametrize("name", ["PhiMoEForCausalLM", "PhimoeForCausalLM"])
def test_a_mixture_with_longrope_has_two_scales(name: str) -> None:
    """Under Microsoft's name of the class and under that of transformers."""
    rope = {"rope_scaling": LONGROPE | MSCALES, "original_max_position_embeddings": 64}
    config = Phi3Config.parse(SMALL_MIXTURE | rope | {"architectures": [name]})
    assert (config.short_mscale, config.long_mscale) == (1.25, 1.5)
    assert config.original_max_position_embeddings == 64


def test_a_config_travels() -> None:
    """It can be pickled, copied, compared and hashed."""
    config = make_config(rope_scaling=LONGROPE, original_max_position_embeddings=64)
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config
    assert hash(config) == hash(Phi3Config.parse(config_values()))


def config_values() -> dict[str, Any]:
    """Return the config.json of `test_a_config_travels`."""
    return SMALL_CONFIG | {"rope_scaling": LONGROPE, "original_max_position_embeddings": 64}
