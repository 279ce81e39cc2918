"""The choice of int4 layers: cheap ones first, within the share or size that is asked for."""

from __future__ import annotations

import itertools
import random

import pytest

from phi3ov.exporter.layer_choice import Candidate, choose_by_bytes, choose_by_share


def draw(count: int, seed: int, *, equal: bool = False) -> list[Candidate]:
    """Return layers of drawn sizes and effects."""
    source = random.Random(seed)
    sizes = [1000 if equal else source.choice((500, 1000, 3000, 8000)) for _ in range(count)]
    return [
        Candidate(
            name=f"layer {number}",
            parameters=size,
            effect=source.expovariate(1.0),
            int4_bytes=size // 2 + size // 64,
            backup_bytes=size,
        )
        for number, size in enumerate(sizes)
    ]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.1, 0.6, 1.0])
def test_the_share_is_kept_and_used(share: float, seed: int) -> None:
    """Never more than asked, and no layer that is left out would still fit."""
    layers = draw(20, seed)
    chosen = choose_by_share(layers, share)
    total = sum(layer.parameters for layer in layers)
    used = sum(layer.parameters for layer in layers if layer.name in chosen)
    assert used <= share * total
    left = [layer.parameters for layer in layers if layer.name not in chosen]
    assert all(used + size > share * total for size in left)


@pytest.mark.parametrize("seed", range(5))
def test_layers_of_one_size_are_chosen_as_a_full_search_does(seed: int) -> None:
    """The set with the least effect of all sets with as many layers."""
    layers = draw(9, seed, equal=True)
    chosen = choose_by_share(layers, 0.6)
    best = min(
        itertools.combinations(layers, len(chosen)),
        key=lambda some: sum(layer.effect for layer in some),
    )
    assert chosen == {layer.name for layer in best}


@pytest.mark.parametrize("seed", range(20))
def test_a_size_in_bytes_is_reached_at_little_more_than_the_least_effect(seed: int) -> None:
    """Never larger than asked; the effect is near that of the best of all sets."""
    layers = draw(10, seed)
    everything = sum(layer.backup_bytes for layer in layers)
    target = 0.75 * everything
    chosen = choose_by_bytes(layers, target)
    assert chosen is not None

    def size(names: frozenset[str]) -> int:
        return sum(
            layer.int4_bytes if layer.name in names else layer.backup_bytes for layer in layers
        )

    def effect(names: frozenset[str]) -> float:
        return sum(layer.effect for layer in layers if layer.name in names)

    assert size(chosen) <= target
    sets = (
        frozenset(layer.name for layer in some)
        for count in range(len(layers) + 1)
        for some in itertools.combinations(layers, count)
    )
    best = min(effect(names) for names in sets if size(names) <= target)
    assert effect(chosen) <= 2 * best + 0.05


def test_a_size_below_int4_everywhere_is_refused_and_one_above_the_backup_needs_nothing() -> None:
    """The ends of what can be asked."""
    layers = draw(5, 0)
    smallest = sum(layer.int4_bytes for layer in layers)
    largest = sum(layer.backup_bytes for layer in layers)
    assert choose_by_bytes(layers, smallest - 1) is None
    assert choose_by_bytes(layers, smallest) == frozenset(layer.name for layer in layers)
    assert choose_by_bytes(layers, largest) == frozenset()


def test_differences_in_the_last_digits_do_not_change_the_order() -> None:
    """Sums in another order, by another number of threads, must not give another model."""
    layers = draw(12, 3)
    noisy = [
        Candidate(
            name=layer.name,
            parameters=layer.parameters,
            effect=layer.effect * (1 + 1e-6 * (-1) ** number),
            int4_bytes=layer.int4_bytes,
            backup_bytes=layer.backup_bytes,
        )
        for number, layer in enumerate(layers)
    ]
    assert choose_by_share(noisy, 0.5) == choose_by_share(layers, 0.5)
