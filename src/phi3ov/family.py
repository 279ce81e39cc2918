"""Validates that a ``config.json`` describes a Phi-3, and parses the model's dimensions.

Two architectures belong to the family: ``phi3``, and ``phimoe``, in which a mixture of experts
takes the place of each block's MLP.

`Phi3Config` is read once, when a checkpoint or an exported folder is opened. All code that needs a
size, a head count or a rope type uses it; no other module parses ``config.json`` for those.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .errors import UnsupportedModelError
from .validation import is_integer, is_number

RopeType = Literal["default", "longrope"]
"""Type of rotary position embedding; "su", LongRoPE's first name, is read as "longrope"."""

_ROPE_TYPES: Mapping[str, RopeType] = {
    "default": "default",
    "longrope": "longrope",
    "su": "longrope",
}
REFUSED_TYPES = {
    "phi3small": "Phi-3-small is another architecture (block-sparse attention)",
    "phi3_v": "Phi-3-vision reads pictures as well",
    "phi4mm": "Phi-4-multimodal reads pictures and sound as well",
    "phi4_multimodal": "Phi-4-multimodal reads pictures and sound as well",
    "phi": "Phi-1 and Phi-2 are another architecture",
}
_ARCHITECTURES: Mapping[str, tuple[str, ...]] = {
    "phi3": ("Phi3ForCausalLM",),
    "phimoe": ("PhiMoEForCausalLM", "PhimoeForCausalLM"),
}
"""Supported values of ``model_type``, and their classes: Microsoft's name, then transformers'."""

_DEFAULT_VOCABULARY = 32064
"""Default ``vocab_size`` of transformers' ``Phi3Config``, used if config.json has none."""

_DEFAULT_EXPERTS = 16
"""Default ``num_local_experts`` of transformers' ``PhimoeConfig``."""

