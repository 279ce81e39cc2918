"""Shared parts of the answers of all endpoints: ids, usage, finish reasons, token texts."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from ..answer.reply import Reply
    from ..answer.stream import Piece
    from ..model import Phi3Model
    from ..prompt.token_texts import TokenTexts
    from ..prompt.tools import ToolCall


class Rendering(Protocol):
    """Renders the model's answers for an endpoint, as a whole body or as events."""

    def whole(self, replies: Sequence[Reply]) -> Mapping[str, Any]:
        """Return the response body without streaming."""
        ...

    def begin(self) -> Iterator[bytes]:
        """Yield the events before the first token."""
        ...

    def piece(self, number: int, piece: Piece) -> Iterator[bytes]:
        """Yield the events of a piece of answer ``number``."""
        ...

    def end(self, number: int, reply: Reply) -> Iterator[bytes]:
        """Yield the events of the end of answer ``number``."""
        ...

    def finish(self, replies: Sequence[Reply]) -> Iterator[bytes]:
        """Yield the last events."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerHead:
    """Members that all objects of an answer share.

    Attributes:
        answer_id: The answer's id.
        model_name: The model's name.
        created: Unix time in seconds.
        fingerprint: ``system_fingerprint``, which identifies weights and engine.
    """

    answer_id: str
    model_name: str
    fingerprint: str
    created: int = field(default_factory=lambda: int(time.time()))

    def members(self, kind: str) -> dict[str, Any]:
        """Return the members that begin every object."""
        return {
            "id": self.answer_id,
            "object": kind,
            "created": self.created,
            "model": self.model_name,
            "system_fingerprint": self.fingerprint,
        }


def new_id(prefix: str) -> str:
    """Return an id in OpenAI's format, such as ``chatcmpl-`` and random digits."""
    return prefix + secrets.token_hex(12)


def system_fingerprint(model: Phi3Model) -> str:
    """Return a short fingerprint of the model's weights."""
    return f"phi3ov-{model.fingerprint.weights[:12]}"


def finish_reason(reply: Reply) -> str:
    """Return OpenAI's ``finish_reason`` of an answer."""
    if reply.finish_reason == "stop":
        return "tool_calls" if reply.tool_calls else "stop"
    return "length"


def stopped_by(reply: Reply) -> dict[str, Any]:
    """Return phi3ov's additional member of a choice that was cancelled or timed out."""
    if reply.finish_reason == "timeout":
        return {"stopped_by": "timeout"}
    return {"stopped_by": "shutdown"} if reply.finish_reason == "cancelled" else {}


def usage(
    replies: Sequence[Reply], prompts: int = 1, *, texts: TokenTexts | None = None
) -> dict[str, Any]:
    """Return the token counts of a request.

    Args:
        replies: The answers, grouped by prompt.
        prompts: Number of prompts. A prompt with several answers counts once.
        texts: Counts the tokens of thoughts; None where answers have none.
    """
    thoughts = (
        0 if texts is None else sum(texts.count_thoughts(reply.token_ids) for reply in replies)
    )
    firsts = replies[:: max(1, len(replies) // prompts)]
    prompt_tokens = sum(reply.usage.prompt_tokens for reply in firsts)
    completion_tokens = sum(reply.usage.completion_tokens for reply in replies)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {
            "cached_tokens": sum(reply.usage.cached_tokens for reply in firsts)
        },
        "completion_tokens_details": {
            "accepted_prediction_tokens": sum(reply.usage.accepted_tokens for reply in replies),
            "reasoning_tokens": thoughts,
        },
    }


def timings(reply: Reply) -> dict[str, float]:
    """Return the durations of an answer, which OpenAI's protocol does not have."""
    return {
        "queue_seconds": round(reply.timings.queue_seconds, 4),
        "first_token_seconds": round(reply.timings.first_token_seconds, 4),
        "total_seconds": round(reply.timings.total_seconds, 4),
        "tokens_per_second": round(reply.timings.tokens_per_second, 2),
    }


def tool_calls(calls: Sequence[ToolCall], *, numbered: bool = False) -> list[dict[str, Any]]:
    """Return calls in the format of a message, or of a chunk if ``numbered``."""
    return [
        ({"index": index} if numbered else {})
        | {
            "id": call.id or new_id("call_"),
            "type": "function",
            "function": {
                "name": call.name,
                "arguments": json.dumps(call.arguments, ensure_ascii=False),
            },
        }
        for index, call in enumerate(calls)
    ]
