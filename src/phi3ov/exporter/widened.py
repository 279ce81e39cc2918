"""Products with weights in 16 bits that stay in the checkpoint's mapped files.

A float32 copy of a weight would double its memory, so some rows at a time are widened.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artifact.ir import is_router

if TYPE_CHECKING:
    from torch import Tensor

_WIDENED_VALUES = 1 << 20
"""Number of weight values that are widened to float32 at once: 4 MB."""


def load_mapped(checkpoint: Path) -> Any:
    """Load a checkpoint in Phi-3's layout in transformers, for arithmetic in float32.

    The matrices stay in the checkpoint's mapped files; norms, biases and routers are widened to
    float32.
    """
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype="auto", attn_implementation="sdpa", local_files_only=True
    ).eval()
    model.requires_grad_(requires_grad=False)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1 or is_router(name):
            parameter.data = parameter.data.float()
    return model


def linear_layers(model: Any) -> dict[str, Any]:
    """Return the linear layers of a model by name; routers are a class of their own."""
    import torch

    return {
        name: module for name, module in model.named_modules() if type(module) is torch.nn.Linear
    }


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
