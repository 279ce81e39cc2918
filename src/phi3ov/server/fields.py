"""The field table: the server's policy for each field of each request.

Every field is honoured, accepted because it has no effect, or refused by name. Only this table
decides: parsing reads it, the documentation is generated from it, and a test compares the honoured
fields with the types in ``schemas.py``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .errors import ApiError, bad_field

Policy = Literal["honoured", "neutral", "refused"]
"""Policy of a field: it has an effect, is accepted without an effect, or is refused."""

Endpoint = Literal["chat", "completions", "responses", "tokenize", "detokenize"]
"""The requests that have a body."""

ENDPOINTS: Mapping[Endpoint, str] = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "tokenize": "/tokenize",
    "detokenize": "/detokenize",
}
"""Path of each endpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One row of the table.

    Attributes:
        name: Name in the request.
        endpoints: The endpoints that have the field.
        policy: The policy.
        note: Meaning and limits, for the documentation.
        accepts: Accepted values of a neutral field, which have no effect; None for any value.
        extra: Whether it is an extension of phi3ov, not part of OpenAI's protocol.
    """

    name: str
    endpoints: tuple[Endpoint, ...]
    policy: Policy
    note: str
    accepts: tuple[Any, ...] | None = None
    extra: bool = False


_TEXT: tuple[Endpoint, ...] = ("chat", "completions")
_ALL: tuple[Endpoint, ...] = ("chat", "completions", "responses")
_NEW: tuple[Endpoint, ...] = ("chat", "responses")
_CHAT: tuple[Endpoint, ...] = ("chat",)
_OLD: tuple[Endpoint, ...] = ("completions",)
_RESPONSES: tuple[Endpoint, ...] = ("responses",)


def _honoured(names: str, endpoints: tuple[Endpoint, ...], note: str) -> list[Field]:
    return [
        Field(name=name, endpoints=endpoints, policy="honoured", note=note)
        for name in names.split()
    ]


def _extra(names: str, endpoints: tuple[Endpoint, ...], note: str) -> list[Field]:
    return [
        Field(name=name, endpoints=endpoints, policy="honoured", note=note, extra=True)
        for name in names.split()
    ]


def _neutral(
    names: str,
    endpoints: tuple[Endpoint, ...],
    note: str,
    accepts: tuple[Any, ...] | None = None,
) -> list[Field]:
    return [
        Field(name=name, endpoints=endpoints, policy="neutral", note=note, accepts=accepts)
        for name in names.split()
    ]


def _refused(names: str, endpoints: tuple[Endpoint, ...], note: str) -> list[Field]:
    return [
        Field(name=name, endpoints=endpoints, policy="refused", note=note) for name in names.split()
    ]


FIELDS: tuple[Field, ...] = (
    *_honoured("model", _ALL, "The name in /v1/models, or empty; another name is a 404."),
    *_honoured(
        "messages",
        _CHAT,
        "Roles system, developer (read as system), user, assistant and tool; text only. Adjacent "
        "messages of one role are joined with an empty line; x-phi3ov-merged-messages says so.",
    ),
    *_honoured("prompt", _OLD, "A string, a list of strings, token ids, or a list of those."),
    *_honoured("input instructions", _RESPONSES, "Text, or items of text, calls and call outputs."),
    *_honoured("stream", _ALL, "Server-sent events."),
    *_honoured("stream_options", _ALL, "include_usage: a last chunk with the token counts."),
    *_honoured(
        "max_completion_tokens max_tokens",
        _CHAT,
        "Most tokens of the answer; the rest of the context by default. Both only if equal.",
    ),
    *_honoured(
        "max_tokens",
        _OLD,
        "Most tokens of the answer; 16 by default, as OpenAI's. 0 with echo and logprobs.",
    ),
    *_honoured("max_output_tokens", _RESPONSES, "Most tokens of the answer."),
    *_honoured(
        "temperature",
        _ALL,
        "0 is greedy decoding, which is the default here; OpenAI's default is 1.",
    ),
    *_honoured("top_p", _ALL, "Without effect at temperature 0, where it is accepted."),
    *_honoured("n", _TEXT, "Answers to draw, at most 64; more than one needs a temperature."),
    *_honoured("stop", _TEXT, "A string or a list of strings; never shown, not even in part."),
    *_honoured("seed", _TEXT, "Taken modulo 2**32; without effect at temperature 0."),
    *_honoured(
        "presence_penalty frequency_penalty",
        _TEXT,
        "openvino-genai's rule: the score of a token moves towards zero.",
    ),
    *_honoured("logprobs", _CHAT, "Log-probability of each chosen token."),
    *_honoured(
        "top_logprobs",
        _CHAT,
        "Number of most likely tokens to report at each position, up to 20; needs a model loaded "
        "with the paged engine, and is refused by the others.",
    ),
    *_honoured(
        "logit_bias",
        _TEXT,
        "Token ids to biases; needs the paged engine, and is refused by the others.",
    ),
    *_honoured("logprobs", _OLD, "0 or 1: the log-probability of each chosen token."),
    *_honoured(
        "echo",
        _OLD,
        "The prompt before the answer. Together with logprobs also the log-probabilities of the "
        "prompt's tokens, and the most likely token at each position: that needs a model loaded "
        "with the paged engine (phi3ov serve --engine paged), and is refused by the others.",
    ),
    *_honoured("best_of", _OLD, "Only if equal to n."),
    *_honoured(
        "response_format",
        _CHAT,
        "text, json_object or json_schema. The grammar enforces it, or the request is refused.",
    ),
    *_honoured("text", _RESPONSES, "format as response_format; verbosity medium."),
    *_honoured("tools", _NEW, "Functions, on models that were trained for tools."),
    *_honoured(
        "tool_choice",
        _NEW,
        "none, auto, required, or a function: a grammar enforces the call and its arguments.",
    ),
    *_honoured(
        "parallel_tool_calls",
        _NEW,
        "false only where tool_choice names a function, which gives one call.",
    ),
    *_honoured("truncation", _RESPONSES, "disabled, or auto: the oldest turns are left out."),
    *_honoured("metadata", _RESPONSES, "Returned with the response; not stored."),
    *_extra("top_k min_p repetition_penalty", _ALL, "Sampling, as in phi3ov.GenerationOptions."),
    *_extra("seed stop", _RESPONSES, "As in /v1/chat/completions."),
    *_extra("timeout_seconds", _ALL, "Time for the answer; at most the server's own limit."),
    *_extra(
        "max_reasoning_tokens",
        _CHAT,
        "Most tokens of a reasoning model's thoughts, which it returns as reasoning_content.",
    ),
    *_extra("regex", _TEXT, "The answer matches this regular expression."),
    *_extra("choices", _TEXT, "The answer is one of these strings."),
    *_neutral("user", _ALL, "Not read."),
    *_neutral(
        "safety_identifier prompt_cache_key prompt_cache_retention prompt_cache_options",
        _NEW,
        "Not read; prefixes are always cached.",
    ),
    *_neutral("metadata", _CHAT, "Not read and not stored."),
    *_neutral("store", _NEW, "Nothing is stored.", (False,)),
    *_neutral("service_tier", _NEW, "There is one tier.", ("auto", "default")),
    *_neutral("top_logprobs", _RESPONSES, "Not supported.", (0,)),
    *_neutral("modalities", _CHAT, "Text only.", (["text"],)),
    *_neutral("reasoning_effort", _CHAT, "Not adjustable.", ("none",)),
    *_neutral("verbosity", _CHAT, "Not adjustable.", ("medium",)),
    *_neutral("suffix", _OLD, "Not supported.", ("",)),
    *_neutral("background", _RESPONSES, "Not supported.", (False,)),
    *_neutral("include", _RESPONSES, "Not supported.", ([],)),
    *_neutral("reasoning", _RESPONSES, "Not adjustable.", ({},)),
    *_refused("audio", _CHAT, "The models of this family read and write text."),
    *_refused("functions function_call", _CHAT, "Replaced by tools and tool_choice."),
    *_refused("prediction web_search_options", _CHAT, "Not supported."),
    *_refused("moderation", _NEW, "Not supported."),
    *_refused(
        "conversation previous_response_id",
        _RESPONSES,
        "The server stores nothing: send the whole conversation in input.",
    ),
    *_refused(
        "prompt max_tool_calls context_management background_options access_programs image",
        _RESPONSES,
        "Not supported.",
    ),
    *_honoured("model", ("tokenize", "detokenize"), "As above."),
    *_honoured("prompt", ("tokenize",), "Text to encode, or messages instead."),
    *_honoured("messages", ("tokenize",), "A conversation, with the assistant's turn opened."),
    *_honoured("tokens", ("detokenize",), "Token ids to decode."),
    *_neutral("add_special_tokens", ("tokenize",), "No token is added to a prompt.", (False,)),
)
"""Every field of every endpoint."""


def fields_of(endpoint: Endpoint) -> dict[str, Field]:
    """Return the rows of one endpoint by the field's name."""
    return {field.name: field for field in FIELDS if endpoint in field.endpoints}


