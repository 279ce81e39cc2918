"""Fits the scale of each group of int4 weights to the least weighted error.

A group is a run of values in a row that share one scale and, in asymmetric recipes, one zero
point. NNCF takes the scale from the group's extreme values. That wastes levels on a single large
value. `fit_groups` tries several ranges for each group, finds the best scale for the integers
that each range gives, and keeps the scale with the least error

    sum(importance * (integer * scale - value) ** 2)

over the group. The number of bytes, the file format and the speed of the model stay the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from .gptq import FittedWeight
    from .sensitivity import LayerSensitivity

SYMMETRIC_RANGES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)
"""Ranges that `fit_groups` tries for symmetric groups, as shares of the group's largest value."""

ASYMMETRIC_RANGES = (1.0, 0.9, 0.8, 0.68)
"""Ranges that `fit_groups` tries for asymmetric groups, as shares of the distance between the
group's smallest and largest value."""

_CHUNK_VALUES = 1 << 18
"""Number of weight values that are fitted at once: 1 MB in float32, so they stay in the cache."""

_UNUSED = 1e-6
"""Share of the mean importance below which a column does not count: its input is always zero."""

_READ_ROWS = 8
"""Step between the rows that `relative_error` reads."""

_SMALLEST = 2.0**-24
"""Smallest positive float16."""


