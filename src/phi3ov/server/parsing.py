"""Parses a request's body to a typed request: size, JSON, the field table, then types."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec
from starlette.requests import Request

from .errors import ApiError, bad_field
from .fields import Endpoint, check_fields
from .settings import ServerSettings

LARGE_BODY_BYTES = 64 * 1024
"""Bodies above this size are parsed on another thread, to keep the event loop free."""

_PLACE = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<path>[^`]*)`)?$", re.DOTALL)

RequestType = TypeVar("RequestType", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Parsed(Generic[RequestType]):
    """A typed request.

    Attributes:
        request: The request.
        ignored: Names of unknown fields that were ignored; empty unless the settings allow it.
    """

    request: RequestType
    ignored: tuple[str, ...]


async def read_request(
    http: Request, endpoint: Endpoint, kind: type[RequestType], settings: ServerSettings
) -> Parsed[RequestType]:
    """Read and check a request's body.

    Raises:
        ApiError: The body is not JSON, too large or too deep, or a field is refused.
        ClientDisconnect: The client disconnected before it had sent the body.
    """
    content_type = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise ApiError(
            415,
            f"Content-Type is {content_type!r:.100}; send application/json.",
            code="unsupported_media_type",
        )
    body = await read_body(http, settings.max_body_bytes)
    if len(body) > LARGE_BODY_BYTES:
        return await asyncio.to_thread(parse_request, body, endpoint, kind, settings)
    return parse_request(body, endpoint, kind, settings)


async def read_body(http: Request, max_bytes: int) -> bytes:
    """Read the body up to a limit.

    Raises:
        ApiError: The body exceeds the limit.
        ClientDisconnect: The client disconnected.
    """
    declared = http.headers.get("content-length", "")
    chunks: list[bytes] = []
    size = 0
    too_large = declared.isdecimal() and len(declared) < 20 and int(declared) > max_bytes
    if not too_large:
        async for chunk in http.stream():
            size += len(chunk)
            if size > max_bytes:
                too_large = True
                break
            chunks.append(chunk)
    if too_large:
        raise ApiError(
            413,
            f"The body is longer than {max_bytes} bytes.",
            code="body_too_large",
            headers={"connection": "close"},
        )
    return b"".join(chunks)


def parse_request(
    body: bytes, endpoint: Endpoint, kind: type[RequestType], settings: ServerSettings
) -> Parsed[RequestType]:
    """Parse a complete body; see `read_request`."""
    try:
        value = msgspec.json.decode(body)
    except RecursionError:
        raise _too_deep(settings.max_depth) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError(400, f"The body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError(400, "The body must be a JSON object.", code="invalid_json")
    require_depth(value, settings.max_depth)
    honoured, ignored = check_fields(endpoint, value, ignore_unknown=settings.ignore_unknown)
    try:
        request = msgspec.convert(drop_nulls(honoured), kind)
    except msgspec.ValidationError as error:
        raise _invalid(error) from None
    return Parsed(request, tuple(ignored))


def drop_nulls(fields: dict[str, Any]) -> dict[str, Any]:
    """Remove nulls from nested objects one level down, such as ``stream_options``."""
    return {
        name: {key: inner for key, inner in value.items() if inner is not None}
        if isinstance(value, dict)
        else value
        for name, value in fields.items()
    }


def require_depth(value: Any, most: int) -> None:
    """Check that JSON is not nested deeper than ``most``.

    Raises:
        ApiError: It is nested deeper.
    """
    level = [value]
    for _ in range(most):
        level = [
            part
            for container in level
            for part in (container.values() if isinstance(container, dict) else container)
            if isinstance(part, dict | list)
        ]
        if not level:
            return
    raise _too_deep(most)


def _too_deep(most: int) -> ApiError:
    return ApiError(400, f"The body is nested deeper than {most} levels.", code="too_deep")


def _invalid(error: msgspec.ValidationError) -> ApiError:
    """Translate an error of msgspec, whose path such as ``$.stop[1]`` names the field."""
    match = _PLACE.match(str(error))
    what, path = (str(error), None) if match is None else (match["what"], match["path"])
    missing = re.search(r"missing required field `(\w+)`", what)
    if missing is not None:
        param = ".".join(filter(None, (path, missing.group(1))))
        return bad_field(param, f"{param} is missing.", code="missing_required_parameter")
    param = (path or "").replace("[...]", "")
    unknown = re.search(r"unknown field `([^`]*)`", what)
    if unknown is not None:
        param = ".".join(filter(None, (param, unknown.group(1)[:100])))
        return bad_field(param, f"{param} is not a known field.", code="unknown_parameter")
    return bad_field(param, f"{param or 'The body'}: {what}.", code="invalid_type")
