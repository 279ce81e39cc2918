"""GPTQ: rounds a weight column by column, and lets the later columns make up for each error.

`round_by_gptq` rounds one matrix (https://arxiv.org/abs/2210.17323), with scales from
`rounding.fit_groups` for each group of columns as the errors before it have left it.
`fit_layers` reads calibration text once, forward, and rounds each layer when its inputs arrive:
the layers behind it then see the inputs that the compressed model will give them. It needs the
memory of one layer's statistics and of the activations, not of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .rounding import fit_groups
from .tensors import EMBEDDING, HEAD
from .widened import linear_layers, load_mapped, widened_product

if TYPE_CHECKING:
    from torch import Tensor

_DAMPING = 0.05
"""Added to the diagonal of the statistics, as a share of its mean, so that they can be inverted."""


@dataclass(frozen=True, slots=True)
class FittedWeight:
    """A weight that GPTQ has rounded, in a file.

    Attributes:
        integers: NumPy file of int8 values (uint8 if asymmetric), of shape
            [..., rows, groups, group_size], or [..., rows, columns] if whole rows are groups.
        scales: float32 of shape [..., rows, groups, 1].
        zero_points: int32 of the same shape; None if symmetric.
    """

    integers: Path
    scales: Any
    zero_points: Any

    def read(self) -> Any:
        """Return the weight as NNCF's ``CompressedWeight``."""
        import numpy as np
        from nncf.quantization.algorithms.weight_compression.parameters import CompressedWeight
        from nncf.tensor import Tensor as NncfTensor

        return CompressedWeight(
            NncfTensor(np.load(self.integers)),
            NncfTensor(self.scales),
            None if self.zero_points is None else NncfTensor(self.zero_points),
        )


def fit_layers(
    checkpoint: Path,
    samples: Sequence[Sequence[int]],
    group_sizes: dict[str, int],
    *,
    symmetric: bool,
    folder: Path,
    follow: Callable[[Sequence[Any], str], Iterator[Any]],
) -> dict[str, FittedWeight]:
    """Round layers of a checkpoint in Phi-3's layout by GPTQ.

    Args:
        checkpoint: The folder of the checkpoint.
        samples: Calibration text as token ids, all of one length.
        group_sizes: The layers to round, by their names in the checkpoint without ``.weight``,
            with the group size of each.
        symmetric: Without zero points.
        folder: An existing, empty folder for the integers.
        follow: Reports the progress over a sequence under a name.

    Returns:
        The rounded weights by layer name. An embedding that is not the output layer, too, is left
        out: its input is a token id, and there is nothing to make up for.
    """
    import torch

    model = load_mapped(checkpoint)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    embedding.forward = lambda ids: embedding.weight[ids].float()
    tied = head.weight is embedding.weight
    head_name = (EMBEDDING if tied else HEAD).removesuffix(".weight")
    made: dict[str, FittedWeight] = {}
    layers = {name: module for name, module in linear_layers(model).items() if module is not head}
    steps = iter(follow([*layers, head_name], "Rounding by GPTQ"))

    def round_at(name: str, module: Any, inputs: Tensor) -> Tensor:
        next(steps)
        if name not in group_sizes:
            return widened_product(inputs, module.weight)
        fitted, rounded = _round_stack(
            module.weight,
            inputs,
            group_sizes[name],
            symmetric=symmetric,
            file=folder / f"{name}.npy",
        )
        made[name] = fitted
        return widened_product(inputs, rounded)

    for name, module in layers.items():
        module.forward = _forward(name, module, round_at)
    with torch.inference_mode():
        hidden = model.model(torch.tensor([list(sample) for sample in samples]), use_cache=False)
        next(steps)
        if head_name in group_sizes:
            made[head_name], _ = _round_stack(
                head.weight, hidden.last_hidden_state, group_sizes[head_name],
                symmetric=symmetric, file=folder / f"{head_name}.npy",
            )  # fmt: skip
    next(steps, None)
    return made


