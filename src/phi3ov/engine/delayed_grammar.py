"""A grammar that applies from one token on: `submit_delayed`, on any engine that takes grammars.

The request runs without the grammar, and the token ends it. Then its prompt and its ids so far
are submitted again, with the grammar; the engine's cache holds them, so little is computed twice.
A reader sees one stream. A trigger of openvino-genai's structural tags would do this in one
request, but triggers are texts, and the token that opens a tool call has none.
"""

from __future__ import annotations

import threading
import weakref
from dataclasses import replace
from typing import TYPE_CHECKING

from ..answer.token_stream import TokenRequest, TokenStream
from ..errors import StateError

if TYPE_CHECKING:
    from .protocol import Engine


def submit_delayed(
    engine: Engine,
    request: TokenRequest,
    *,
    after: int,
    timeout_seconds: float | None = None,
    wait: bool = False,
) -> TokenStream:
    """Submit a request whose grammar applies to what comes after the token ``after``.

    The second part waits for its place in the queue, however full that is. Its tokens are drawn
    with the request's seed again, and its penalties for repetition take the first part for prompt.

    Args:
        engine: Takes grammars.
        request: With the grammar.
        after: The id. Without it the grammar never applies.
        timeout_seconds: As for `Engine.submit`, for both parts together.
        wait: As for `Engine.submit`, for the first part.

    Raises:
        OptionError, QueueFullError, StateError: As for `Engine.submit`.
    """
    stream = _DelayedStream(engine, request, after, timeout_seconds)
    stream.start(wait=wait)
    return stream


class _DelayedStream(TokenStream):
    """Passes on the ids of one request, and then of a second one."""

    def __init__(
        self, engine: Engine, request: TokenRequest, after: int, timeout_seconds: float | None
    ) -> None:
        super().__init__(request, timeout_seconds=timeout_seconds)
        self._engine = weakref.ref(engine)  # an open stream must not keep the model alive
        self._after = after
        self._part: TokenStream | None = None
        self._is_second = False
        self._ids: list[int] = []
        self._passed = 0  # ids of the current part
        self._busy = threading.Lock()  # held by the thread that passes on; others never wait
        self._again = True

    def start(self, *, wait: bool) -> None:
        """Submit the first part."""
        stop_ids = self.request.stop_ids | {self._after}
        first = replace(self.request, grammar=None, stop_ids=stop_ids)
        self._submit(first, wait=wait)

    def cancel(self) -> None:
        """Cancel the part that runs; see `TokenStream.cancel`."""
        super().cancel()
        part = self._part
        if part is not None:
            part.cancel()

    def _submit(self, request: TokenRequest, *, wait: bool) -> None:
        engine = self._engine()
        if engine is None:
            raise StateError("The model was closed meanwhile.")
        part = engine.submit(request, timeout_seconds=self.remaining_seconds, wait=wait)
        self._part, self._passed = part, 0
        part.add_listener(self._wake)
        part.add_listener(self._wake, only_end=True)
        if self._cancelled:
            part.cancel()
        self._wake()

    def _wake(self) -> None:
        """Pass on what there is; on the engine's thread, and on those that submit and cancel."""
        self._again = True
        while self._again and self._busy.acquire(blocking=False):
            try:
                self._again = False
                self._pass_on()
            except BaseException as error:  # noqa: BLE001 - it belongs to the stream's reader
                self.end(error)
            finally:
                self._busy.release()

    def _pass_on(self) -> None:
        part = self._part
        if part is None:
            return
        while chunk := part.read():
            self.begun = part.begun
            self.cached_tokens = self.cached_tokens if self._is_second else part.cached_tokens
            new = slice(self._passed, self._passed + len(chunk))
            self.logprobs += part.logprobs[new]
            self.top_logprobs += part.top_logprobs[new]
            self._passed = new.stop
            self._ids += chunk
            self.put(chunk)
        if chunk is None:
            self._part = None
            self._end_part(part)

    def _end_part(self, part: TokenStream) -> None:
        left = self.request.max_new_tokens - len(self._ids)
        triggered = self._ids[-1:] == [self._after] and not self._is_second
        if part.cancelled or not triggered or left < 1 or self._after in self.request.stop_ids:
            self.expire()
            self.end()
            return
        self._is_second = True
        prompt_ids = (*self.request.prompt_ids, *self._ids)
        self._submit(replace(self.request, prompt_ids=prompt_ids, max_new_tokens=left), wait=True)
