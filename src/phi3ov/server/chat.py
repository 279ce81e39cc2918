"""``/v1/chat/completions``: starts the answers of a chat request, and renders them as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from ..prompt.tools import Tool
from .errors import bad_field
from .event_stream import frame
from .options import answer_options, drawing_options, merge_messages, shape_options
from .rendering import (
    AnswerHead,
    finish_reason,
    stopped_by,
    timings,
    tool_calls,
    usage,
)
from .schemas import ChatRequest, ChatTool, ChatToolChoice, ToolMode

if TYPE_CHECKING:
    from ..answer.reply import Reply
    from ..answer.stream import Piece, ReplyStream
    from ..model import Phi3Model
    from ..prompt.dictionaries import ChatMessage
    from ..prompt.token_texts import TokenTexts
    from .settings import ServerSettings

DONE = b"data: [DONE]\n\n"


class ChatExchange:
    """A validated chat request: starts the answers and creates their rendering.

    Attributes:
        notes: HTTP headers that report changes to the request.
    """

    def __init__(self, request: ChatRequest, settings: ServerSettings) -> None:
        """Run the checks that do not need the model.

        Raises:
            ApiError: Fields contradict each other.
        """
        self._request = request
        self._settings = settings
        merged_messages, merged = merge_messages(request.messages)
        self._messages = cast("list[ChatMessage]", merged_messages)  # the library checks them
        self.notes: dict[str, str] = {"x-phi3ov-merged-messages": str(merged)} if merged else {}
        both = (request.max_tokens, request.max_completion_tokens)
        if None not in both and both[0] != both[1]:
            raise bad_field(
                "max_tokens", f"max_tokens={both[0]} contradicts max_completion_tokens={both[1]}."
            )

    @property
    def scores_prompts(self) -> bool:
        """Always false: chat requests do not score prompts."""
        return False

    def start(self, model: Phi3Model) -> Sequence[ReplyStream]:
        """Encode the conversation and start its answers; runs on a worker thread.

        Raises:
            ApiError: As `answer_options`.
            Phi3OVError: The library refuses the request.
        """
        request = self._request
        named = request.max_completion_tokens
        options = answer_options(
            request,
            self._settings,
            max_tokens=request.max_tokens if named is None else named,
            max_tokens_field="max_tokens" if named is None else "max_completion_tokens",
            context_tokens=model.context.tokens,
        )
        options |= drawing_options(request, options)
        if request.max_reasoning_tokens is not None:
            options["max_reasoning_tokens"] = request.max_reasoning_tokens
        options |= shape_options(request.response_format, has_tools=bool(request.tools))
        if request.logprobs:
            options["logprobs"] = True
        if request.top_logprobs:
            options["top_logprobs"] = request.top_logprobs
        tools = read_tools(request.tools, request.tool_choice, parallel=request.parallel_tool_calls)
        return (model.stream(self._messages, **tools, **options),)

    def render(self, head: AnswerHead, texts: TokenTexts) -> ChatRendering:
        """Return the rendering of the answers."""
        options = self._request.stream_options
        return ChatRendering(
            head,
            texts,
            logprobs=self._request.logprobs,
            include_usage=options is not None and bool(options.include_usage),
            count=self._request.n,
        )


def read_tools(
    tools: Sequence[ChatTool], choice: ToolMode | ChatToolChoice | None, *, parallel: bool
) -> dict[str, Any]:
    """Return the tool arguments of `phi3ov.Phi3Model.stream`.

    Args:
        tools: Tools that the model may call.
        choice: Whether it must call a tool.
        parallel: Whether it may write several calls.

    Raises:
        ApiError: The choice needs tools but none are given, or a limit of one call cannot be
            enforced.
    """
    name = choice.function.name if isinstance(choice, ChatToolChoice) else None
    if name is not None and name not in {tool.function.name for tool in tools}:
        raise bad_field("tool_choice", f"tool_choice names {name!r:.80}, which tools do not hold.")
    if not tools:
        if choice == "required":
            raise bad_field("tool_choice", "tool_choice='required' needs tools.")
        return {}
    if not parallel and name is None:
        raise bad_field(
            "parallel_tool_calls",
            "parallel_tool_calls=false needs a tool_choice that names a function: otherwise the "
            "model decides how many calls it writes.",
            code="unsupported_value",
        )
    given = [
        Tool(
            name=tool.function.name,
            description=tool.function.description or "",
            parameters=tool.function.parameters or {},
        )
        for tool in tools
    ]
    wanted = choice if name is None else {"name": name}
    return {"tools": given} | ({} if wanted is None else {"tool_choice": wanted})


class ChatRendering:
    """Writes the answers of one chat request."""

    def __init__(
        self,
        head: AnswerHead,
        texts: TokenTexts,
        *,
        logprobs: bool,
        include_usage: bool,
        count: int,
    ) -> None:
        """Render ``count`` answers, with log-probabilities if they are requested."""
        self._head = head
        self._texts = texts
        self._with_logprobs = logprobs
        self._include_usage = include_usage
        self._count = count

    def whole(self, replies: Sequence[Reply]) -> Mapping[str, Any]:
        """Return the response body without streaming."""
        choices = []
        for number, reply in enumerate(replies):
            message: dict[str, Any] = {"role": "assistant", "content": reply.text, "refusal": None}
            if reply.tool_calls:
                message["tool_calls"] = tool_calls(reply.tool_calls)
                message["content"] = reply.text or None
            if reply.reasoning:
                message["reasoning_content"] = reply.reasoning
            choices.append(
                {
                    "index": number,
                    "message": message,
                    "logprobs": self._logprobs(
                        reply.token_ids, reply.logprobs or (), reply.top_logprobs or ()
                    ),
                    "finish_reason": finish_reason(reply),
                    "seed": reply.seed,
                    **stopped_by(reply),
                }
            )
        return {
            **self._head.members("chat.completion"),
            "choices": choices,
            "usage": usage(replies, texts=self._texts),
            "timings": timings(replies[0]),
        }

    def begin(self) -> Iterator[bytes]:
        """Yield the role of each answer."""
        for number in range(self._count):
            yield self._chunk(number, {"role": "assistant", "content": ""})

    def piece(self, number: int, piece: Piece) -> Iterator[bytes]:
        """Yield a piece of reasoning or text, with the log-probabilities of its tokens."""
        logprobs = self._logprobs(piece.token_ids, piece.logprobs, piece.top_logprobs)
        if piece.reasoning:
            yield self._chunk(number, {"reasoning_content": piece.reasoning})
        if piece.text or logprobs is not None:
            yield self._chunk(number, {"content": piece.text}, logprobs=logprobs)

    def end(self, number: int, reply: Reply) -> Iterator[bytes]:
        """Yield the tool calls, then the finish reason."""
        if reply.tool_calls:
            yield self._chunk(number, {"tool_calls": tool_calls(reply.tool_calls, numbered=True)})
        more = {"timings": timings(reply)} if number == 0 else {}
        yield self._chunk(number, {}, reason=finish_reason(reply), ending=stopped_by(reply), **more)

    def finish(self, replies: Sequence[Reply]) -> Iterator[bytes]:
        """Yield the token counts, if requested, and the end of the stream."""
        if self._include_usage:
            members = self._head.members("chat.completion.chunk")
            yield frame({**members, "choices": [], "usage": usage(replies, texts=self._texts)})
        yield DONE

    def _chunk(
        self,
        number: int,
        delta: Mapping[str, Any],
        *,
        logprobs: Mapping[str, Any] | None = None,
        reason: str | None = None,
        ending: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> bytes:
        choice = {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        chunk = {
            **self._head.members("chat.completion.chunk"),
            "choices": [choice | dict(ending or {})],
            **more,
        }
        return frame({**chunk, "usage": None} if self._include_usage else chunk)

    def _logprobs(
        self,
        token_ids: Sequence[int],
        logprobs: Sequence[float],
        likeliest: Sequence[Sequence[tuple[int, float]]],
    ) -> dict[str, Any] | None:
        if not self._with_logprobs or not token_ids:
            return None
        beside = likeliest or [()] * len(token_ids)
        return {
            "content": [
                self._describe_token(token_id, logprob)
                | {"top_logprobs": [self._describe_token(*other) for other in others]}
                for token_id, logprob, others in zip(token_ids, logprobs, beside, strict=True)
            ],
            "refusal": None,
        }

    def _describe_token(self, token_id: int, logprob: float) -> dict[str, Any]:
        return {"token": self._texts(token_id), "logprob": logprob, "bytes": None}