def _forward(
    name: str, module: Any, round_at: Callable[[str, Any, Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    def forward(inputs: Tensor) -> Tensor:
        product = round_at(name, module, inputs.float())
        return product if module.bias is None else product + module.bias.float()

    return forward


def _round_stack(
    weight: Tensor, inputs: Tensor, group_size: int, *, symmetric: bool, file: Path
) -> tuple[FittedWeight, Tensor]:
    """Round a matrix, or each matrix of stacked experts, and write the integers to ``file``.

    Returns:
        What was written, and the rounded weight in bfloat16.
    """
    import numpy as np
    import torch

    columns = weight.shape[-1]
    size = columns if group_size == -1 else group_size
    matrices = weight if weight.dim() == 3 else weight[None]
    inputs = inputs if weight.dim() == 3 else inputs.reshape(1, -1, columns)
    integers = torch.empty(matrices.shape, dtype=torch.int8 if symmetric else torch.uint8)
    rounded = torch.empty(matrices.shape, dtype=torch.bfloat16)
    parts = []
    for number, (matrix, values) in enumerate(zip(matrices, inputs, strict=True)):
        statistics = values.T @ values / len(values)
        levels, scales, zero_points = round_by_gptq(
            matrix.float(), statistics, size, symmetric=symmetric
        )
        integers[number] = levels
        shift = 0 if zero_points is None else torch.from_numpy(zero_points)
        grouped = levels.float().reshape(len(matrix), -1, size)
        rounded[number] = ((grouped - shift) * torch.from_numpy(scales)).reshape(matrix.shape)
        parts.append((scales, zero_points))
    grouped_shape = (columns,) if group_size == -1 else (columns // size, size)
    np.save(file, integers.reshape(*weight.shape[:-1], *grouped_shape).numpy())
    shape = (*weight.shape[:-1], *grouped_shape[:-1], 1)
    scales, zero_points = (
        None if part[0] is None else np.stack(part).reshape(shape)
        for part in zip(*parts, strict=True)
    )
    return FittedWeight(file, scales, zero_points), rounded.reshape(weight.shape)


def round_by_gptq(
    weight: Tensor, statistics: Tensor, group_size: int, *, symmetric: bool
) -> tuple[Tensor, Any, Any]:
    """Round a matrix so that the error in its outputs is small.

    Args:
        weight: float32 of shape [rows, columns].
        statistics: Mean product of each pair of inputs, shape [columns, columns].
        group_size: Number of values in a row that share a scale; divides ``columns``.
        symmetric: Without zero points.

    Returns:
        Integers, int8 or uint8 of the weight's shape; scales and zero points as from
        `rounding.fit_groups`.
    """
    import numpy as np
    import torch

    rows, columns = weight.shape
    lowest, highest = (-8, 7) if symmetric else (0, 15)
    moments = statistics.diagonal().clone()
    damped = statistics.clone()
    damped.diagonal().add_(_DAMPING * moments.mean() + 1e-12)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor = torch.linalg.cholesky(inverse, upper=True)
    left = weight.T.contiguous()  # one column after the other, as the later ones change
    integers = torch.empty(columns, rows, dtype=torch.int8 if symmetric else torch.uint8)
    scales, zero_points = [], []
    for start in range(0, columns, group_size):
        group = slice(start, start + group_size)
        scale, zero_point = fit_groups(
            left[group].T, group_size, symmetric=symmetric, moments=moments[group]
        )
        scales.append(scale)
        zero_points.append(zero_point)
        divisor = torch.from_numpy(scale[:, 0, 0])
        shift = torch.zeros(rows) if symmetric else torch.from_numpy(zero_point[:, 0, 0]).float()
        errors = torch.empty(group_size, rows)
        for offset in range(group_size):
            column = start + offset
            levels = (left[column] / divisor + shift).round_().clamp_(lowest, highest)
            integers[column] = levels.to(integers.dtype)
            error = left[column] - (levels - shift) * divisor
            errors[offset] = error / factor[column, column]
            left[column + 1 : group.stop] -= torch.outer(
                factor[column, column + 1 : group.stop], errors[offset]
            )
        left[group.stop :] -= factor[group, group.stop :].T @ errors
    zeros = None if symmetric else np.concatenate(zero_points, axis=1)
    return integers.T.contiguous(), np.concatenate(scales, axis=1), zeros
