"""Input and output of an engine: `TokenRequest`, and `TokenStream` of generated ids."""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields

from ..errors import GenerationError
from .options import Sampling

TopLogprobs = tuple[tuple[int, float], ...]
"""Ids with their log-probabilities, most likely first."""

_LOGGER = logging.getLogger("phi3ov")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRequest:
    """A generation request to an engine.

    Attributes:
        prompt_ids: The prompt, at least one id.
        max_new_tokens: Maximum number of generated ids, including the stop id.
        stop_ids: Ids that end the answer. The engine emits the stop id as the last id.
        sampling: Sampling parameters.
        logprobs: Whether to fill `TokenStream.logprobs`.
        top_logprobs: Number of alternatives per token in `TokenStream.top_logprobs`; 0 is off.
        grammar: Rules in EBNF; the generated text must match the first, ``answer``. None is off.
    """

    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    stop_ids: frozenset[int]
    sampling: Sampling = Sampling()  # noqa: RUF009 - immutable
    logprobs: bool = False
    top_logprobs: int = 0
    grammar: str | None = None

    def asked(self) -> dict[str, object]:
        """Return the options of this request that differ from greedy decoding, by name."""
        values = {each.name: getattr(self.sampling, each.name) for each in fields(self.sampling)}
        values |= {name: getattr(self, name) for name in ("logprobs", "top_logprobs", "grammar")}
        neutral = {each.name: each.default for each in (*fields(self.sampling), *fields(self))}
        return {name: value for name, value in values.items() if value != neutral[name]}


