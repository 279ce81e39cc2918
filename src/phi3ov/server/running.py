"""Runs the application with uvicorn; its shutdown waits for running answers."""

from __future__ import annotations

import logging
import socket
import sys
from typing import TYPE_CHECKING, Any

import uvicorn

from .host import ModelHost
from .settings import ListenSettings, ServerSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.applications import Starlette

_LOGGER = logging.getLogger("phi3ov.server")

KEEP_ALIVE_SECONDS = 75
"""Keep-alive time, longer than the idle timeouts of clients and proxies, so that they close first.
"""
SWITCH_SECONDS = 0.001
"""Thread switch interval: how long a thread that encodes or parses may hold the GIL while the
event loop waits. Python's default is five times as long."""
_CLOSE_SECONDS = 5
"""Time for connections to close after their answers have ended."""


class DrainingServer(uvicorn.Server):
    """Uvicorn server that keeps listening after SIGTERM until the running answers have ended.

    During that time, ``/health`` and new requests get a 503. A second signal ends the server at
    once.
    """

    def __init__(self, config: uvicorn.Config, host: ModelHost, drain_seconds: float) -> None:
        """Serve with ``config``; ``host`` tracks the running answers."""
        super().__init__(config)
        self._host = host
        self._drain_seconds = drain_seconds
        self._signals = 0

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Count signals; the second one ends the wait."""
        self._signals += 1
        super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """Also end the server if the model could not be loaded."""
        return await super().on_tick(counter) or self._host.state == "failed"

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Wait for the running answers, then run uvicorn's own shutdown."""
        await self._host.drain(self._drain_seconds, hurry=lambda: self._signals > 1)
        await super().shutdown(sockets)


def serve(
    app: Starlette,
    *,
    listen: ListenSettings = ListenSettings(),  # noqa: B008 - immutable
    settings: ServerSettings = ServerSettings(),  # noqa: B008 - immutable
    on_listening: Callable[[str], None] = lambda _url: None,
) -> None:
    """Serve an application that `create_app` made, until a signal ends it.

    Args:
        app: The application.
        listen: Settings of the socket.
        settings: The settings that the application was created with. An address that other
            machines can reach needs a key.
        on_listening: Called with the server's URL once it listens.

    Raises:
        OptionError: Other machines can reach the address and there is no key.
        OSError: The server cannot listen on the address.
        Phi3OVError: The model could not be loaded.
    """
    listen.require_safe(settings)
    host: ModelHost = app.state.host
    config = uvicorn.Config(
        app,
        host=listen.host,
        port=listen.port,
        lifespan="on",
        log_config=None,
        access_log=False,
        limit_concurrency=listen.max_connections,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_CLOSE_SECONDS,
        server_header=False,
    )
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    with socket.socket(family) as bound:
        if not hasattr(socket, "SO_EXCLUSIVEADDRUSE"):  # not on Windows
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((listen.host, listen.port))
        bound.listen(config.backlog)
        name = f"[{listen.host}]" if ":" in listen.host else listen.host
        on_listening(f"http://{name}:{bound.getsockname()[1]}")
        server = DrainingServer(config, host, listen.drain_seconds)
        usual_seconds = sys.getswitchinterval()
        sys.setswitchinterval(min(usual_seconds, SWITCH_SECONDS))
        try:
            server.run(sockets=[bound])
        finally:
            sys.setswitchinterval(usual_seconds)
    if host.failure is not None:
        raise host.failure
