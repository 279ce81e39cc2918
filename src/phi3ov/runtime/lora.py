"""Reads and checks LoRA adapters in PEFT's format, without torch.

An adapter for an unfused copy of the model is converted (``fused_lora.py``).

An adapter is fixed when the model is loaded. openvino-genai could change it from request to
request, but its prefix cache identifies blocks by their tokens only, so a prompt would find keys
and values of another adapter (`test_upstream_genai_mixes_adapters_in_its_cache`).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..artifact.folder import hash_file
from ..errors import OptionError
from ..family import Phi3Config
from ..validation import is_integer, is_number
from ..weight_files import read_headers
from .fused_lora import fold_adapter, fused_layer, unfused_shapes

_PREFIX = "base_model.model."
_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

MOST_SCALE = 1000
"""Maximum total scale of an adapter. Trained adapters have 0.1 to 4; far above that,
openvino-genai's arithmetic overflows and its process dies."""

_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "use_dora": (False, None),
    "bias": ("none", None),
    "lora_bias": (False, None),
    "fan_in_fan_out": (False, None),
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva", None),
}
"""Accepted values of settings: with these, the adapter's matrix product is added to the weights.

PiSSA, OLoRA, CorDA and LoftQ change the base weights before training, and the adapter's files do
not contain the changed weights. PEFT converts such adapters:
``save_pretrained(path_initial_model_for_weight_conversion=...)``.
"""

_NOT_TAKEN = (
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "layer_replication",
    "alora_invocation_tokens",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraAdapter:
    """A LoRA adapter in PEFT's layout: ``adapter_config.json``, ``adapter_model.safetensors``.

    Attributes:
        path: The adapter's folder.
        weight: Strength of the adapter: 1.0 as trained, 0.5 for half of the change.

    Raises:
        OptionError: The weight is not a number above 0 and at most 100.

    Example:
        >>> LoraAdapter(path="adapters/poet", weight=0.5).weight
        0.5
    """

    path: str | Path
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not is_number(self.weight) or not 0 < self.weight <= 100:
            raise OptionError(
                f"weight={self.weight!r} must be a number above 0 and at most 100.", option="weight"
            )

    def fingerprint(self) -> str:
        """Return a SHA-256 over both files and the weight: equal adapters give equal answers.

        Raises:
            OSError: A file cannot be read.
        """
        parts = [hash_file(Path(self.path) / name) for name in (_CONFIG, _WEIGHTS)]
        return hashlib.sha256(" ".join([*parts, repr(float(self.weight))]).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFile:
    """Adapter facts that an engine needs.

    Attributes:
        weights: The safetensors file.
        scale: Factor on the product of its matrices.
    """

    weights: Path
    scale: float

    def folded(self, config: Phi3Config) -> bytes | None:
        """Return the file's content converted to fused layers; None if no conversion is needed.

        Raises:
            OSError: The file cannot be read.
        """
        if config.has_experts:  # its projections are not fused
            return None
        return fold_adapter(self.weights, config, prefix=_PREFIX)


def read_adapter(adapter: LoraAdapter, config: Phi3Config) -> AdapterFile:
    """Check an adapter against a model's dimensions.

    Raises:
        OptionError: A file is missing, the adapter is not plain LoRA, or a matrix does not belong
            to a layer of the model.
    """
    folder = Path(adapter.path)
    settings = _read_settings(folder)
    try:
        headers = read_headers(folder / _WEIGHTS)
    except (OSError, ValueError) as error:
        raise OptionError(f"{folder / _WEIGHTS} cannot be read: {error}.") from error
    rank, alpha = settings["r"], settings["lora_alpha"]
    _check_shapes(folder, {name: tensor.shape for name, tensor in headers.items()}, rank, config)
    if len(types := sorted({tensor.dtype for tensor in headers.values()})) > 1:
        raise OptionError(
            f"The adapter {folder} holds matrices of the types {', '.join(types)}; phi3ov takes "
            "one type. Save it in float32."
        )
    scale = adapter.weight * alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    if scale > MOST_SCALE:
        raise OptionError(
            f"The adapter {folder} has a scale of {scale:g} (weight={adapter.weight}, "
            f"lora_alpha={alpha}, r={rank}), but the maximum is {MOST_SCALE}: beyond that the "
            "model's numbers overflow. Give a smaller weight."
        )
    return AdapterFile(weights=(folder / _WEIGHTS).resolve(), scale=scale)


def _read_settings(folder: Path) -> dict[str, Any]:
    """Read an adapter's settings, and check that it is plain LoRA."""
    try:
        settings = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise OptionError(f"{folder / _CONFIG} cannot be read: {error}.") from error
    if not isinstance(settings, dict):
        raise OptionError(f"{folder / _CONFIG} holds no JSON object.")
    for name, plain in _PLAIN.items():
        if settings.get(name, plain[0]) not in plain:
            raise OptionError(
                f"The adapter {folder} has {name}={settings[name]!r}; phi3ov takes plain LoRA."
            )
    for name in _NOT_TAKEN:
        if settings.get(name):
            raise OptionError(f"The adapter {folder} has {name}, which phi3ov does not support.")
    for name, is_kind in (("r", is_integer), ("lora_alpha", is_number)):
        value = settings.get(name)
        if not is_kind(value) or not 0 < value < math.inf:
            raise OptionError(
                f"{folder / _CONFIG}: {name}={value!r} must be a number above 0.",
            )
    return settings


def _adaptable_shapes(config: Phi3Config) -> dict[str, tuple[int, ...]]:
    """Return the shape of every layer that an adapter may change, by its name.

    In a mixture of experts these are the layers of the attention.
    """
    shapes = config.linear_shapes()
    if not config.has_experts:
        return shapes | unfused_shapes(config)
    return {name: shape for name, shape in shapes.items() if ".self_attn." in name}


def _check_shapes(
    folder: Path, shapes: Mapping[str, tuple[int, ...]], rank: int, config: Phi3Config
) -> None:
    """Refuse matrices that genai would skip: without a matching layer, or without their pair."""
    if not shapes:
        raise OptionError(f"The adapter {folder} holds no matrices, so it changes nothing.")
    layers = _adaptable_shapes(config)
    modules = {name.removeprefix(_PREFIX).rpartition(".lora_")[0] for name in shapes}
    for name, shape in shapes.items():
        module, _, part = name.removeprefix(_PREFIX).rpartition(".lora_")
        if part not in ("A.weight", "B.weight") or module not in layers:
            most = (
                ""
                if not config.has_experts
                else (
                    " An adapter of a mixture of experts may change the attention alone "
                    "(q_proj, k_proj, v_proj, o_proj)."
                )
            )
            raise OptionError(f"The adapter {folder} holds {name}, which fits no layer.{most}")
        outputs, inputs = layers[module]
        expected = (rank, inputs) if part == "A.weight" else (outputs, rank)
        if shape != expected:
            raise OptionError(
                f"The adapter {folder}: {name} has the shape {shape}, the model needs {expected}."
            )
        other = f"{name.removesuffix(part)}{'B' if part[0] == 'A' else 'A'}.weight"
        if other not in shapes:
            raise OptionError(f"The adapter {folder} holds {name} without {other}.")
        if (fused := fused_layer(module)) in modules - {module}:
            raise OptionError(
                f"The adapter {folder} holds {name} and matrices of {fused}, of which it is a part."
            )
