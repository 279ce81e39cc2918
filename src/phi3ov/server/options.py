"""Translates a request's fields to `phi3ov.GenerationOptions`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .errors import bad_field
from .schemas import (
    AnswerRequest,
    ChatRequest,
    CompletionRequest,
    FlatSchemaFormat,
    ObjectFormat,
    ResponseFormat,
    SchemaFormat,
    TextFormat,
)
from .settings import ServerSettings

ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
"""The schema for ``{"type": "json_object"}``."""

SEEDS = 2**32
"""OpenAI's seeds have 64 bits; the engine's have 32."""


def answer_options(
    request: AnswerRequest,
    settings: ServerSettings,
    *,
    max_tokens: int | None,
    max_tokens_field: str,
    context_tokens: int,
) -> dict[str, Any]:
    """Return the options that all endpoints share.

    Args:
        request: The request.
        settings: The server's limits and defaults.
        max_tokens: The request's limit; None for the rest of the context.
        max_tokens_field: The request's field with this limit, for errors.
        context_tokens: The model's context.

    Raises:
        ApiError: A field exceeds the server's limits.
    """
    most = context_tokens if settings.max_tokens is None else settings.max_tokens
    if max_tokens is not None and settings.max_tokens is not None and max_tokens > most:
        raise bad_field(max_tokens_field, f"{max_tokens_field} can be at most {most} here.")
    if max_tokens is None:
        options: dict[str, Any] = {"max_new_tokens": most, "on_overflow": "clamp"}
    elif max_tokens < 1:
        raise bad_field(max_tokens_field, f"{max_tokens_field}={max_tokens} must be at least 1.")
    else:
        options = {"max_new_tokens": max_tokens}
    options["timeout_seconds"] = _timeout(request, settings)
    temperature = request.temperature
    options["temperature"] = settings.default_temperature if temperature is None else temperature
    if options["temperature"] != 0:  # at 0 these have no effect, and every client sends some
        options |= {
            name: value
            for name, value in (
                ("top_p", request.top_p),
                ("top_k", request.top_k),
                ("min_p", request.min_p),
                ("seed", None if request.seed is None else request.seed % SEEDS),
            )
            if value is not None
        }
    if request.repetition_penalty is not None:
        options["repetition_penalty"] = request.repetition_penalty
    if request.stop:
        options["stop"] = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop)
    return options


def _timeout(request: AnswerRequest, settings: ServerSettings) -> float:
    if request.timeout_seconds is None:
        return settings.timeout_seconds
    if not 0 < request.timeout_seconds <= settings.timeout_seconds:
        raise bad_field(
            "timeout_seconds",
            f"timeout_seconds={request.timeout_seconds} must be above 0 and at most "
            f"{settings.timeout_seconds:g}, the server's limit.",
        )
    return request.timeout_seconds


def drawing_options(
    request: ChatRequest | CompletionRequest, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return penalties, number of answers, and structured output outside ``response_format``.

    Raises:
        ApiError: Several answers are requested at temperature 0, which would make them equal.
    """
    if request.n != 1 and options["temperature"] == 0:
        raise bad_field(
            "n",
            f"n={request.n} needs a temperature above 0: greedy decoding gives one answer only.",
        )
    found: dict[str, Any] = {"candidates": request.n} if request.n != 1 else {}
    if request.presence_penalty:
        found["presence_penalty"] = request.presence_penalty
    if request.frequency_penalty:
        found["frequency_penalty"] = request.frequency_penalty
    if request.logit_bias:
        found["logit_bias"] = _read_bias(request.logit_bias)
    if request.regex is not None:
        found["regex"] = request.regex
    if request.choices is not None:
        found["choices"] = tuple(request.choices)
    return found


def _read_bias(biases: Mapping[str, float]) -> dict[int, float]:
    odd = next((token for token in biases if not token.isdecimal()), None)
    if odd is not None:
        raise bad_field("logit_bias", f"logit_bias names {odd!r:.80}, which is not a token id.")
    return {int(token): bias for token, bias in biases.items()}


def shape_options(
    shape: ResponseFormat | FlatSchemaFormat | None, *, has_tools: bool
) -> dict[str, Any]:
    """Return the schema of ``response_format``.

    Raises:
        ApiError: The request also has tools, whose calls would not fit the schema.
    """
    if shape is None or isinstance(shape, TextFormat):
        return {}
    if has_tools:
        raise bad_field(
            "response_format",
            "response_format together with tools is not supported: a call would not fit it. Send "
            "tools and the format in separate requests.",
            code="unsupported_parameter",
        )
    if isinstance(shape, ObjectFormat):
        return {"json_schema": dict(ANY_OBJECT)}
    schema = shape.json_schema.schema if isinstance(shape, SchemaFormat) else shape.schema
    return {"json_schema": dict(ANY_OBJECT) if schema is None else schema}


_JOINED_ROLES = ("system", "user", "assistant")


def merge_messages(
    messages: Sequence[Mapping[str, Any]],
) -> tuple[list[dict[str, Any]], int]:
    r"""Join adjacent messages of the same role with an empty line, except tool results and calls.

    No model of the family was trained on adjacent messages of one role, but clients send them.

    Returns:
        The messages, and how many were joined to the previous one.

    Example:
        >>> merge_messages([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])
        ([{'role': 'user', 'content': 'a\n\nb'}], 1)
    """
    merged: list[dict[str, Any]] = []
    count = 0
    for message in messages:
        role = "system" if message.get("role") == "developer" else message.get("role")
        text = _plain_text(message.get("content"))
        before = merged[-1] if merged else None
        if (
            before is not None
            and text is not None
            and role in _JOINED_ROLES
            and before["role"] == role
            and isinstance(before["content"], str)
            and not (before.get("tool_calls") or message.get("tool_calls"))
        ):
            before["content"] += f"\n\n{text}"
            count += 1
        elif role in _JOINED_ROLES and text is not None:
            merged.append({**message, "role": role, "content": text})
        else:
            merged.append(dict(message))
    return merged, count


def _plain_text(content: Any) -> str | None:
    """Return a content as text; None for any other content, which the library refuses."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        return None
    texts = [
        part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
        for part in content
    ]
    return None if None in texts else "\n".join(map(str, texts))
