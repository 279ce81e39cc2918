"""`RequestLimits`: how many requests an engine takes; `RequestLoad`: how many it has."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import QueueFullError
from ..validation import require_integer


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLoad:
    """What a loaded model is busy with at one moment.

    Attributes:
        running: Requests that are being answered.
        waiting: Requests that wait for their turn.
        waiting_tokens: Prompt tokens of the waiting requests.
    """

    running: int
    waiting: int
    waiting_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """How many requests a loaded model answers together, and how many may wait behind them.

    Requests are served first come, first served. One that finds the queue full raises
    `QueueFullError`, or waits where it says so (`GenerationOptions.on_full_queue`). The candidates
    of one request enter the queue together or not at all.

    Attributes:
        max_running: Requests that are answered together. None is the engine's own number: 32
            for ``engine="worker"``, beyond which a CPU gains little, and 1 for the others,
            which take no other.
        max_waiting: Requests that may wait for their turn, at least 0.
        max_waiting_tokens: Prompt tokens that may wait, at least 1; None for any number. One long
            prompt takes a CPU minutes, so a number of requests alone does not bound the wait.

    Raises:
        OptionError: A number is out of its range.

    Example:
        >>> RequestLimits(max_running=8).max_waiting
        256
    """

    max_running: int | None = None
    max_waiting: int = 256
    max_waiting_tokens: int | None = None

    def __post_init__(self) -> None:
        require_integer("max_waiting", self.max_waiting, least=0)
        if self.max_running is not None:
            require_integer("max_running", self.max_running, least=1)
        if self.max_waiting_tokens is not None:
            require_integer("max_waiting_tokens", self.max_waiting_tokens, least=1)

    def check(self, load: RequestLoad, *, max_running: int, prompt_tokens: int) -> None:
        """Refuse one more request where the queue is full.

        Args:
            load: What the engine has.
            max_running: How many requests the engine answers together.
            prompt_tokens: Tokens of the new request's prompt.

        Raises:
            QueueFullError: Too many requests, or too many prompt tokens, would wait.
        """
        requests = load.running + load.waiting
        if requests >= max_running + self.max_waiting:
            raise QueueFullError(requests)
        if self.max_waiting_tokens is None or requests < max_running:
            return
        if load.waiting_tokens + prompt_tokens > self.max_waiting_tokens:
            raise QueueFullError(requests, waiting_tokens=load.waiting_tokens)
