"""`TokenRequest`, the engine's input, and `TokenStream`, its output: ids as they are generated."""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields

from ..errors import GenerationError
from .options import Sampling

TopLogprobs = tuple[tuple[int, float], ...]
"""Ids with their log-probabilities, the likeliest first."""

_LOGGER = logging.getLogger("phi3ov")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRequest:
    """What to generate.

    Attributes:
        prompt_ids: The prompt, at least one id.
        max_new_tokens: The most ids to produce, the stop id included.
        stop_ids: Ids that end the answer; the one that did is the last id produced.
        sampling: How the next token is chosen.
        logprobs: Whether to fill `TokenStream.logprobs`.
        top_logprobs: How many alternatives per token `TokenStream.top_logprobs` gets; 0 is off.
        grammar: Rules in EBNF; the text of the ids follows the first, ``answer``. None is off.
    """

    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    stop_ids: frozenset[int]
    sampling: Sampling = Sampling()  # noqa: RUF009 - immutable
    logprobs: bool = False
    top_logprobs: int = 0
    grammar: str | None = None

    def asked(self) -> dict[str, object]:
        """Return, by name, what this request asks for beyond greedy decoding."""
        values = {each.name: getattr(self.sampling, each.name) for each in fields(self.sampling)}
        values |= {name: getattr(self, name) for name in ("logprobs", "top_logprobs", "grammar")}
        neutral = {each.name: each.default for each in (*fields(self.sampling), *fields(self))}
        return {name: value for name, value in values.items() if value != neutral[name]}


class TokenStream(Iterator[list[int]]):
    """Ids of one answer: an engine's thread puts them in, one consumer reads them with `read`.

    Looking at a property changes nothing. `cancel` may be called from a signal handler: nothing
    here takes a lock that is not reentrant.

    Attributes:
        request: What was asked for.
        cached_tokens: Prompt ids that the engine did not have to read again; right once the
            first ids have come.
        logprobs: If the request asks for them: the log-probability of each id put so far,
            in the same order. An engine adds to it before it puts the ids.
        top_logprobs: Likewise, for each id the likeliest ids with their log-probabilities.
        begun: Whether the engine works on it; until then it can end without the engine.
        timed_out: Whether `expire` cancelled it because its time was over.
        asked_at: When it was opened, as ``time.perf_counter`` counts.
        put_at: When each chunk was put.
    """

    def __init__(self, request: TokenRequest, *, timeout_seconds: float | None = None) -> None:
        """Open the stream for ``request``; its time, if limited, runs from now."""
        self.request = request
        self.cached_tokens = 0
        self.logprobs: list[float] = []
        self.top_logprobs: list[TopLogprobs] = []
        self.begun = False
        self.timed_out: bool = False
        self.asked_at: float = time.perf_counter()
        self.put_at: list[float] = []
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
        """Return the next ids, ``[]`` if none come in time, None at the end.

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
        # A KeyboardInterrupt may have swallowed the last chunk; the engine may be busy with a long
        # step, which a reader does not wait for.
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
        """Wait until the engine has ended it, it was cancelled, or its time is over.

        For a consumer that wants the whole answer: no token wakes it up.
        """
        while not self._is_over:
            try:
                self._over.get(timeout=self._nap_seconds())
            except queue.Empty:
                self.expire()

    def add_listener(self, wake: Callable[[], None], *, only_end: bool = False) -> None:
        """Call ``wake`` when `read` may have something new, on the thread that causes it.

        Args:
            wake: Must not wait for anything.
            only_end: Call it when `wait_for_end` would return, not for each chunk.
        """
        (self._end_listeners if only_end else self._listeners).append(wake)

    def remove_listener(self, wake: Callable[[], None]) -> None:
        """Undo `add_listener` for each chunk."""
        self._listeners.remove(wake)

    @property
    def remaining_seconds(self) -> float | None:
        """Time left; None if it is not limited, or the stream was cancelled."""
        if self._deadline is None or self._cancelled:
            return None
        return max(0.0, self._deadline - time.monotonic())

    # --- anybody's side -----------------------------------------------------------------------

    def cancel(self) -> None:
        """Ask the engine to stop; it ends the stream within one token. For any thread."""
        self._cancelled = True
        self._tell([])
        self._tell_end()

    @property
    def cancelled(self) -> bool:
        """Whether it was cancelled, or its time is over; engines ask after each token."""
        return self._cancelled or self.remaining_seconds == 0

    def expire(self) -> None:
        """Cancel it if its time is over."""
        if self.remaining_seconds == 0:
            self.timed_out = True
            self.cancel()

    # --- the engine's side --------------------------------------------------------------------

    def put(self, token_ids: list[int]) -> None:
        """Add ids, those of one pass over the weights; for the engine."""
        if token_ids:
            self.put_at.append(time.perf_counter())
            self._tell(token_ids)

    def end(self, error: BaseException | None = None) -> None:
        """End the stream, with the error that ended it if there was one; for the engine."""
        self._tell(error)
        self._engine_ended = True
        self._tell_end()

    def _next_chunk(self, wait_seconds: float) -> list[int] | BaseException | None:
        """Return what the engine said next; ``[]``, which also wakes readers, says nothing."""
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
        except Exception:  # the engine's thread serves other streams, too
            _LOGGER.exception("A listener of a stream failed.")
