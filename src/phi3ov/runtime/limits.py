"""How many requests an engine takes at once: `RequestLimits`."""

from __future__ import annotations

from dataclasses import dataclass

from ..validation import require_integer


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """How many requests a loaded model answers together, and how many may wait behind them.

    Requests are served first come, first served. One that finds the queue full raises
    `QueueFullError`, or waits where it says so (`GenerationOptions.on_full_queue`).

    Attributes:
        max_running: Requests that are answered together. None is the engine's own number: 32
            for ``engine="worker"``, beyond which a CPU gains little, and 1 for the others,
            which take no other.
        max_waiting: Requests that may wait for their turn, at least 0.

    Raises:
        OptionError: A number is out of its range.

    Example:
        >>> RequestLimits(max_running=8).max_waiting
        256
    """

    max_running: int | None = None
    max_waiting: int = 256

    def __post_init__(self) -> None:
        for name, value, least in (
            ("max_running", self.max_running, 1),
            ("max_waiting", self.max_waiting, 0),
        ):
            if value is None and name == "max_running":
                continue
            require_integer(name, value, least=least)
