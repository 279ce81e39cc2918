"""Answers of one request: start the model's streams, read or collect them, and cancel them.

The event loop never waits for the tokenizer or the engine: answers start on other threads. If a
client disconnects, its answers are cancelled in any state.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from ..answer.stream import Piece
from ..errors import GenerationError, QueueFullError
from .errors import ApiError, translate_error, unavailable

if TYPE_CHECKING:
    from starlette.types import Receive

    from ..answer.reply import Reply
    from ..answer.stream import ReplyStream
    from ..model import Phi3Model
    from .host import ModelHost
    from .metrics import ServerMetrics

StartStreams = Callable[["Phi3Model"], "Sequence[ReplyStream]"]
"""Encodes a request and starts its answers, all or none; a stream may hold several candidates."""

Result = TypeVar("Result")

PIECES_AT_ONCE = 64
"""Maximum number of pieces of one answer that are decoded before other requests get a turn."""

_POLL_SECONDS = 0.5
_ENCODERS = ThreadPoolExecutor(max_workers=2, thread_name_prefix="phi3ov-server-encode")
_SCORERS = ThreadPoolExecutor(max_workers=1, thread_name_prefix="phi3ov-server-score")
MOST_SCORING = 16
"""Maximum number of open requests for log-probabilities of prompts; more get a 429."""


class ClientGoneError(Exception):
    """The client has disconnected."""


class Answers:
    """The answers of one request: one, or several candidates."""

    def __init__(
        self, streams: Sequence[ReplyStream], host: ModelHost, metrics: ServerMetrics
    ) -> None:
        """Wrap streams that have been started."""
        self._started_streams = tuple(streams)  # dropping one would cancel its candidates
        self.streams: tuple[ReplyStream, ...] = tuple(
            candidate for stream in streams for candidate in stream.candidates or (stream,)
        )
        self._host = host
        self._metrics = metrics
        self._started = time.monotonic()
        self._ended = False
        host.running.add(self)

    @property
    def replies(self) -> list[Reply]:
        """The finished answers; all streams must have ended."""
        return [stream.reply for stream in self.streams]

    async def read(self) -> AsyncIterator[list[tuple[int, Piece | None]]]:
        """Yield new pieces with their answer's number; None marks the end of an answer.

        The more answers the server runs, the longer tokens are collected into one piece
        (`ModelHost.pause_seconds`).

        Raises:
            ApiError: The engine failed, or the time was over before anything was generated.
        """
        try:
            async for found in _read_side_by_side(self.streams, self._host.pause_seconds):
                for number, piece in found:
                    if piece is None:
                        self._require_begun(self.streams[number].reply)
                yield found
            self._note_end()
        except GenerationError as error:
            self._note_failure()
            raise translate_error(error) from error
        finally:
            await self.aclose()

    async def collect(self) -> list[Reply]:
        """Return the finished answers.

        Raises:
            ApiError: As `read`.
        """
        try:
            for stream in self.streams:
                self._require_begun(await _drain(stream))
            self._note_end()
        except GenerationError as error:
            self._note_failure()
            raise translate_error(error) from error
        finally:
            await self.aclose()
        return self.replies

    def cut_off(self) -> None:
        """End the answers now and keep the partial text; for a server that shuts down."""
        for stream in self.streams:
            stream.cancel()

    async def aclose(self) -> None:
        """Cancel answers that have not ended, without waiting for the engine."""
        self._host.running.discard(self)
        self.cut_off()
        open_streams = [stream for stream in self.streams if not stream.done]
        if open_streams:
            loop = asyncio.get_running_loop()
            for stream in open_streams:  # read to the end, to free its place in the engine
                loop.run_in_executor(None, partial(_close_quietly, stream))

    def _require_begun(self, reply: Reply) -> None:
        if reply.finish_reason == "timeout" and not reply.usage.completion_tokens:
            raise unavailable(
                "timeout_in_queue",
                "The time for the answer was over before its first token.",
                retry_after=self._host.retry_after_seconds(),
            )
        if reply.finish_reason == "cancelled" and not reply.usage.completion_tokens:
            raise unavailable("server_draining", "The server is shutting down.", retry_after=5)

    def _note_end(self) -> None:
        if not self._ended:
            self._ended = True
            self._host.note_duration(time.monotonic() - self._started)
            for reply in self.replies:
                self._metrics.note_reply(reply)

    def _note_failure(self) -> None:
        self._metrics.failures.inc()


def _close_quietly(stream: ReplyStream) -> None:
    with suppress(GenerationError):
        stream.close()


async def start_answers(
    host: ModelHost, start: StartStreams, metrics: ServerMetrics, *, scores: bool = False
) -> Answers:
    """Start a request's answers on another thread.

    Args:
        host: The model's host.
        start: Starts the answers.
        metrics: Counts the answers.
        scores: Whether ``start`` computes log-probabilities of prompts, which takes long. Such
            requests run one at a time, to keep threads free for encoding other requests.

    Raises:
        ApiError: The request cannot be answered, the queue is full, or no model is loaded.
    """
    model = host.require_model()
    loop = asyncio.get_running_loop()
    if scores and host.scoring >= MOST_SCORING:
        full = QueueFullError(host.scoring)
        raise translate_error(full, retry_after=host.retry_after_seconds())
    gone = threading.Event()

    def start_unless_gone() -> Sequence[ReplyStream]:
        return () if gone.is_set() else start(model)

    starting = loop.run_in_executor(_SCORERS if scores else _ENCODERS, start_unless_gone)
    if scores:
        host.scoring += 1
        starting.add_done_callback(lambda _: host.note_scored())
    try:
        streams = await asyncio.shield(starting)
    except asyncio.CancelledError:  # the client left during encoding
        gone.set()
        starting.add_done_callback(_cancel_started)
        raise
    except Exception as error:
        raise translate_error(error, retry_after=host.retry_after_seconds()) from error
    return Answers(streams, host, metrics)


def _cancel_started(starting: asyncio.Future[Sequence[ReplyStream]]) -> None:
    if not starting.cancelled() and starting.exception() is None:
        for stream in starting.result():
            stream.cancel()


async def _drain(stream: ReplyStream) -> Reply:
    """Return the reply, with few wake-ups, which would take CPU time from the engine."""
    loop = asyncio.get_running_loop()
    news = asyncio.Event()

    def wake() -> None:  # on the engine's thread
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(news.set)

    stream.add_listener(wake)
    while not stream.poll():
        with suppress(TimeoutError):
            await asyncio.wait_for(news.wait(), _POLL_SECONDS)
        news.clear()
    return stream.reply


class _News:
    """Wakes a coroutine when one of several streams may have new tokens.

    A token wakes it only while it waits, because each wake-up takes CPU time from the computation
    of the next token.
    """

    def __init__(self, streams: Sequence[ReplyStream]) -> None:
        """Listen to ``streams``, which are read on this event loop."""
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self._wants_tokens = False
        self._ended_before = 0
        self._tokens = [tokens for stream in streams for tokens in stream.token_streams]
        for tokens in self._tokens:
            tokens.add_listener(self._note_token)
            tokens.add_listener(self._wake, only_end=True)

    def expect(self) -> None:
        """Make new tokens from now on wake the next `wait`."""
        self._ended_before = self._count_ended()
        self._event.clear()
        self._wants_tokens = True

    async def wait(self) -> None:
        """Wait until a token has arrived since `expect`, or the time of an answer is over."""
        left = (tokens.remaining_seconds for tokens in self._tokens)
        soonest = min((seconds for seconds in left if seconds is not None), default=None)
        with suppress(TimeoutError):
            async with asyncio.timeout(soonest):
                await self._event.wait()

    async def pause(self, seconds: float) -> None:
        """Wait while tokens collect; the end of a stream ends the pause."""
        self._wants_tokens = False
        self._event.clear()
        if self._count_ended() == self._ended_before:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._event.wait()

    def _count_ended(self) -> int:
        return sum(tokens.is_over for tokens in self._tokens)

    def _note_token(self) -> None:  # on the engine's thread
        if self._wants_tokens:
            self._wants_tokens = False
            self._wake()

    def _wake(self) -> None:  # on the engine's thread
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._event.set)


async def _read_side_by_side(
    streams: Sequence[ReplyStream], pause_seconds: Callable[[], float]
) -> AsyncIterator[list[tuple[int, Piece | None]]]:
    """Yield new pieces of all streams, as `Answers.read` does."""
    news = _News(streams)
    loop = asyncio.get_running_loop()
    open_streams = dict(enumerate(streams))
    while open_streams:
        news.expect()
        found: list[tuple[int, Piece | None]] = []
        lags = False
        for number, stream in tuple(open_streams.items()):
            pieces = list(islice(_read_ready(stream), PIECES_AT_ONCE))
            lags = lags or len(pieces) == PIECES_AT_ONCE
            if pieces:
                found.append((number, Piece.join(pieces)))
            if stream.done:
                found.append((number, None))
                del open_streams[number]
        if not found:
            await news.wait()
            continue
        came_at = loop.time()
        yield found
        if lags:  # a reader that lags behind must not block the loop
            await asyncio.sleep(0)
        elif open_streams and (left := came_at + pause_seconds() - loop.time()) > 0:
            await news.pause(left)


def _read_ready(stream: ReplyStream) -> Iterator[Piece]:
    """Yield the pieces that can be read without waiting."""
    while (piece := stream.read()) is not None:
        if piece:
            yield piece


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """Await ``work``, and cancel it as soon as the client disconnects.

    Raises:
        ClientGoneError: The client disconnected first.
    """
    watching = asyncio.create_task(_until_gone(receive))
    working = asyncio.create_task(work)
    try:
        await asyncio.wait({watching, working}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGoneError
    finally:
        watching.cancel()
        if not working.done():
            working.cancel()
            with suppress(asyncio.CancelledError, ApiError):
                await working


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