_EXPERTS_PER_TOKEN = 2
"""Number of experts that the router of ``phimoe`` (sparsemixer) chooses for every token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phi3Config:
    """Dimensions of a Phi-3 model, under the field names of ``config.json``.

    Attributes:
        hidden_size: Width of the residual stream.
        intermediate_size: Width of the MLP between its two projections.
        num_hidden_layers: Number of transformer blocks.
        num_attention_heads: Query heads per block.
        num_key_value_heads: Key and value heads per block.
        head_dim: Width of one head.
        vocab_size: Number of token ids: rows of the embedding matrix.
        max_position_embeddings: Maximum context length, in tokens.
        original_max_position_embeddings: Maximum context length, in tokens, with LongRoPE's short
            factors; equals ``max_position_embeddings`` without LongRoPE.
        rope_type: Type of rotary position embedding.
        sliding_window: Attention window in tokens; None for full attention.
        tie_word_embeddings: Whether the output layer shares the embedding matrix.
        num_local_experts: Number of experts per block; 0 without a mixture of experts.
        num_experts_per_tok: Number of experts that each token uses; 0 without a mixture.
        attention_bias: Whether the linear layers of the attention add a bias.
        lm_head_bias: Whether the output layer adds a bias.
        short_mscale: Factor of sines and cosines beside LongRoPE's short factors; None if it
            follows from the context lengths.
        long_mscale: The same beside the long factors.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    original_max_position_embeddings: int
    rope_type: RopeType
    sliding_window: int | None
    tie_word_embeddings: bool
    num_local_experts: int = 0
    num_experts_per_tok: int = 0
    attention_bias: bool = False
    lm_head_bias: bool = False
    short_mscale: float | None = None
    long_mscale: float | None = None

    @classmethod
    def parse(cls, values: object) -> Phi3Config:
        """Read the content of a ``config.json``.

        Args:
            values: The parsed JSON.

        Raises:
            UnsupportedModelError: phi3ov does not support the model; names the field and its
                value.

        Example:
            >>> Phi3Config.parse({"model_type": "phi3small"})
            Traceback (most recent call last):
                ...
            phi3ov.errors.UnsupportedModelError: config.json: model_type='phi3small': Phi-3-small \
is another architecture (block-sparse attention).
        """
        if not isinstance(values, dict):
            raise UnsupportedModelError(
                f"config.json holds a {type(values).__name__}, not an object."
            )
        _check_architecture(values)
        hidden = _count(values, "hidden_size")
        heads = _count(values, "num_attention_heads")
        longest = _count(values, "max_position_embeddings")
        rope = _rope_type(values)
        original = longest
        if rope == "longrope":
            nested = {"original_max_position_embeddings": longest} | _rope_parameters(values)
            key = "original_max_position_embeddings"
            original = _count(nested | ({key: values[key]} if values.get(key) else {}), key)
        mixture = _mixture(values, rope) if values["model_type"] == "phimoe" else {}
        key_value_heads = _count(values, "num_key_value_heads", default=heads)
        if heads % key_value_heads:
            raise UnsupportedModelError(
                f"config.json: num_key_value_heads={key_value_heads} does not divide "
                f"num_attention_heads={heads}."
            )
        window = values.get("sliding_window")
        return cls(
            hidden_size=hidden,
            intermediate_size=_count(values, "intermediate_size"),
            num_hidden_layers=_count(values, "num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=key_value_heads,
            head_dim=_count(values, "head_dim", default=max(1, hidden // heads)),
            vocab_size=_count({"vocab_size": _DEFAULT_VOCABULARY} | values, "vocab_size"),
            max_position_embeddings=longest,
            original_max_position_embeddings=original,
            rope_type=rope,
            sliding_window=None if window is None else _count(values, "sliding_window"),
            tie_word_embeddings=bool(values.get("tie_word_embeddings")),
            **mixture,
        )

    @classmethod
    def read(cls, path: Path) -> Phi3Config:
        """Read a ``config.json`` from disk.

        Raises:
            UnsupportedModelError: As `parse`.
            OSError: The file cannot be read.
            ValueError: The file is not JSON.
            RecursionError: The JSON is nested too deep.
        """
        return cls.parse(json.loads(path.read_text(encoding="utf-8")))

    @property
    def has_longrope(self) -> bool:
        """Whether the model has two sets of rotary factors, short and long."""
        return self.rope_type == "longrope"

    @property
    def has_experts(self) -> bool:
        """Whether a mixture of experts takes the place of each block's MLP."""
        return self.num_local_experts > 0

    def linear_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every linear layer of the blocks, by layer name.

        The shape is (outputs, inputs). The experts of a block are stacked: (experts, outputs,
        inputs).
        """
        parts = self._mixture_parts() if self.has_experts else self._dense_parts()
        return {
            f"model.layers.{index}.{part}": shape
            for index in range(self.num_hidden_layers)
            for part, shape in parts.items()
        }

    def _dense_parts(self) -> dict[str, tuple[int, ...]]:
        query, key_or_value = self._attention_widths()
        return {
            "self_attn.qkv_proj": (query + 2 * key_or_value, self.hidden_size),
            "self_attn.o_proj": (self.hidden_size, query),
            "mlp.gate_up_proj": (2 * self.intermediate_size, self.hidden_size),
            "mlp.down_proj": (self.hidden_size, self.intermediate_size),
        }

    def _mixture_parts(self) -> dict[str, tuple[int, ...]]:
        query, key_or_value = self._attention_widths()
        experts, hidden, inner = self.num_local_experts, self.hidden_size, self.intermediate_size
        return {
            "self_attn.q_proj": (query, hidden),
            "self_attn.k_proj": (key_or_value, hidden),
            "self_attn.v_proj": (key_or_value, hidden),
            "self_attn.o_proj": (hidden, query),
            "mlp.router": (experts, hidden),
            "mlp.experts.gate_proj": (experts, inner, hidden),
            "mlp.experts.up_proj": (experts, inner, hidden),
            "mlp.experts.down_proj": (experts, hidden, inner),
        }

    def _attention_widths(self) -> tuple[int, int]:
        """Return the width of all queries, and that of all keys."""
        return self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor of a checkpoint, by its name.

        A checkpoint with experts stores each of them on its own; `exporter.experts` has those
        names.
        """
        shapes = {f"{name}.weight": shape for name, shape in self.linear_shapes().items()}
        if self.attention_bias:
            shapes |= {
                f"{name}.bias": shape[:1]
                for name, shape in self.linear_shapes().items()
                if ".self_attn." in name
            }
        norms = ["model.norm"] + [
            f"model.layers.{index}.{norm}"
            for index in range(self.num_hidden_layers)
            for norm in ("input_layernorm", "post_attention_layernorm")
        ]
        for norm in norms:
            shapes[f"{norm}.weight"] = (self.hidden_size,)
            if self.has_experts:  # LayerNorm, where a dense Phi-3 has RMSNorm
                shapes[f"{norm}.bias"] = (self.hidden_size,)
        shapes["model.embed_tokens.weight"] = (self.vocab_size, self.hidden_size)
        if not self.tie_word_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, self.hidden_size)
        if self.lm_head_bias:
            shapes["lm_head.bias"] = (self.vocab_size,)
        return shapes


def _check_architecture(values: Mapping[str, Any]) -> None:
    model_type = values.get("model_type")
    if not isinstance(model_type, str) or model_type not in _ARCHITECTURES:
        why = REFUSED_TYPES.get(str(model_type), "phi3ov runs the Phi-3 architecture only")
        raise UnsupportedModelError(f"config.json: model_type={model_type!r}: {why}.")
    known = _ARCHITECTURES[model_type]
    architectures = values.get("architectures") or known
    if not any(name in architectures for name in known):
        raise UnsupportedModelError(
            f"config.json: architectures={architectures!r} does not name {known[0]}."
        )


def _mixture(values: Mapping[str, Any], rope: RopeType) -> dict[str, Any]:
    """Return the fields that only a mixture of experts has."""
    experts = _count(values, "num_local_experts", default=_DEFAULT_EXPERTS)
    chosen = _count(values, "num_experts_per_tok", default=_EXPERTS_PER_TOKEN)
    if chosen != _EXPERTS_PER_TOKEN or experts < _EXPERTS_PER_TOKEN:
        raise UnsupportedModelError(
            f"config.json: num_experts_per_tok={chosen} of num_local_experts={experts}: the router "
            f"of phimoe always chooses {_EXPERTS_PER_TOKEN} experts per token."
        )
    scales = {}
    if rope == "longrope":
        parameters = _rope_parameters(values)
        key = "original_max_position_embeddings"
        inner, outer = parameters.get(key), values.get(key)
        if inner and outer and inner != outer:
            raise UnsupportedModelError(
                f"config.json: {key}={outer!r} contradicts {inner!r} in the rope's own fields."
            )
        for name in ("short_mscale", "long_mscale"):
            value = parameters.get(name)
            if not is_number(value) or not 0 < value < math.inf:
                raise UnsupportedModelError(
                    f"config.json: {name}={value!r} of the rope must be a number above 0."
                )
            scales[name] = float(value)
    return {
        "num_local_experts": experts,
        "num_experts_per_tok": chosen,
        "attention_bias": bool(values.get("attention_bias")),
        "lm_head_bias": bool(values.get("lm_head_bias")),
        **scales,
    }


def _rope_parameters(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rope fields of config.json, also from transformers 5's ``rope_parameters``."""
    parameters = values.get("rope_scaling") or values.get("rope_parameters") or {}
    if not isinstance(parameters, dict):
        raise UnsupportedModelError(
            f"config.json: unknown rope type {parameters!r}; known: {', '.join(_ROPE_TYPES)}."
        )
    return parameters


def _rope_type(values: Mapping[str, Any]) -> RopeType:
    parameters = _rope_parameters(values)
    name = str(parameters.get("rope_type", parameters.get("type", "default")))
    if name not in _ROPE_TYPES:
        raise UnsupportedModelError(
            f"config.json: unknown rope type {name!r}; known: {', '.join(_ROPE_TYPES)}."
        )
    return _ROPE_TYPES[name]


def _count(values: Mapping[str, Any], name: str, *, default: int | None = None) -> int:
    """Return a positive integer of config.json, or ``default`` if it is missing or null."""
    value = values.get(name)
    if value is None and default is not None:
        return default
    if not is_integer(value) or value < 1:
        raise UnsupportedModelError(f"config.json: {name}={value!r} must be a positive integer.")
    return value
