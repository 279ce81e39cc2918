"""Weights of other stacks' files as a float32 checkpoint that transformers loads."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from phi3ov_bench.gguf_writer import gguf_name
from safetensors import safe_open
from safetensors.numpy import save_file

Weights = dict[str, NDArray[np.float32]]
"""Tensors by their names in the checkpoint."""

_WORST_ERROR = 0.5
"""A tensor that differs more from its source, relatively, was not quantized but misread."""


def read_gguf(file: Path, names: Iterable[str]) -> Weights:
    """Return the tensors of a GGUF, dequantized by the ``gguf`` package.

    Args:
        file: Whose names are those of ``phi3ov_bench.gguf_writer``.
        names: Of the checkpoint's tensors. The output matrix is added if the file has its own.

    Raises:
        KeyError: The file lacks a tensor.
    """
    tensors = {str(tensor.name): tensor for tensor in gguf.GGUFReader(file).tensors}
    weights = {}
    for name in {*names, "lm_head.weight"}:
        tensor = tensors.get(gguf_name(name))
        if tensor is None and name != "lm_head.weight":
            raise KeyError(f"{file} has no tensor {gguf_name(name)!r}, which {name!r} needs.")
        if tensor is not None:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            shape = [int(size) for size in reversed(tensor.shape)]
            weights[name] = np.ascontiguousarray(values, dtype=np.float32).reshape(shape)
    return weights


def gguf_types(file: Path) -> dict[str, int]:
    """Return how many matrices of a GGUF have each type."""
    tensors = gguf.GGUFReader(file).tensors
    return dict(Counter(tensor.tensor_type.name for tensor in tensors if len(tensor.shape) > 1))


def unpack_int4(packed: NDArray[np.uint8], scales: NDArray[np.floating[Any]]) -> NDArray[Any]:
    """Return the matrix of a ``MatMulNBits`` node with 4 bits and no zero points.

    Two values share a byte, the first one in the low half; 8 stands for 0.

    Args:
        packed: Of shape [rows, blocks, bytes of a block].
        scales: Of shape [rows, blocks].

    Example:
        >>> unpack_int4(np.array([[[0x98, 0x0F]]], np.uint8), np.array([[2.0]], np.float32))
        array([[  0.,   2.,  14., -16.]], dtype=float32)
    """
    rows, blocks, size = packed.shape
    values = np.stack([packed & 15, packed >> 4], axis=-1).reshape(rows, blocks, 2 * size)
    centred = values.astype(np.float32) - 8
    return (centred * scales.reshape(rows, blocks, 1)).reshape(rows, -1).astype(np.float32)


def read_onnx(dumped: Path, names: Iterable[str]) -> Weights:
    """Return the weights of onnxruntime-genai's model under the checkpoint's names.

    Args:
        dumped: What ``adapters/onnx_weights.py`` wrote.
        names: Of the checkpoint's tensors. The output matrix is the table of embeddings as well:
            the builder ties them.

    Raises:
        KeyError: The model lacks a tensor.
    """
    with np.load(dumped) as tensors:
        layers = sum(name.endswith("input_layernorm.weight") for name in tensors)

        def matrix(name: str) -> NDArray[Any]:
            return unpack_int4(
                tensors[f"{name}.MatMul.weight_Q4"], tensors[f"{name}.MatMul.weight_scales"]
            )

        def read(name: str) -> NDArray[Any]:
            if name in ("model.embed_tokens.weight", "lm_head.weight"):
                return matrix("lm_head")
            if name == "model.norm.weight":
                return np.asarray(tensors[f"model.layers.{layers}.final_norm_layernorm.weight"])
            if name.endswith("layernorm.weight"):
                return np.asarray(tensors[name])
            if "gate_up_proj" in name:
                stem = name.removesuffix(".gate_up_proj.weight")
                return np.concatenate([matrix(f"{stem}.gate_proj"), matrix(f"{stem}.up_proj")])
            return matrix(name.removesuffix(".weight").replace("self_attn", "attn"))

        return {name: read(name) for name in names}


def tensor_names(checkpoint: Path) -> list[str]:
    """Return the names of a checkpoint's tensors."""
    return [name for file in _files(checkpoint) for name in _keys(file)]


def write_checkpoint(weights: Weights, source: Path, target: Path) -> float:
    """Write dequantized weights as a float32 checkpoint and return their relative error.

    Args:
        weights: By name; with an output matrix of its own the new checkpoint is not tied.
        source: The checkpoint that they come from.
        target: The folder.

    Returns:
        The root of the squared error's share in the squared weights, over all matrices.

    Raises:
        ValueError: A tensor is further from its source than any four bits are, so its file was
            misread.
    """
    target.mkdir(parents=True)
    error = total = 0.0
    for file in _files(source):
        with safe_open(file, framework="pt") as tensors:
            for name in _keys(file):
                truth = tensors.get_tensor(name).float().numpy()
                wrong = float(np.square(weights[name] - truth, dtype=np.float64).sum())
                size = float(np.square(truth, dtype=np.float64).sum())
                if wrong > _WORST_ERROR**2 * size:
                    raise ValueError(
                        f"{name} differs from its source by {(wrong / size) ** 0.5:.0%}: its file "
                        "was read wrongly."
                    )
                if truth.ndim > 1:
                    error, total = error + wrong, total + size
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config["tie_word_embeddings"] = "lm_head.weight" not in weights
    config["dtype"] = config["torch_dtype"] = "float32"
    (target / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    for other in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        if (source / other).is_file():
            shutil.copy(source / other, target)
    return float((error / total) ** 0.5)


def _files(checkpoint: Path) -> list[Path]:
    return sorted(checkpoint.glob("*.safetensors"))


def _keys(file: Path) -> list[str]:
    with safe_open(file, framework="pt") as tensors:
        return list(tensors.keys())
