"""Errors in OpenAI's format: `ApiError`, and the translation of the library's errors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.responses import Response

from ..errors import (
    ContextLengthError,
    EngineCrashedError,
    GenerationError,
    OptionError,
    Phi3OVError,
    PromptError,
    QueueFullError,
    StateError,
)

FIELD_OF_OPTION: Mapping[str, str] = {
    "max_new_tokens": "max_tokens",
    "candidates": "n",
    "json_schema": "response_format",
    "schema": "response_format",
}
"""Protocol field of each `phi3ov.GenerationOptions` option that has another name there."""

_MESSAGE = re.compile(r"^(?:messages\[\d+\]: )?(messages\[\d+\](?:\.\w+|\[\d+\])*)")


class ApiError(Exception):
    """An error response in OpenAI's format.

    Attributes:
        status: HTTP status.
        message: Cause and remedy.
        kind: OpenAI's ``type``.
        param: The field that caused the error; None if no field did.
        code: Error code for programs.
        headers: Additional HTTP headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        kind: str = "invalid_request_error",
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Create the error."""
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.headers: dict[str, str] = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """Return the JSON body."""
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }


def bad_field(param: str, message: str, *, code: str = "invalid_value") -> ApiError:
    """Return the error of one field of a request."""
    return ApiError(400, message, param=param, code=code)


def unavailable(code: str, message: str, *, retry_after: int) -> ApiError:
    """Return a 503 error of a server that is temporarily unable to answer."""
    return ApiError(
        503,
        message,
        kind="server_error",
        code=code,
        headers={"retry-after": str(retry_after)},
    )


def translate_error(error: Exception, *, retry_after: int = 1) -> ApiError:
    """Translate an error of the library to an error response.

    Args:
        error: The error. An unexpected error becomes a 500 without its text, which could contain
            parts of a prompt.
        retry_after: Seconds after which a full queue is likely to have room.
    """
    if isinstance(error, ApiError):
        return error
    if not isinstance(error, Phi3OVError):
        return ApiError(
            500,
            f"The server failed with {type(error).__name__}; its log has the details.",
            kind="server_error",
            code="internal_error",
        )
    if isinstance(error, QueueFullError):
        return ApiError(
            429,
            f"The queue is full: {error.open_requests} requests run or wait. Try again in "
            f"{retry_after} seconds.",
            kind="rate_limit_error",
            code="queue_full",
            headers={"retry-after": str(retry_after)},
        )
    if isinstance(error, StateError):
        return unavailable("model_closed", str(error), retry_after=retry_after)
    if isinstance(error, GenerationError):
        return _translate_failure(error)
    return _translate_request_error(error)


def _translate_failure(error: GenerationError) -> ApiError:
    if isinstance(error, EngineCrashedError):
        return ApiError(
            500,
            "The engine's process died. The next request starts a new one.",
            kind="server_error",
            code="engine_crashed",
            headers={"x-should-retry": "true"},
        )
    return ApiError(500, str(error), kind="server_error", code="generation_failed")


def _translate_request_error(error: Phi3OVError) -> ApiError:
    message = str(error)
    if isinstance(error, ContextLengthError):
        room = error.context_tokens - error.prompt_tokens
        way_out = f"Ask for max_tokens={room} at most" if room > 0 else "Shorten the prompt"
        message = (
            f"The prompt has {error.prompt_tokens} tokens and max_tokens is "
            f"{error.max_new_tokens}; the context has {error.context_tokens}. {way_out}."
        )
        return bad_field("messages", message, code="context_length_exceeded")
    if isinstance(error, PromptError):
        if message.startswith("tools were given"):
            return bad_field("tools", message, code="unsupported_parameter")
        place = _MESSAGE.match(message)
        return bad_field("messages" if place is None else place.group(1), message)
    if isinstance(error, OptionError) and error.option is not None:
        param = FIELD_OF_OPTION.get(error.option, error.option)
        if message.startswith(error.option):
            message = param + message.removeprefix(error.option)
        return bad_field(param, message)
    return ApiError(400, message, code="invalid_value")


def json_response(
    body: Any, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a JSON response."""
    return Response(
        msgspec.json.encode(body),
        status_code=status,
        headers=dict(headers or {}),
        media_type="application/json",
    )


def error_response(error: ApiError) -> Response:
    """Return an error in OpenAI's format."""
    return json_response(error.body(), status=error.status, headers=error.headers)