class TokenStream(Iterator[list[int]]):
    """Queue of one answer's ids: the engine's thread puts them, one consumer reads them.

    Reading a property has no side effect. `cancel` may be called from a signal handler, because
    no method takes a lock that is not reentrant.

    Attributes:
        request: The request.
        cached_tokens: Number of prompt ids found in the prefix cache; valid once the first ids
            have arrived.
        logprobs: If requested, the log-probability of each id put so far, in the same order. An
            engine adds to it before it puts the ids.
        top_logprobs: If requested, the most likely ids at each position, with their
            log-probabilities.
        begun: Whether the engine has begun the request; before that it can end without the
            engine.
        began_at: Time at which the request left the queue, by ``time.perf_counter``; None before.
        timed_out: Whether `expire` cancelled the stream because its time was over.
        asked_at: Time of creation, from ``time.perf_counter``.
        put_at: Time of each chunk.
        checked: With speculation, the number of draft tokens that each chunk's forward pass
            checked. An engine adds to it before it puts the ids.
    """

    def __init__(self, request: TokenRequest, *, timeout_seconds: float | None = None) -> None:
        """Open the stream for ``request``; the timeout, if any, starts now."""
        self.request = request
        self.cached_tokens = 0
        self.logprobs: list[float] = []
        self.top_logprobs: list[TopLogprobs] = []
        self.begun = False
        self.began_at: float | None = None
        self.timed_out: bool = False
        self.asked_at: float = time.perf_counter()
        self.put_at: list[float] = []
        self.checked: list[int] = []
        self._deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        self._chunks: queue.SimpleQueue[list[int] | BaseException | None] = queue.SimpleQueue()
        self._over: queue.SimpleQueue[None] = queue.SimpleQueue()  # Event.set is not reentrant
        self._is_over = False
        self._listeners: list[Callable[[], None]] = []
        self._end_listeners: list[Callable[[], None]] = []
        self._cancelled = False
        self._engine_ended = False
        self._ended = False

    # --- the consumer's side ------------------------------------------------------------------

    def read(self, wait_seconds: float = 0.0) -> list[int] | None:
        """Return the next ids; ``[]`` if none arrive within ``wait_seconds``, None at the end.

        Raises:
            GenerationError: The engine failed.
        """
        if self._ended:
            return None
        self.expire()
        chunk = self._next_chunk(min(wait_seconds, self._nap_seconds()))
        self.expire()
        if chunk:
            if isinstance(chunk, list):
                return chunk
            self._ended = True
            if isinstance(chunk, GenerationError):
                raise chunk
            raise GenerationError(f"The engine failed: {chunk}") from chunk
        # A KeyboardInterrupt may have lost the last chunk. After a timeout, the engine may be busy
        # with a long step, and a reader must not wait for it.
        is_lost = chunk == [] and self._engine_ended and self._chunks.empty()
        self._ended = (
            chunk is None or is_lost or (self._cancelled and (self.timed_out or not self.begun))
        )
        return None if self._ended else []

    def __next__(self) -> list[int]:
        while not (chunk := self.read(0.5)):
            if chunk is None:
                raise StopIteration
        return chunk

    def wait_for_end(self) -> None:
        """Wait until the engine ends the stream, it is cancelled, or its time is over.

        This is for a consumer of the whole answer: single tokens do not wake it up.
        """
        while not self._is_over:
            try:
                self._over.get(timeout=self._nap_seconds())
            except queue.Empty:
                self.expire()

    @property
    def is_over(self) -> bool:
        """Whether `wait_for_end` returns at once."""
        return self._is_over

    def add_listener(self, wake: Callable[[], None], *, only_end: bool = False) -> None:
        """Call ``wake`` when `read` may return something new, on the thread that causes it.

        Args:
            wake: The callback; must not block.
            only_end: Call it only when `wait_for_end` would return, not for each chunk.
        """
        (self._end_listeners if only_end else self._listeners).append(wake)

    def remove_listener(self, wake: Callable[[], None]) -> None:
        """Remove a listener that was added for each chunk."""
        self._listeners.remove(wake)

    @property
    def remaining_seconds(self) -> float | None:
        """Seconds until the timeout; None without a timeout, or if the stream was cancelled."""
        if self._deadline is None or self._cancelled:
            return None
        return max(0.0, self._deadline - time.monotonic())

    # --- both sides ---------------------------------------------------------------------------

    def cancel(self) -> None:
        """Ask the engine to end the stream within one token; safe from any thread."""
        self._cancelled = True
        self._tell([])
        self._tell_end()

    @property
    def cancelled(self) -> bool:
        """Whether the stream was cancelled or timed out; engines check this after each token."""
        return self._cancelled or self.remaining_seconds == 0

    def expire(self) -> None:
        """Cancel the stream if its time is over."""
        if self.remaining_seconds == 0:
            self.timed_out = True
            self.cancel()

    # --- the engine's side --------------------------------------------------------------------

    def put(self, token_ids: list[int]) -> None:
        """Add the ids of one forward pass."""
        if token_ids:
            self.put_at.append(time.perf_counter())
            self._tell(token_ids)

    def end(self, error: BaseException | None = None) -> None:
        """End the stream, with the error that caused it, if any."""
        self._tell(error)
        self._engine_ended = True
        self._tell_end()

    def _next_chunk(self, wait_seconds: float) -> list[int] | BaseException | None:
        """Return the engine's next chunk, its error, or None at the end; ``[]`` for nothing new."""
        try:
            chunk = self._chunks.get(block=wait_seconds > 0, timeout=wait_seconds or None)
            while chunk == []:
                chunk = self._chunks.get_nowait()
        except queue.Empty:
            return []
        return chunk

    def _nap_seconds(self) -> float:
        """Longest single wait: short enough for Windows to see Ctrl-C."""
        left = self.remaining_seconds
        return 0.5 if left is None else min(0.5, max(left, 0.001))

    def _tell(self, chunk: list[int] | BaseException | None) -> None:
        self._chunks.put(chunk)
        _wake_all(self._listeners)

    def _tell_end(self) -> None:
        self._is_over = True
        self._over.put(None)
        _wake_all(self._end_listeners)


def _wake_all(listeners: Sequence[Callable[[], None]]) -> None:
    for wake in tuple(listeners):
        try:
            wake()
        except Exception:  # the engine's thread also serves other streams
            _LOGGER.exception("A listener of a stream failed.")
