"""Converts LangChain's messages to `phi3ov.Message`, and replies to LangChain's messages."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    merge_message_runs,
)
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.messages.tool import tool_call, tool_call_chunk

from ...errors import PromptError
from ...prompt.messages import Message, Role
from ...prompt.tools import ToolCall

if TYPE_CHECKING:
    from ...answer.reply import Reply
    from ...prompt.token_texts import TokenTexts

_ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "ai": "assistant",
}

_NOT_IN_PROMPTS = frozenset(
    {"tool_use", "tool_call", "function_call", "reasoning", "thinking", "redacted_thinking"}
)
"""Content blocks of an answer that prompts omit: `AIMessage.tool_calls` holds the calls, and the
model cards recommend leaving out thoughts."""


def read_messages(messages: Sequence[BaseMessage]) -> list[Message]:
    r"""Convert a conversation to phi3ov's messages; the model checks their order.

    Adjacent messages of one role are joined with an empty line, because no model of the family was
    trained on them. Tool results are sorted into the order of the calls.

    Raises:
        PromptError: A message holds something other than text and calls, or has another role.

    Example:
        >>> read_messages([HumanMessage("a"), HumanMessage("b")])
        [Message(role='user', content='a\n\nb')]
    """
    merged = merge_message_runs(list(messages), chunk_separator="\n\n")
    read = [_read_message(number, message) for number, message in enumerate(merged)]
    return list(_in_order_of_calls(read))


def _read_message(number: int, message: BaseMessage) -> Message:
    where = f"messages[{number}]"
    content = _text_of(f"{where}.content", message.content)
    try:
        match message:
            case ToolMessage():
                return Message("tool", content, tool_call_id=message.tool_call_id)
            case AIMessage():
                calls = _read_calls(where, message)
                return Message("assistant", content, tool_calls=calls, name=message.name)
            case HumanMessage():
                role: Role = "user"
            case SystemMessage():
                role = "system"
            case ChatMessage(role=named) if named in _ROLES:
                role = _ROLES[named]
            case _:
                raise PromptError(
                    f"{type(message).__name__} is not a message that a prompt can hold. Give "
                    "SystemMessage, HumanMessage, AIMessage or ToolMessage."
                )
        return Message(role, content, name=message.name)
    except PromptError as error:
        raise PromptError(f"{where}: {error}") from error


def _text_of(where: str, content: str | list[str | dict[Any, Any]]) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for index, part in enumerate(content):
        if isinstance(part, str):
            texts.append(part)
        elif part.get("type") == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif part.get("type") not in _NOT_IN_PROMPTS:
            raise PromptError(
                f"{where}[{index}]={part!r:.80} is not text, and the models of this family read "
                "text only. Give {'type': 'text', 'text': ...}."
            )
    return "\n".join(texts)


def _read_calls(where: str, message: AIMessage) -> tuple[ToolCall, ...]:
    if message.invalid_tool_calls:
        broken = message.invalid_tool_calls[0]
        raise PromptError(
            f"{where}.invalid_tool_calls holds the call {broken.get('name')!r:.80}, whose "
            "arguments are not JSON. Leave the message out, or ask again."
        )
    return tuple(
        ToolCall(name=call["name"], arguments=call["args"], id=call["id"] or None)
        for call in message.tool_calls
    )


def _in_order_of_calls(messages: Sequence[Message]) -> Iterator[Message]:
    """Yield the messages, with tool results in the order of the calls that they follow."""
    places: dict[str | None, int] = {}
    results: list[Message] = []
    for message in messages:
        if message.role == "tool":
            results.append(message)
            continue
        yield from _sorted_results(results, places)
        results = []
        places = {call.id: place for place, call in enumerate(message.tool_calls)}
        yield message
    yield from _sorted_results(results, places)


def _sorted_results(results: list[Message], places: Mapping[str | None, int]) -> list[Message]:
    return sorted(results, key=lambda result: places.get(result.tool_call_id, len(places)))


def answer_message(reply: Reply, *, model_name: str, texts: TokenTexts | None) -> AIMessage:
    """Return a finished answer as LangChain's message.

    Args:
        reply: The answer.
        model_name: Name for ``response_metadata``.
        texts: Texts of single tokens, if log-probabilities are requested.
    """
    calls = [
        tool_call(name=call.name, args=dict(call.arguments), id=_call_id(call))
        for call in reply.tool_calls
    ]
    return AIMessage(
        content=reply.text,
        tool_calls=calls,
        additional_kwargs={"reasoning_content": reply.reasoning} if reply.reasoning else {},
        usage_metadata=usage_of(reply),
        response_metadata=describe_reply(reply, model_name=model_name, texts=texts),
    )


def last_chunk(reply: Reply, *, model_name: str, texts: TokenTexts | None) -> AIMessageChunk:
    """Return the last chunk of a stream: tool calls, usage and metadata."""
    calls = [
        tool_call_chunk(
            name=call.name,
            args=json.dumps(call.arguments, ensure_ascii=False),
            id=_call_id(call),
            index=index,
        )
        for index, call in enumerate(reply.tool_calls)
    ]
    return AIMessageChunk(
        content="",
        tool_call_chunks=calls,
        usage_metadata=usage_of(reply),
        response_metadata=describe_reply(reply, model_name=model_name, texts=texts),
        chunk_position="last",
    )


def usage_of(reply: Reply) -> UsageMetadata:
    """Return the token counts; ``cache_read`` counts tokens from the prefix cache."""
    usage = reply.usage
    return UsageMetadata(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        input_token_details=InputTokenDetails(cache_read=usage.cached_tokens),
    )


def describe_reply(reply: Reply, *, model_name: str, texts: TokenTexts | None) -> dict[str, Any]:
    """Return the ``response_metadata`` of an answer."""
    reason = reply.finish_reason
    said: dict[str, Any] = {
        "model_name": model_name,
        "model_provider": "phi3ov",
        "finish_reason": "tool_calls" if reply.tool_calls and reason == "stop" else reason,
        "stopped_by": reply.stopped_by,
        "seed": reply.seed,
        "dropped_turns": reply.dropped_turns,
        "first_token_seconds": reply.timings.first_token_seconds,
        "total_seconds": reply.timings.total_seconds,
        "tokens_per_second": reply.timings.tokens_per_second,
    }
    if texts is not None and reply.logprobs is not None:
        beside = reply.top_logprobs or ((),) * len(reply.token_ids)
        said["logprobs"] = {
            "content": [
                {
                    "token": texts(token_id),
                    "logprob": logprob,
                    "top_logprobs": [
                        {"token": texts(other), "logprob": other_logprob}
                        for other, other_logprob in others
                    ],
                }
                for token_id, logprob, others in zip(
                    reply.token_ids, reply.logprobs, beside, strict=True
                )
            ]
        }
    return said


def _call_id(call: ToolCall) -> str:
    return call.id or f"call_{secrets.token_hex(12)}"
