"""ASGI middleware for every request: request id, Host check, API key, log line.

Starlette's ``BaseHTTPMiddleware`` would hide a client's disconnect from the application.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import re
import secrets
import time
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers, MutableHeaders

from .errors import ApiError, error_response, translate_error

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from .metrics import ServerMetrics
    from .settings import ServerSettings

_LOGGER = logging.getLogger("phi3ov.server")
_REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
OPEN_PATHS = ("/health",)
"""Paths that do not need a key."""


class Guard:
    """Checks a request before the application sees it, and logs it without its content."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: ServerSettings,
        metrics: ServerMetrics,
        paths: frozenset[str],
    ) -> None:
        """Wrap ``app``; metrics count ``paths`` separately and all other paths together."""
        self._app = app
        self._keys = tuple(_digest(key) for key in settings.api_keys)
        self._hosts = frozenset(name.lower() for name in settings.allowed_hosts)
        self._metrics = metrics
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check the request and forward it."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1000})
                return
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"
        status = 0
        started = time.perf_counter()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            self._check(scope, headers)
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            if status:
                raise
            if not isinstance(error, ApiError):
                _LOGGER.exception("Request %s failed.", request_id)
            await error_response(translate_error(error))(scope, receive, send_with_id)
        finally:
            path = _inner_path(scope)
            known = path if path in self._paths else "other"
            self._metrics.requests.labels(known, str(status or 499)).inc()
            _LOGGER.info(
                "%s %s %d %.3f s %s",
                scope["method"],
                known,
                status or 499,  # the client left before it was answered
                time.perf_counter() - started,
                request_id,
            )

    def _check(self, scope: Scope, headers: Headers) -> None:
        host = _host_name(headers.get("host", ""))
        if "*" not in self._hosts and host not in self._hosts:
            raise ApiError(
                421,
                f"The Host header {host!r:.100} is not one of this server's names. Add it with "
                "--allowed-host, or allowed_hosts of ServerSettings.",
                code="host_not_allowed",
            )
        if self._keys and _inner_path(scope) not in OPEN_PATHS and not self._has_key(headers):
            challenge = "Basic" if "text/html" in headers.get("accept", "") else "Bearer"
            raise ApiError(
                401,
                "Send one of the server's keys: Authorization: Bearer KEY.",
                kind="authentication_error",
                code="invalid_api_key",
                headers={"www-authenticate": f'{challenge} realm="phi3ov"'},
            )

    def _has_key(self, headers: Headers) -> bool:
        digest = _digest(_credential(headers.get("authorization", "")))
        # Compare every key, so that timing does not reveal which key was close.
        return sum(hmac.compare_digest(digest, key) for key in self._keys) > 0


def _credential(authorization: str) -> str:
    """Return the key in a header: a bearer token, or a browser's password (user name ignored)."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except ValueError:
            return ""
    return ""


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()


def _host_name(host: str) -> str:
    name, separator, port = host.rpartition(":")
    return (name if separator and port.isdecimal() else host).lower()


def _inner_path(scope: Scope) -> str:
    """Return the path without the prefix under which the application is mounted."""
    path: str = scope["path"]
    root: Any = scope.get("root_path", "")
    return path.removeprefix(root) or "/"
