"""LoRA adapters as PEFT writes them: read and checked without torch.

An adapter is fixed when the model is loaded. openvino-genai could change it from request to
request, but its prefix cache knows blocks by their tokens alone, so a prompt would find keys and
values that another adapter computed (`test_upstream_genai_mixes_adapters_in_its_cache`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import OptionError

_PREFIX = "base_model.model."
_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraAdapter:
    """A LoRA adapter in PEFT's layout: ``adapter_config.json``, ``adapter_model.safetensors``.

    Attributes:
        path: The adapter's folder.
        weight: How much of it counts: 1.0 is as trained, 0.5 is half of the change.

    Raises:
        OptionError: The weight is no positive number of at most 100.

    Example:
        >>> LoraAdapter(path="adapters/poet", weight=0.5).weight
        0.5
    """

    path: str | Path
    weight: float = 1.0

    def __post_init__(self) -> None:
        number = isinstance(self.weight, int | float) and not isinstance(self.weight, bool)
        if not number or not 0 < self.weight <= 100:
            raise OptionError(f"weight={self.weight!r} must be a number above 0 and at most 100.")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFile:
    """What an engine needs to know of an adapter.

    Attributes:
        weights: The safetensors file.
        scale: What the product of its matrices is multiplied with.
    """

    weights: Path
    scale: float


def read_adapter(adapter: LoraAdapter, config: Mapping[str, Any]) -> AdapterFile:
    """Check an adapter against a model's ``config.json``.

    Raises:
        OptionError: A file is missing, the adapter is of a kind that is more than LoRA, or a
            matrix does not belong to a layer of the model.
    """
    folder = Path(adapter.path)
    try:
        settings = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        shapes = _read_shapes(folder / _WEIGHTS)
    except (OSError, ValueError) as error:
        raise OptionError(f"The adapter {folder} cannot be read: {error}.") from error
    for name, plain in (("peft_type", "LORA"), ("use_dora", False), ("bias", "none")):
        if settings.get(name, plain) != plain:
            raise OptionError(
                f"The adapter {folder} has {name}={settings[name]!r}; phi3ov takes plain LoRA."
            )
    for name in ("modules_to_save", "rank_pattern", "alpha_pattern"):
        if settings.get(name):
            raise OptionError(f"The adapter {folder} has {name}, which phi3ov does not take.")
    rank = int(settings["r"])
    _check_shapes(folder, shapes, rank, config)
    root = math.sqrt(rank) if settings.get("use_rslora") else rank
    scale = adapter.weight * float(settings["lora_alpha"]) / root
    return AdapterFile(weights=(folder / _WEIGHTS).resolve(), scale=scale)


def _read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes from a safetensors header: eight bytes of length, then JSON."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            raise ValueError(f"{path.name} is no safetensors file")
        header = json.loads(file.read(length))
    return {name: tuple(one["shape"]) for name, one in header.items() if name != "__metadata__"}


def _check_shapes(
    folder: Path, shapes: Mapping[str, tuple[int, ...]], rank: int, config: Mapping[str, Any]
) -> None:
    """Refuse what genai would skip without a word: a matrix that fits no layer."""
    layers = _layer_shapes(config)
    for name, shape in shapes.items():
        module, _, part = name.removeprefix(_PREFIX).rpartition(".lora_")
        if part not in ("A.weight", "B.weight") or module not in layers:
            raise OptionError(f"The adapter {folder} holds {name}, which fits no layer.")
        outputs, inputs = layers[module]
        expected = (rank, inputs) if part == "A.weight" else (outputs, rank)
        if shape != expected:
            raise OptionError(
                f"The adapter {folder}: {name} has the shape {shape}, the model needs {expected}."
            )


def _layer_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Return outputs and inputs of each linear layer of a Phi-3."""
    hidden, middle = int(config["hidden_size"]), int(config["intermediate_size"])
    heads = int(config["num_attention_heads"])
    kv_heads = int(config.get("num_key_value_heads") or heads)
    head = int(config.get("head_dim") or hidden // heads)
    parts = {
        "self_attn.qkv_proj": ((heads + 2 * kv_heads) * head, hidden),
        "self_attn.o_proj": (hidden, heads * head),
        "mlp.gate_up_proj": (2 * middle, hidden),
        "mlp.down_proj": (hidden, middle),
    }
    return {
        f"model.layers.{index}.{part}": shape
        for index in range(int(config["num_hidden_layers"]))
        for part, shape in parts.items()
    }
