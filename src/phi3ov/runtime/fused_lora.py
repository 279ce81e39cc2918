"""Folds LoRA adapters for an unfused copy of a Phi-3 (q, k, v and gate, up) onto fused layers.

Copies of Phi-3 and Phi-4 in Llama's layout have five projections instead of two. The five pairs of
adapter matrices combine to two larger pairs with the same product: the A matrices are stacked, and
the B matrices form a block diagonal. The result is exact, because values are only copied.
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
"""Unfused parts of each fused layer, in the order of its rows."""


def part_outputs(config: Phi3Config) -> dict[str, int]:
    """Return the number of rows of each unfused part."""
    query, key_or_value = (
        heads * config.head_dim
        for heads in (config.num_attention_heads, config.num_key_value_heads)
    )
    rows = (query, key_or_value, key_or_value, config.intermediate_size, config.intermediate_size)
    parts = (part for layer in FUSED.values() for part in layer)
    return dict(zip(parts, rows, strict=True))


def unfused_shapes(config: Phi3Config) -> dict[str, tuple[int, int]]:
    """Return (outputs, inputs) of every unfused layer, by layer name."""
    return {
        f"model.layers.{index}.{part}": (outputs, config.hidden_size)
        for index in range(config.num_hidden_layers)
        for part, outputs in part_outputs(config).items()
    }


def fused_layer(layer: str) -> str:
    """Return the fused layer of an unfused part; any other layer is returned unchanged."""
    for fused, parts in FUSED.items():
        for part in parts:
            if layer.endswith(f".{part}"):
                return layer.removesuffix(part) + fused
    return layer


def fold_adapter(weights: Path, config: Phi3Config, *, prefix: str) -> bytes | None:
    """Return the content of a checked adapter file, converted to the fused layers.

    Args:
        weights: The safetensors file; `read_adapter` has checked its shapes and types.
        config: The model's dimensions.
        prefix: Prefix of layer names in the file.

    Returns:
        The content of a safetensors file; None if the adapter already has fused layers.

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
    """Encode a safetensors file; the library's API for types differs between its versions."""
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
    """Return A and B of a fused layer; ``rows`` maps its parts to their row counts, in order."""
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
