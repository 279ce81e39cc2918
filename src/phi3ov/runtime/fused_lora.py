"""LoRA adapters that were trained on an unfused copy of a Phi-3: q, k, v and gate, up apart.

Llama-shaped copies of Phi-3 and Phi-4 have five projections where the model has two. The product
of the five pairs of matrices is, row by row, that of two larger pairs: the A matrices stand one
below the other, the B matrices on a block diagonal. Nothing is rounded, because no number is
computed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..family import Phi3Config

FUSED: Mapping[str, tuple[str, ...]] = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}
"""Parts of each fused layer, in the order of its rows."""


def part_outputs(config: Phi3Config) -> dict[str, int]:
    """Return how many rows of the fused layer each part is."""
    query, key_or_value = (
        heads * config.head_dim
        for heads in (config.num_attention_heads, config.num_key_value_heads)
    )
    rows = (query, key_or_value, key_or_value, config.intermediate_size, config.intermediate_size)
    parts = (part for layer in FUSED.values() for part in layer)
    return dict(zip(parts, rows, strict=True))


def unfused_shapes(config: Phi3Config) -> dict[str, tuple[int, int]]:
    """Return outputs and inputs of every layer of an unfused copy that the model has not."""
    return {
        f"model.layers.{index}.{part}": (outputs, config.hidden_size)
        for index in range(config.num_hidden_layers)
        for part, outputs in part_outputs(config).items()
    }


def fused_layer(layer: str) -> str:
    """Return the fused layer that a part belongs to; the layer itself if it is no part."""
    for fused, parts in FUSED.items():
        for part in parts:
            if layer.endswith(f".{part}"):
                return layer.removesuffix(part) + fused
    return layer


def fold_adapter(weights: Path, config: Phi3Config, *, prefix: str) -> bytes | None:
    """Return the content of a checked adapter file for the fused layers.

    Args:
        weights: The safetensors file; `read_adapter` has checked its shapes and types.
        config: The model's dimensions.
        prefix: What stands before a layer's name in the file.

    Returns:
        A safetensors file; None if the adapter is one for fused layers already.

    Raises:
        OSError: The file cannot be read.
    """
    import safetensors

    read: Any = safetensors.deserialize  # has no types
    tensors: dict[str, dict[str, Any]] = dict(read(weights.read_bytes()))
    folded = False
    for index in range(config.num_hidden_layers):
        for layer, parts in FUSED.items():
            block = f"{prefix}model.layers.{index}."
            found = [part for part in parts if f"{block}{part}.lora_A.weight" in tensors]
            if found:
                folded = True
                pairs = {
                    part: tuple(tensors.pop(f"{block}{part}.lora_{side}.weight") for side in "AB")
                    for part in found
                }
                rows = {part: part_outputs(config)[part] for part in parts}
                first, second = _fold(pairs, rows)
                tensors[f"{block}{layer}.lora_A.weight"] = first
                tensors[f"{block}{layer}.lora_B.weight"] = second
    if not folded:
        return None
    return _write(tensors)


def _write(tensors: Mapping[str, dict[str, Any]]) -> bytes:
    """Return a safetensors file; the library writes types that differ between its versions."""
    header, at = {}, 0
    for name, tensor in tensors.items():
        end = at + len(tensor["data"])
        header[name] = {
            "dtype": tensor["dtype"],
            "shape": tensor["shape"],
            "data_offsets": [at, end],
        }
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the data to 8 bytes
    return b"".join(
        [len(text).to_bytes(8, "little"), text, *(tensor["data"] for tensor in tensors.values())]
    )


def _fold(
    pairs: Mapping[str, tuple[dict[str, Any], ...]], rows: Mapping[str, int]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return A and B of a fused layer; ``rows`` are its parts with their rows, in order."""
    firsts = [first for first, _ in pairs.values()]
    dtype, columns = firsts[0]["dtype"], firsts[0]["shape"][1]
    rank = sum(first["shape"][0] for first in firsts)
    size = len(firsts[0]["data"]) // (firsts[0]["shape"][0] * columns)  # bytes of a number
    diagonal: list[bytes] = []
    before = 0
    for part, count in rows.items():
        if part not in pairs:
            diagonal.append(bytes(count * rank * size))
            continue
        second = pairs[part][1]
        own = second["shape"][1]
        left, right = bytes(before * size), bytes((rank - before - own) * size)
        data, width = second["data"], own * size
        for start in range(0, len(data), width):
            diagonal += (left, data[start : start + width], right)
        before += own
    stacked = b"".join(first["data"] for first in firsts)
    return (
        {"dtype": dtype, "shape": [rank, columns], "data": stacked},
        {"dtype": dtype, "shape": [sum(rows.values()), rank], "data": b"".join(diagonal)},
    )
