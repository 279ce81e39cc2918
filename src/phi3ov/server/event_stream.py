"""Server-sent events: an ASGI response with pings that detects disconnects and slow readers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from .answering import ClientGoneError, unless_gone
from .errors import ApiError, error_response, translate_error

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from .metrics import ServerMetrics

_LOGGER = logging.getLogger("phi3ov.server")

HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx must not buffer events
)

_encode = msgspec.json.Encoder().encode


def frame(payload: Mapping[str, Any], *, event: str | None = None) -> bytes:
    r"""Encode one event.

    Example:
        >>> frame({"text": "a"})
        b'data: {"text":"a"}\n\n'
    """
    named = b"" if event is None else b"event: " + event.encode() + b"\n"
    return named + b"data: " + _encode(payload) + b"\n\n"


class EventStream:
    """Sends events as they are produced.

    The status is sent with the first event, or after one ping interval. An error before that
    becomes an ordinary JSON response with its own status; a later error becomes the last event.
    """

    def __init__(
        self,
        events: AsyncIterator[bytes],
        *,
        headers: Mapping[str, str],
        ping_seconds: float,
        write_timeout_seconds: float,
        metrics: ServerMetrics,
    ) -> None:
        """Send ``events``; each holds one or more whole frames."""
        self._events = events
        self._headers = [
            *HEADERS,
            *((key.encode(), value.encode()) for key, value in headers.items()),
        ]
        self._ping_seconds = ping_seconds
        self._write_timeout_seconds = write_timeout_seconds
        self._metrics = metrics
        self._begun = False
        self._sending = asyncio.Lock()
        self._sent_at = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        try:
            await unless_gone(receive, self._send_all(send))
        except ClientGoneError:
            self._metrics.disconnected.inc()
        except ApiError as error:  # before the first event
            await error_response(error)(scope, receive, send)

    async def _send_all(self, send: Send) -> None:
        pinging = asyncio.create_task(self._ping(send))
        try:
            async for event in self._events:
                await self._send(send, event)
            await self._send(send, b"", more=False)
        except Exception as error:
            if isinstance(error, ClientGoneError):
                raise
            told = translate_error(error)
            if told.code == "internal_error":
                _LOGGER.exception("An answer failed.")
            if not self._begun:
                raise told from error
            await self._send(send, frame(told.body()), more=False)
        finally:
            pinging.cancel()
            await self._events.aclose()  # type: ignore[attr-defined]

    async def _ping(self, send: Send) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._ping_seconds)
            if loop.time() - self._sent_at >= self._ping_seconds and not self._sending.locked():
                await self._send(send, b": ping\n\n")

    async def _send(self, send: Send, body: bytes, *, more: bool = True) -> None:
        async with self._sending:
            try:
                async with asyncio.timeout(self._write_timeout_seconds):
                    if not self._begun:
                        self._begun = True
                        await send(
                            {
                                "type": "http.response.start",
                                "status": 200,
                                "headers": self._headers,
                            }
                        )
                    await send({"type": "http.response.body", "body": body, "more_body": more})
            except TimeoutError:
                raise ClientGoneError from None
        self._sent_at = asyncio.get_running_loop().time()
