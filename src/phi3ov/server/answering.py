"""From a request to the model's streams and back: start, read, collect, leave.

The event loop never waits for the tokenizer or the engine: starting happens on other threads, and
a client that leaves cancels its answers in whatever state they are.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import GenerationError
from .errors import ApiError, translate_error, unavailable

if TYPE_CHECKING:
    from starlette.types import Receive

    from ..answer.reply import Reply
    from ..answer.stream import Piece, ReplyStream
    from ..model import Phi3Model
    from .host import ModelHost
    from .metrics import ServerMetrics

StartStreams = Callable[["Phi3Model"], "Sequence[ReplyStream]"]
"""Encodes a request and starts its answers, all or none; a stream may hold several candidates."""

Result = TypeVar("Result")

_POLL_SECONDS = 0.5
_ENCODERS = ThreadPoolExecutor(max_workers=2, thread_name_prefix="phi3ov-server-encode")


class ClientGoneError(Exception):
    """The client has left."""


class Answers:
    """The answers of one request: one, or several candidates."""

    def __init__(
        self, streams: Sequence[ReplyStream], host: ModelHost, metrics: ServerMetrics
    ) -> None:
        """Take streams that are under way."""
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

    async def read(self) -> AsyncIterator[tuple[int, Piece | None]]:
        """Yield each answer's pieces with its number, and None when that answer has ended.

        Raises:
            ApiError: The engine failed, or the time was over before anything was generated.
        """
        try:
            async for number, piece in _read_side_by_side(self.streams):
                if piece is None:
                    self._require_begun(self.streams[number].reply)
                yield number, piece
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
        """End the answers now and keep what there is; for the end of the server."""
        for stream in self.streams:
            stream.cancel()

    async def aclose(self) -> None:
        """Cancel what has not ended; does not wait for the engine."""
        self._host.running.discard(self)
        self.cut_off()
        open_streams = [stream for stream in self.streams if not stream.done]
        if open_streams:
            loop = asyncio.get_running_loop()
            for stream in open_streams:  # read to the end, so that the engine's place is free
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


async def start_answers(host: ModelHost, start: StartStreams, metrics: ServerMetrics) -> Answers:
    """Start a request's answers on another thread.

    Raises:
        ApiError: The request cannot be answered, the queue is full, or the model is not there.
    """
    model = host.require_model()
    loop = asyncio.get_running_loop()
    starting = loop.run_in_executor(_ENCODERS, partial(start, model))
    try:
        streams = await asyncio.shield(starting)
    except asyncio.CancelledError:  # the client left while its prompt was encoded
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
    """Return the reply, and wake up rarely: the processor is the engine's."""
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


async def _read_side_by_side(
    streams: Sequence[ReplyStream],
) -> AsyncIterator[tuple[int, Piece | None]]:
    if len(streams) == 1:
        async for piece in streams[0].apieces():
            yield 0, piece
        yield 0, None
        return
    news: asyncio.Queue[tuple[int, Piece | Exception | None]] = asyncio.Queue(maxsize=len(streams))

    async def feed(number: int, stream: ReplyStream) -> None:
        try:
            async for piece in stream.apieces():
                await news.put((number, piece))
            await news.put((number, None))
        except GenerationError as error:
            await news.put((number, error))

    tasks = [asyncio.create_task(feed(number, stream)) for number, stream in enumerate(streams)]
    try:
        open_count = len(streams)
        while open_count:
            number, said = await news.get()
            if isinstance(said, Exception):
                raise said
            open_count -= said is None
            yield number, said
    finally:
        for task in tasks:
            task.cancel()


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """Do ``work``, and cancel it as soon as the client has left.

    Raises:
        ClientGoneError: The client left first.
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
