"""The fitted scale of a group has the least weighted error, checked against a slow search."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from phi3ov.exporter.rounding import fit_groups, round_by_extremes


def draw(rows: int = 6, columns: int = 128, seed: int = 0) -> torch.Tensor:
    """Return weights with the tails that trained models have, each row of another size."""
    random = np.random.default_rng(seed)
    values = random.standard_t(8, size=(rows, columns)) * random.uniform(0.1, 2, size=(rows, 1))
    return torch.tensor(values, dtype=torch.float32)


def weighted_error(
    values: np.ndarray[Any, Any], importance: np.ndarray[Any, Any], scale: float, zero: int | None
) -> float:
    """Return the error of one group, value by value."""
    total = 0.0
    for value, weight in zip(values.tolist(), importance.tolist(), strict=True):
        if zero is None:
            level = min(max(round(value / scale), -8), 7)
        else:
            level = min(max(round(value / scale) + zero, 0), 15) - zero
        total += weight * (level * scale - value) ** 2
    return total


def slow_best(values: np.ndarray[Any, Any], importance: np.ndarray[Any, Any], zeros: Any) -> float:
    """Return the least error over 400 scales, of both signs if there are no zero points."""
    widest = float(np.abs(values).max())
    signs = (1, -1) if list(zeros) == [None] else (1,)
    scales = np.linspace(widest / 40, widest / 4, 400)
    return min(
        weighted_error(values, importance, sign * float(np.float16(scale)), zero)
        for scale, zero, sign in itertools.product(scales, zeros, signs)
    )


@pytest.mark.parametrize("with_moments", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_error_is_close_to_the_least_that_a_slow_search_finds(
    symmetric: bool, with_moments: bool
) -> None:
    """Within a seventh of the best of 400 scales and every zero point, over all groups together."""
    weight = draw(6, 64)
    moments = torch.rand(64, generator=torch.Generator().manual_seed(1)) ** 2
    scales, zeros = fit_groups(
        weight, 32, symmetric=symmetric, moments=moments if with_moments else None
    )
    importance = moments.expand_as(weight) if with_moments else weight.abs()
    ours = best = 0.0
    for row, group in itertools.product(range(6), range(2)):
        part = slice(32 * group, 32 * group + 32)
        values, weights = weight[row, part].numpy(), importance[row, part].numpy()
        zero = None if zeros is None else int(zeros[row, group, 0])
        ours += weighted_error(values, weights, float(scales[row, group, 0]), zero)
        best += slow_best(values, weights, [None] if symmetric else range(16))
    assert best <= ours * 1.0001
    assert ours < 1.15 * best


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("symmetric", [True, False])
def test_no_group_is_worse_than_by_its_extremes(symmetric: bool, group_size: int) -> None:
    """The search begins where NNCF ends."""
    weight = draw(24)
    scales, zeros = fit_groups(weight, group_size, symmetric=symmetric)
    by_extremes = round_by_extremes(weight, group_size, symmetric=symmetric)
    shape = (24, -1, group_size)
    groups, plain = weight.reshape(shape), by_extremes.reshape(shape)
    scale, zero = torch.tensor(scales), 0 if zeros is None else torch.tensor(zeros)
    low, high = (-8, 7) if symmetric else (0, 15)
    fitted = ((groups / scale + zero).round().clamp(low, high) - zero) * scale
    before = (groups.abs() * (plain - groups) ** 2).sum(-1)
    after = (groups.abs() * (fitted - groups) ** 2).sum(-1)
    assert (after <= before * 1.02 + 1e-9).all()  # a scale in float16 may lose a little
    assert (after / before).mean() < 0.985


@pytest.mark.parametrize("symmetric", [True, False])
def test_columns_without_input_do_not_count(symmetric: bool) -> None:
    """Weights whose inputs are always zero may be rounded to anything."""
    weight = draw(4, 32)
    weight[:, 5] = 50.0
    moments = torch.ones(32)
    moments[5] = 0.0
    scales, zeros = fit_groups(weight, 32, symmetric=symmetric, moments=moments)
    without = torch.cat([weight[:, :5], weight[:, 6:]], dim=1)
    largest = without.abs().amax()
    assert (np.abs(scales) * (8 if zeros is None else 16) < 2.5 * float(largest)).all()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    "weight",
    [
        torch.zeros(2, 32),
        torch.full((2, 32), 1e-9),
        torch.full((2, 32), 3.0),
        torch.full((2, 32), -3.0),
        torch.eye(32)[:2] * 1e4,
        draw(2, 32).bfloat16(),
        draw(2, 32).half(),
    ],
    ids=["zeros", "tiny", "constant", "negative", "one", "bf16", "fp16"],
)
def test_every_group_gets_finite_numbers_that_float16_holds(
    weight: torch.Tensor, symmetric: bool
) -> None:
    """No scale is zero, infinite or not a number, and zero points fit four bits."""
    scales, zeros = fit_groups(weight, 32, symmetric=symmetric)
    assert np.isfinite(scales).all()
    assert (scales != 0).all()
    assert (scales.astype(np.float16).astype(np.float32) == scales).all()
    if zeros is not None:
        assert ((zeros >= 0) & (zeros <= 15)).all()
