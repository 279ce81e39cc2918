"""Chooses which layers become int4, by what int4 costs there and what it saves.

`sensitivity` measures the cost. The choice takes the layer with the least cost per saved byte
first, until the share of int4 parameters or the size that the recipe asks for is reached.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A layer that may become int4.

    Attributes:
        name: Its name in the checkpoint, without ``.weight``.
        parameters: Number of values.
        effect: What int4 costs here, in nats per token.
        int4_bytes: Its size as int4, scales and zero points included.
        backup_bytes: Its size in the backup precision.
    """

    name: str
    parameters: int
    effect: float
    int4_bytes: int
    backup_bytes: int

    @property
    def saved_bytes(self) -> int:
        """What int4 saves here."""
        return self.backup_bytes - self.int4_bytes

    @property
    def price(self) -> float:
        """Effect per saved byte, to three digits, so that rounding errors cannot change ranks."""
        return float(f"{self.effect / self.saved_bytes:.2e}")


def choose_by_share(candidates: Iterable[Candidate], share: float) -> frozenset[str]:
    """Return the layers for int4 so that they hold at most ``share`` of the parameters.

    Example:
        >>> layers = [
        ...     Candidate(name=name, parameters=4, effect=e, int4_bytes=2, backup_bytes=4)
        ...     for name, e in (("a", 0.3), ("b", 0.1), ("c", 0.2))
        ... ]
        >>> sorted(choose_by_share(layers, 0.7))
        ['b', 'c']
    """
    ranked = _rank(candidates)
    room = share * sum(candidate.parameters for candidate in ranked)
    chosen = set()
    for candidate in ranked:
        if candidate.parameters <= room:
            chosen.add(candidate.name)
            room -= candidate.parameters
    return frozenset(chosen)


def choose_by_bytes(candidates: Iterable[Candidate], size_bytes: float) -> frozenset[str] | None:
    """Return the layers for int4 so that all candidates together need at most ``size_bytes``.

    Returns:
        The layers; None if even int4 everywhere needs more.

    Example:
        >>> layers = [
        ...     Candidate(name=name, parameters=4, effect=e, int4_bytes=2, backup_bytes=4)
        ...     for name, e in (("a", 0.3), ("b", 0.1), ("c", 0.2))
        ... ]
        >>> sorted(choose_by_bytes(layers, 8))
        ['b', 'c']
        >>> choose_by_bytes(layers, 5) is None
        True
    """
    ranked = _rank(candidates)
    excess = sum(candidate.backup_bytes for candidate in ranked) - size_bytes
    chosen: list[Candidate] = []
    for candidate in ranked:
        if excess <= 0:
            break
        chosen.append(candidate)
        excess -= candidate.saved_bytes
    if excess > 0:
        return None
    for candidate in sorted(chosen, key=lambda candidate: -candidate.effect):
        if candidate.saved_bytes <= -excess:  # the last layers may have saved more than needed
            chosen.remove(candidate)
            excess += candidate.saved_bytes
    return frozenset(candidate.name for candidate in chosen)


def _rank(candidates: Iterable[Candidate]) -> Sequence[Candidate]:
    return sorted(candidates, key=lambda candidate: (candidate.price, candidate.name))
