"""A copy of the reference whose weights lie on no grid.

The reference's matrices were once rounded to Q4_1: in each block of 32 neighbours of a row they
have at most 16 different values, evenly spaced. Formats with the same blocks can hold such weights
almost without loss, which says nothing about a model that was never quantized. Here each weight
is moved by a uniform random amount of up to half its block's step, the least change that leaves
no grid. The copy answers a little worse; it is a source like any other, since a file is compared
with the source that it was made from.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

_BLOCK = 32
_STEPS = 15
"""Between the 16 values of a block."""


def dither(values: NDArray[np.float32], draw: np.random.Generator) -> NDArray[np.float32]:
    """Return a matrix with each value moved by up to half its block's step.

    Args:
        values: Rows of a multiple of 32 values.
        draw: Where the amounts come from.

    Example:
        >>> grid = np.arange(32, dtype=np.float32).reshape(1, 32) % 16
        >>> moved = dither(grid, np.random.default_rng(0))
        >>> len(np.unique(moved)), bool(np.abs(moved - grid).max() <= 0.5)
        (32, True)
    """
    blocks = values.reshape(len(values), -1, _BLOCK)
    step = (blocks.max(-1, keepdims=True) - blocks.min(-1, keepdims=True)) / _STEPS
    moved: NDArray[np.float64] = blocks + step * draw.uniform(-0.5, 0.5, blocks.shape)
    return moved.reshape(values.shape).astype(np.float32)


def write_dithered(source: Path, target: Path) -> None:
    """Write a dithered copy of a checkpoint, if it is not there; embeddings stay as they are."""
    if target.exists():
        return
    draw = np.random.default_rng(0)
    unfinished = target.with_name(f"unfinished-{target.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(source, unfinished)
    for file in sorted(unfinished.glob("*.safetensors")):
        tensors = load_file(file)
        for name in sorted(tensors):
            if ".layers." in name and tensors[name].ndim > 1:
                moved = dither(tensors[name].float().numpy(), draw)
                tensors[name] = torch.from_numpy(moved).to(tensors[name].dtype)
        save_file(tensors, file, metadata={"format": "pt"})
    unfinished.rename(target)