@dataclass(frozen=True, slots=True)
class Rounding:
    """Fits the scales of int4 weights when NNCF compresses them.

    Attributes:
        measured: What was measured of each layer, by layer name. A layer whose inputs were not
            is fitted by the size of its weights.
        rounded: Weights that `gptq` has rounded already, by layer name.
    """

    measured: Mapping[str, LayerSensitivity] = field(default_factory=dict)
    rounded: Mapping[str, FittedWeight] = field(default_factory=dict)

    def fit(self, layer: str, weight: Any, config: Any) -> Any:
        """Return NNCF's ``CompressedWeight`` with scales and zero points for one weight.

        It holds the integers as well where `gptq` has chosen them.

        Args:
            layer: Its name in the checkpoint, without ``.weight``.
            weight: NNCF's tensor of shape [..., rows, columns].
            config: NNCF's ``WeightCompressionConfig`` for it.
        """
        if layer in self.rounded:
            return self.rounded[layer].read()
        import torch
        from nncf.quantization.algorithms.weight_compression.parameters import CompressedWeight
        from nncf.tensor import Tensor as NncfTensor

        whole_rows = config.group_size == -1
        columns = weight.shape[-1]
        size = columns if whole_rows else config.group_size
        shape = (*weight.shape[:-1], *(() if whole_rows else (columns // size,)), 1)
        known = self.measured.get(layer)
        moments = None if known is None else known.moments
        scales, zero_points = fit_groups(
            _as_torch(weight).reshape(-1, columns),
            size,
            symmetric=not config.is_asym_mode,
            moments=None if moments is None else torch.from_numpy(moments),
        )
        return CompressedWeight(
            None,
            NncfTensor(scales.reshape(shape)),
            None if zero_points is None else NncfTensor(zero_points.reshape(shape)),
        )


def fit_groups(
    weight: Tensor,
    group_size: int,
    *,
    symmetric: bool,
    moments: Tensor | None = None,
) -> tuple[Any, Any]:
    """Return scale and zero point of every group, as NumPy arrays.

    Args:
        weight: Matrix of shape [rows, columns], in any floating-point type.
        group_size: Number of values that share a scale; divides ``columns``.
        symmetric: True for integers from -8 to 7 without zero points; False for 0 to 15 with.
        moments: Mean square of each column's input, shape [columns]. It is the importance of the
            column's weights: the error in the layer's output grows with it. None takes the
            absolute value of each weight, because large weights matter more for the output.

    Returns:
        Scales, float32 of shape [rows, groups, 1] with values that float16 holds exactly. Zero
        points, int32 of the same shape; None for symmetric groups.
    """
    import torch

    rows, columns = weight.shape
    groups = columns // group_size
    scales = torch.empty(rows, groups, 1)
    zero_points = None if symmetric else torch.empty(rows, groups, 1)
    shared = None
    if moments is not None:
        shared = moments.float().reshape(1, groups, group_size)
        used = shared > shared.mean() * _UNUSED
        shared = shared + shared.mean() * _UNUSED
    step = max(1, _CHUNK_VALUES // columns)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        values = weight[part].float().reshape(-1, groups, group_size)
        importance = values.abs() if shared is None else shared
        if shared is not None:
            values = torch.where(used, values, 0.0)  # NNCF clips what is outside the range
        if zero_points is None:
            scales[part] = _fit_symmetric(values, importance)
        else:
            scales[part], zero_points[part] = _fit_asymmetric(values, importance)
    return scales.numpy(), None if zero_points is None else zero_points.int().numpy()


def dequantize(
    rows: Tensor, group_size: int, scales: Any, zero_points: Any, *, symmetric: bool
) -> Tensor:
    """Return float32 rows of shape [rows, columns], rounded with given scales and zero points."""
    import torch

    scale = torch.from_numpy(scales)
    levels = rows.reshape(len(rows), -1, group_size) / scale
    if symmetric:
        return levels.round_().clamp_(-8, 7).mul_(scale).reshape(rows.shape)
    zero_point = torch.from_numpy(zero_points)
    levels = levels.add_(zero_point).round_().clamp_(0, 15)
    return levels.sub_(zero_point).mul_(scale).reshape(rows.shape)


def round_by_extremes(rows: Tensor, group_size: int, *, symmetric: bool) -> Tensor:
    """Return float32 rows of shape [rows, columns] as int4 holds them with NNCF's scales."""
    values = rows.reshape(rows.shape[0], -1, group_size)
    if symmetric:
        scale = _signed_extreme(values) / 8
        levels = (values / scale).round_().clamp_(-8, 7)
        return levels.mul_(scale).reshape(rows.shape)
    low = values.amin(-1, keepdim=True).clamp_(max=0)
    high = values.amax(-1, keepdim=True).clamp_(min=0)
    scale = ((high - low) / 15).clamp_(min=_SMALLEST)
    zero_point = (-low / scale).round_()
    levels = (values / scale).add_(zero_point).round_().clamp_(0, 15)
    return levels.sub_(zero_point).mul_(scale).reshape(rows.shape)


def relative_error(weight: Any, compressed: Any) -> float:
    """Return the norm of a weight's rounding error, divided by the weight's own norm.

    Every eighth row is read, which is enough for a layer's figure.

    Args:
        weight: NNCF's tensor of shape [..., rows, columns].
        compressed: NNCF's ``CompressedWeight`` of it.
    """
    import torch

    rows = _as_torch(weight)
    columns = rows.shape[-1]
    rows = rows.reshape(-1, columns)[::_READ_ROWS].float()
    scale = compressed.scale.as_numpy_tensor().data
    groups = scale.size // math.prod(weight.shape[:-1])

    def read(part: Any, size: int) -> Tensor:
        values = part.as_numpy_tensor().data.reshape(-1, groups, size)
        return torch.from_numpy(values[::_READ_ROWS]).float()

    levels = read(compressed.tensor, columns // groups)
    if compressed.zero_point is not None:
        levels -= read(compressed.zero_point, 1)
    scales = read(compressed.scale, 1)
    error = (levels * scales).reshape(rows.shape) - rows
    return float(error.norm() / rows.norm().clamp(min=_SMALLEST))


def _signed_extreme(values: Tensor) -> Tensor:
    """Return the value of largest magnitude of each group with its sign changed; never 0."""
    import torch

    low = values.amin(-1, keepdim=True)
    high = values.amax(-1, keepdim=True)
    extreme = torch.where(-low >= high, -low, -high)
    return torch.where(extreme.abs() < 8 * _SMALLEST, 8 * _SMALLEST, extreme)


def _fit_symmetric(values: Tensor, importance: Tensor) -> Tensor:
    """Return scales of shape [rows, groups, 1] for groups of shape [rows, groups, size].

    The sign of a scale is NNCF's: the value of largest magnitude becomes -8, because there is
    no 8.
    """
    widest = _signed_extreme(values) / 8
    best = _Best(values, importance, widest)
    for share in SYMMETRIC_RANGES:
        best.offer((values / (widest * share)).round_().clamp_(-8, 7))
    return best.scale


def _fit_asymmetric(values: Tensor, importance: Tensor) -> tuple[Tensor, Tensor]:
    """Return scales and zero points of shape [rows, groups, 1]."""
    low = values.amin(-1, keepdim=True).clamp_(max=0)
    high = values.amax(-1, keepdim=True).clamp_(min=0)
    widest = ((high - low) / 15).clamp_(min=_SMALLEST)
    best = _Best(values, importance, widest, (-low / widest).round_().clamp_(0, 15))
    for share in ASYMMETRIC_RANGES:
        scale = widest * share
        centred = (7.5 - (low + high) / (2 * scale)).round_()
        for shift in (-1, 0, 1):
            zero_point = (centred + shift).clamp_(0, 15)
            levels = (values / scale).add_(zero_point).round_().clamp_(0, 15)
            best.offer(levels.sub_(zero_point), zero_point)
    assert best.zero_point is not None
    return best.scale, best.zero_point


class _Best:
    """The best scale and zero point of each group so far.

    For fixed integers q the weighted error is least at scale = sum(h q w) / sum(h q q), and is
    then smaller than sum(h w w) by sum(h q w) ** 2 / sum(h q q), the gain.
    """

    def __init__(
        self, values: Tensor, importance: Tensor, scale: Tensor, zero_point: Tensor | None = None
    ) -> None:
        """Begin with the scale that is kept where no integers are better, as for zeros alone."""
        self._weighted = values * importance
        self._importance = importance
        self.scale = _as_fp16(scale)
        self.zero_point = zero_point
        self._gain = self.scale * 0

    def offer(self, integers: Tensor, zero_point: Tensor | None = None) -> None:
        """Keep the scale for ``integers`` in the groups where it is the best."""
        import torch

        with_values = (integers * self._weighted).sum(-1, keepdim=True)
        with_itself = (integers.square_() * self._importance).sum(-1, keepdim=True)
        scale = _as_fp16(with_values / with_itself.clamp_(min=1e-30))
        gain = with_values.square() / with_itself
        better = (gain > self._gain) & (scale.abs() >= _SMALLEST)
        if zero_point is not None:
            better &= scale > 0
            self.zero_point = torch.where(better, zero_point, self.zero_point)
        self.scale = torch.where(better, scale, self.scale)
        self._gain = torch.where(better, gain, self._gain)


def _as_fp16(scale: Tensor) -> Tensor:
    """Round to float16, in which the model stores scales."""
    return scale.half().float()


def _as_torch(weight: Any) -> Tensor:
    """Return the values of NNCF's tensor, which holds an OpenVINO tensor or a NumPy array."""
    import numpy as np
    import torch

    held = weight.data
    if isinstance(held, np.ndarray):
        return torch.from_numpy(held)
    if held.element_type.get_type_name() == "bf16":  # NumPy has no such type
        return torch.from_numpy(held.data.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(held.data)