_BY_ENDPOINT = {endpoint: fields_of(endpoint) for endpoint in ENDPOINTS}


def check_fields(
    endpoint: Endpoint, body: Mapping[str, Any], *, ignore_unknown: bool
) -> tuple[dict[str, Any], list[str]]:
    """Apply the table to a request's body.

    Returns:
        The honoured fields with a value, and the names of the unknown fields that were ignored.

    Raises:
        ApiError: A field is refused, is unknown, or is neutral with a value that would have an
            effect.
    """
    table = _BY_ENDPOINT[endpoint]
    honoured: dict[str, Any] = {}
    ignored = []
    for name, value in body.items():
        field = table.get(name)
        if field is None:
            if not ignore_unknown:
                raise _unknown(name, table)
            ignored.append(name)
        elif value is None:
            continue
        elif field.policy == "honoured":
            honoured[name] = value
        elif field.policy == "refused":
            raise bad_field(
                name, f"{name} is not supported. {field.note}", code="unsupported_parameter"
            )
        elif field.accepts is not None and not _is_among(value, field.accepts):
            listed = " or ".join(repr(accepted) for accepted in field.accepts)
            raise bad_field(
                name,
                f"{name} can only be {listed} or left out. {field.note}",
                code="unsupported_value",
            )
    return honoured, ignored


