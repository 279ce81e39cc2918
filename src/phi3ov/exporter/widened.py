"""Products with weights in 16 bits that stay in the checkpoint's mapped files.

A float32 copy of a weight would double its memory, so some rows at a time are widened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_WIDENED_VALUES = 1 << 20
"""Number of weight values that are widened to float32 at once: 4 MB."""


def row_parts(matrix: Tensor) -> tuple[Tensor, ...]:
    """Split a matrix of shape [rows, columns] into parts of rows that are widened at once."""
    return tuple(matrix.split(max(1, _WIDENED_VALUES // matrix.shape[-1])))


def widened_product(inputs: Tensor, weight: Tensor) -> Tensor:
    """Return float32 ``inputs @ weight.T``.

    Args:
        inputs: float32 of shape [..., columns]; for stacked weights [stack, tokens, columns].
        weight: Any floating-point type, shape [rows, columns] or [stack, rows, columns].
    """
    import torch

    stacked = weight.dim() == 3
    products = [
        torch.cat([values @ part.float().T for part in row_parts(matrix)], dim=-1)
        for values, matrix in zip(
            inputs if stacked else (inputs,), weight if stacked else (weight,), strict=True
        )
    ]
    return torch.stack(products) if stacked else products[0]
