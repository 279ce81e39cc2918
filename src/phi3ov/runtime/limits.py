"""Request limits of a loaded model, `RequestLimits`, and its current load, `RequestLoad`."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import QueueFullError
from ..validation import require_integer


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLoad:
    """Number of open requests of a loaded model at one moment.

    Attributes:
        running: Requests that are being answered.
        waiting: Requests in the queue.
        waiting_tokens: Prompt tokens of the requests in the queue.
    """

    running: int
    waiting: int
    waiting_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """Limits on the running and waiting requests of a loaded model.

    Requests are served first come, first served. If the queue is full, a new request raises
    `QueueFullError`, or waits for a place (`GenerationOptions.on_full_queue`). The candidates of
    one request enter the queue together or not at all.

    Attributes:
        max_running: Maximum number of requests that run at the same time. None for the engine's
            default: 32 for ``engine="worker"``, beyond which a CPU gains little, and 1 for the
            other engines, which support no other value.
        max_waiting: Maximum number of requests in the queue, at least 0.
        max_waiting_tokens: Maximum number of prompt tokens in the queue, at least 1; None for no
            limit. A long prompt can take minutes on a CPU, so a limit on the number of requests
            alone does not bound the wait.

    Raises:
        OptionError: A number is out of range.

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
        """Check that the queue has room for one more request.

        Args:
            load: The engine's current load.
            max_running: Maximum number of requests that run at the same time.
            prompt_tokens: Number of tokens of the new request's prompt.

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