def _is_among(value: Any, accepted: tuple[Any, ...]) -> bool:
    return any(type(value) is type(candidate) and value == candidate for candidate in accepted)


def _unknown(name: str, table: Mapping[str, Field]) -> ApiError:
    nearest = difflib.get_close_matches(name, table, n=1)
    hint = f" Did you mean {nearest[0]}?" if nearest else ""
    return bad_field(
        name[:100],
        f"{name[:100]!r} is not a field of this request.{hint}",
        code="unknown_parameter",
    )


def describe_fields() -> Iterator[str]:
    """Yield the lines of the documentation's tables, in Markdown."""
    for endpoint in ("chat", "completions", "responses"):
        yield f"### `POST {ENDPOINTS[endpoint]}`"
        yield ""
        yield "| field | policy | meaning |"
        yield "|---|---|---|"
        for policy in ("honoured", "neutral", "refused"):
            for field in _BY_ENDPOINT[endpoint].values():
                if field.policy == policy:
                    yield f"| `{field.name}` | {_describe_policy(field)} | {field.note} |"
        yield ""


def _describe_policy(field: Field) -> str:
    if field.policy == "neutral" and field.accepts is not None:
        values = " or ".join(f"`{value!r}`" for value in field.accepts)
        return f"accepted: {values}"
    names = {"honoured": "honoured", "neutral": "accepted, not used", "refused": "refused"}
    return names[field.policy] + (" (phi3ov's own)" if field.extra else "")
