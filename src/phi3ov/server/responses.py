"""``/v1/responses`` without storage: items to messages, and answers to items and their events."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import msgspec

from .chat import read_tools
from .errors import bad_field
from .event_stream import frame
from .options import answer_options, merge_messages, shape_options
from .rendering import AnswerHead, new_id, stopped_by, timings
from .schemas import ChatTool, ChatToolChoice, FunctionTool, NamedFunction, ResponsesRequest

if TYPE_CHECKING:
    from ..answer.reply import Reply
    from ..answer.stream import Piece, ReplyStream
    from ..model import Phi3Model
    from ..prompt.dictionaries import ChatMessage
    from ..prompt.token_texts import TokenTexts
    from .settings import ServerSettings

_TEXT_PARTS = ("input_text", "output_text", "text")
_MESSAGE_FIELDS = frozenset({"type", "role", "content", "id", "status", "phase"})


class ResponsesExchange:
    """A validated Responses request: starts the answer and creates its rendering.

    Attributes:
        notes: HTTP headers that report changes to the request.
    """

    def __init__(self, request: ResponsesRequest, settings: ServerSettings) -> None:
        """Convert the input items to messages.

        Raises:
            ApiError: An item is not supported.
        """
        self._request = request
        self._settings = settings
        merged_messages, merged = merge_messages(read_input(request))
        self._messages = cast("list[ChatMessage]", merged_messages)  # the library checks them
        self.notes: dict[str, str] = {"x-phi3ov-merged-messages": str(merged)} if merged else {}

    @property
    def scores_prompts(self) -> bool:
        """Always false: Responses requests do not score prompts."""
        return False

    def start(self, model: Phi3Model) -> Sequence[ReplyStream]:
        """Encode the conversation and start its answer; runs on a worker thread.

        Raises:
            ApiError: As `answer_options`.
            Phi3OVError: The library refuses the request.
        """
        request = self._request
        options = answer_options(
            request,
            self._settings,
            max_tokens=request.max_output_tokens,
            max_tokens_field="max_output_tokens",
            context_tokens=model.context.tokens,
        )
        shape = None if request.text is None else request.text.format
        options |= shape_options(shape, has_tools=bool(request.tools))
        if request.truncation == "auto":
            if request.max_output_tokens is None:
                raise bad_field("truncation", "truncation='auto' needs max_output_tokens.")
            options["on_overflow"] = "drop_oldest"
        tools = [
            ChatTool(
                function=FunctionTool(
                    name=tool.name, description=tool.description, parameters=tool.parameters
                )
            )
            for tool in request.tools
        ]
        choice = request.tool_choice
        wanted = (
            choice
            if choice is None or isinstance(choice, str)
            else ChatToolChoice(function=NamedFunction(name=choice.name))
        )
        calls = read_tools(tools, wanted, parallel=request.parallel_tool_calls)
        return (model.stream(self._messages, **calls, **options),)

    def render(self, head: AnswerHead, texts: TokenTexts) -> ResponsesRendering:
        """Return the rendering of the answer."""
        return ResponsesRendering(head, texts, self._request)


def read_input(request: ResponsesRequest) -> list[dict[str, Any]]:
    """Convert a request's items to messages.

    Raises:
        ApiError: An item or a part of an item is not supported; names it.
    """
    messages: list[dict[str, Any]] = []
    if request.instructions:
        messages.append({"role": "system", "content": request.instructions})
    if isinstance(request.input, str):
        return [*messages, {"role": "user", "content": request.input}]
    for number, item in enumerate(request.input):
        where = f"input[{number}]"
        kind = item.get("type", "message")
        if kind == "message":
            messages.append(_read_message(where, item))
        elif kind == "function_call":
            _add_call(messages, where, item)
        elif kind == "function_call_output":
            messages.append(
                {
                    "role": "tool",
                    "tool_call_id": _require_text(where, item, "call_id"),
                    "content": _read_content(f"{where}.output", item.get("output")),
                }
            )
        elif kind != "reasoning":  # prompts do not contain the reasoning of earlier answers
            raise bad_field(
                f"{where}.type",
                f"{where}.type={kind!r:.80} is not supported.",
                code="unsupported_value",
            )
    return messages


def _read_message(where: str, item: Mapping[str, Any]) -> dict[str, Any]:
    odd = sorted(name for name in item.keys() - _MESSAGE_FIELDS if item[name] is not None)
    if odd:
        raise bad_field(f"{where}.{odd[0]}", f"{where}.{odd[0]} is not supported.")
    content = _read_content(f"{where}.content", item.get("content"))
    return {"role": item.get("role"), "content": content}


def _add_call(messages: list[dict[str, Any]], where: str, item: Mapping[str, Any]) -> None:
    """Add a call to the preceding assistant message, or as a new message."""
    call = {
        "id": _require_text(where, item, "call_id"),
        "type": "function",
        "function": {
            "name": _require_text(where, item, "name"),
            "arguments": _require_text(where, item, "arguments"),
        },
    }
    if messages and messages[-1]["role"] == "assistant":
        messages[-1].setdefault("tool_calls", []).append(call)
    else:
        messages.append({"role": "assistant", "content": None, "tool_calls": [call]})


def _require_text(where: str, item: Mapping[str, Any], name: str) -> str:
    value = item.get(name)
    if not isinstance(value, str) or not value:
        raise bad_field(f"{where}.{name}", f"{where}.{name} must be a non-empty string.")
    return value


def _read_content(where: str, content: Any) -> Any:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise bad_field(where, f"{where} must be a string or a list of text parts.")
    parts = []
    for index, part in enumerate(content):
        here = f"{where}[{index}]"
        if not isinstance(part, dict) or part.get("type") not in _TEXT_PARTS:
            raise bad_field(
                here,
                f"{here} is not a text part: the models of this family read text only.",
                code="unsupported_value",
            )
        parts.append({"type": "text", "text": part.get("text")})
    return parts


class ResponsesRendering:
    """Writes the answer of one Responses request."""

    def __init__(self, head: AnswerHead, texts: TokenTexts, request: ResponsesRequest) -> None:
        """Render the answer of ``request``."""
        self._head = head
        self._texts = texts
        self._request = request
        self._item_id = new_id("msg_")
        self._reasoning_id = new_id("rs_")
        self._sequence = 0
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._opened = False
        self._reasoning_opened = False
        self._reasoning_closed = False

    def whole(self, replies: Sequence[Reply]) -> Mapping[str, Any]:
        """Return the whole response."""
        (reply,) = replies
        complete = reply.finish_reason == "stop"
        counts = reply.usage
        body = self._response("completed" if complete else "incomplete", self._items(reply))
        if not complete:
            body["incomplete_details"] = {"reason": "max_output_tokens"} | stopped_by(reply)
        body["usage"] = {
            "input_tokens": counts.prompt_tokens,
            "input_tokens_details": {
                "cached_tokens": counts.cached_tokens,
                "cache_write_tokens": 0,
            },
            "output_tokens": counts.completion_tokens,
            "output_tokens_details": {
                "reasoning_tokens": self._texts.count_thoughts(reply.token_ids)
            },
            "total_tokens": counts.prompt_tokens + counts.completion_tokens,
        }
        body["timings"] = timings(reply)
        return body

    def begin(self) -> Iterator[bytes]:
        """Yield the response without output."""
        for name in ("response.created", "response.in_progress"):
            yield self._event(name, response=self._response("in_progress", []))

    def piece(self, number: int, piece: Piece) -> Iterator[bytes]:  # noqa: ARG002
        """Yield a piece of thoughts or text."""
        if piece.reasoning:
            yield from self._open_reasoning()
            self._reasoning.append(piece.reasoning)
            yield self._event(
                "response.reasoning_text.delta", **self._reasoning_place(), delta=piece.reasoning
            )
        if piece.text:
            yield from self._close_reasoning("completed")
            yield from self._open_message()
            self._text.append(piece.text)
            yield self._event(
                "response.output_text.delta", **self._place(), delta=piece.text, logprobs=[]
            )

    def end(self, number: int, reply: Reply) -> Iterator[bytes]:  # noqa: ARG002
        """Yield the end of each output item."""
        items = self._items(reply)
        for index, item in enumerate(items):
            if item["type"] == "reasoning":
                yield from self._close_reasoning(item["status"])
                continue
            if item["type"] == "message":
                yield from self._open_message()
                text = "".join(self._text)
                yield self._event(
                    "response.output_text.done", **self._place(), text=text, logprobs=[]
                )
                yield self._event(
                    "response.content_part.done", **self._place(), part=item["content"][0]
                )
            else:
                opened = item | {"arguments": "", "status": "in_progress"}
                yield self._event("response.output_item.added", output_index=index, item=opened)
                place = {"item_id": item["id"], "output_index": index}
                yield self._event(
                    "response.function_call_arguments.delta", **place, delta=item["arguments"]
                )
                yield self._event(
                    "response.function_call_arguments.done",
                    **place,
                    arguments=item["arguments"],
                    name=item["name"],
                )
            yield self._event("response.output_item.done", output_index=index, item=item)

    def finish(self, replies: Sequence[Reply]) -> Iterator[bytes]:
        """Yield the whole response."""
        body = self.whole(replies)
        yield self._event(f"response.{body['status']}", response=body)

    def _open_message(self) -> Iterator[bytes]:
        if not self._opened:
            self._opened = True
            item = self._message("in_progress", [])
            index = self._place()["output_index"]
            yield self._event("response.output_item.added", output_index=index, item=item)
            part = {"type": "output_text", "text": "", "annotations": []}
            yield self._event("response.content_part.added", **self._place(), part=part)

    def _place(self) -> dict[str, Any]:
        index = int(self._reasoning_opened)
        return {"item_id": self._item_id, "output_index": index, "content_index": 0}

    def _open_reasoning(self) -> Iterator[bytes]:
        if not self._reasoning_opened:
            self._reasoning_opened = True
            item = self._reasoning_item("in_progress", "")
            yield self._event("response.output_item.added", output_index=0, item=item)

    def _close_reasoning(self, status: str) -> Iterator[bytes]:
        """Yield the end of the thoughts, once, if there were any."""
        if self._reasoning_opened and not self._reasoning_closed:
            self._reasoning_closed = True
            text = "".join(self._reasoning)
            yield self._event("response.reasoning_text.done", **self._reasoning_place(), text=text)
            item = self._reasoning_item(status, text)
            yield self._event("response.output_item.done", output_index=0, item=item)

    def _reasoning_place(self) -> dict[str, Any]:
        return {"item_id": self._reasoning_id, "output_index": 0, "content_index": 0}

    def _reasoning_item(self, status: str, text: str) -> dict[str, Any]:
        return {
            "type": "reasoning",
            "id": self._reasoning_id,
            "summary": [],
            "content": [{"type": "reasoning_text", "text": text}] if text else [],
            "status": status,
        }

    def _event(self, name: str, /, **members: Any) -> bytes:
        self._sequence += 1
        payload = {"type": name, "sequence_number": self._sequence - 1, **members}
        return frame(payload, event=name)

    def _items(self, reply: Reply) -> list[dict[str, Any]]:
        status = "completed" if reply.finish_reason == "stop" else "incomplete"
        items = []
        if reply.reasoning:
            # Thoughts that an answer follows are whole, however that ended.
            ended = "completed" if reply.text or reply.tool_calls else status
            items.append(self._reasoning_item(ended, reply.reasoning))
        if reply.text or self._opened or not (reply.tool_calls or reply.reasoning):
            part = {"type": "output_text", "text": reply.text, "annotations": []}
            items.append(self._message(status, [part]))
        for number, call in enumerate(reply.tool_calls):
            items.append(
                {
                    "type": "function_call",
                    "id": f"fc_{self._head.answer_id}_{number}",
                    "call_id": call.id or f"call_{self._head.answer_id}_{number}",
                    "name": call.name,
                    "arguments": json.dumps(call.arguments, ensure_ascii=False),
                    "status": "completed",
                }
            )
        return items

    def _message(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "type": "message",
            "id": self._item_id,
            "role": "assistant",
            "status": status,
            "content": content,
        }

    def _response(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        request = self._request
        return {
            "id": self._head.answer_id,
            "object": "response",
            "created_at": self._head.created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "model": self._head.model_name,
            "output": output,
            "parallel_tool_calls": request.parallel_tool_calls,
            "previous_response_id": None,
            "store": False,
            "temperature": request.temperature,
            "text": {"format": _describe_format(request)},
            "tool_choice": _plain(request.tool_choice) or "auto",
            "tools": [
                {
                    "type": "function",
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": tool.parameters,
                    "strict": bool(tool.strict),
                }
                for tool in request.tools
            ],
            "top_p": request.top_p,
            "truncation": request.truncation,
            "metadata": request.metadata or {},
            "usage": None,
        }


def _plain(value: Any) -> Any:
    return msgspec.to_builtins(value)


def _describe_format(request: ResponsesRequest) -> Any:
    shape = None if request.text is None else request.text.format
    return {"type": "text"} if shape is None else _plain(shape)
