"""Phi-3 checkpoints in Llama's layout: detection, and lossless conversion to Phi-3's layout.

Phi-3 is Llama with fused projections: query, key and value rows are stacked into one matrix, gate
and up rows into another. Some fine-tuning tools split them to reuse their Llama code and publish
the result as ``model_type: llama`` (or ``mistral``, which is a Llama with a sliding window).
Stacking the rows again gives the same model, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import UnsupportedModelError
from ..family import Phi3Config
from .restacking import write_config, write_joined
from .tensors import HEAD, CheckpointTensors

_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "llama": {
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "vocab_size": 32000,
        "sliding_window": None,
    },
    "mistral": {
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "vocab_size": 32000,
        "sliding_window": 4096,
    },
}
"""transformers' defaults for fields missing from such a config.json; Phi-3's defaults differ."""

_ARCHITECTURES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}
_PLAIN = {"attention_bias": False, "mlp_bias": False, "hidden_act": "silu"}
"""Values that Phi-3's computation requires; a checkpoint with any other value is refused."""

_STACKED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}
"""Phi-3's fused matrices, and the Llama matrices whose rows they stack, in order."""


def is_llama(values: object) -> bool:
    """Whether the content of a config.json describes Llama's layout."""
    if not isinstance(values, dict):
        return False
    architecture = _ARCHITECTURES.get(str(values.get("model_type")))
    return architecture is not None and architecture in (
        values.get("architectures") or [architecture]
    )


def as_phi3(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the Phi-3 config.json of the same model.

    Raises:
        UnsupportedModelError: The model's computation differs from Phi-3's.
    """
    model_type = str(values["model_type"])
    for name, plain in _PLAIN.items():
        if values.get(name, plain) != plain:
            raise UnsupportedModelError(
                f"config.json: model_type={model_type!r} with {name}={values[name]!r} is not a "
                "Phi-3 in another layout, and phi3ov runs the Phi-3 architecture only."
            )
    renamed = {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"]}
    kept = {name: value for name, value in values.items() if name not in _PLAIN | {"auto_map": 0}}
    padding = {"pad_token_id": values.get("pad_token_id")}  # Phi-3's default is another id
    return {**_DEFAULTS[model_type], **kept, **padding, "hidden_act": "silu", **renamed}


def tensor_shapes(config: Phi3Config) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of the model in Llama's layout, by its name."""
    rows = {
        "self_attn.q_proj": config.num_attention_heads * config.head_dim,
        "self_attn.k_proj": config.num_key_value_heads * config.head_dim,
        "self_attn.v_proj": config.num_key_value_heads * config.head_dim,
        "mlp.gate_proj": config.intermediate_size,
        "mlp.up_proj": config.intermediate_size,
    }
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in config.tensor_shapes().items():
        for part in _parts_of(name):
            layer_part = ".".join(part.split(".")[3:5])
            shapes[part] = (rows[layer_part], *shape[1:]) if layer_part in rows else shape
    return shapes


def write_phi3(
    tensors: CheckpointTensors,
    values: Mapping[str, Any],
    config: Phi3Config,
    folder: Path,
    follow: Callable[[Iterable[str], str], Iterable[str]],
) -> None:
    """Write the checkpoint in Phi-3's layout: weights and config.json.

    Args:
        tensors: The weights in Llama's layout.
        values: Phi-3's config.json, as `as_phi3` returns it.
        config: Its dimensions.
        folder: An existing, empty folder.
        follow: Reports progress: takes the items and a name of the pass, and yields the items.
    """
    import torch

    write_config(values, folder)
    names = [*config.tensor_shapes()]
    names += {HEAD} - {*names}  # a tied matrix may be stored under either name
    write_joined(
        tensors,
        {name: _parts_of(name) for name in names},
        folder,
        join=torch.cat,
        follow=lambda new: follow(new, "Stacking projections"),
    )


def _parts_of(name: str) -> tuple[str, ...]:
    """Return the names of Llama's tensors whose rows a Phi-3 tensor stacks."""
    layer_part = ".".join(name.split(".")[3:5])
    parts = _STACKED.get(layer_part, (layer_part,))
    return tuple(name.replace(layer_part, part) for part in parts) if layer_part else (name,)
