"""`ChatPhi3`: a loaded model as LangChain's chat model, in this process.

``messages.py`` converts messages, and ``structured_output.py`` parses structured output.
`phi3ov.Phi3Model` does everything else.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput, ModelProfile
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from pydantic import ConfigDict, Field, PrivateAttr, SecretStr

from ...answer.options import GenerationOptions
from ...answer.reply import Reply
from ...answer.stream import Piece, ReplyStream
from ...engine.protocol import EngineName
from ...errors import ContextLengthError, OptionError
from ...loading import load_model
from ...model import Phi3Model
from ...prompt.messages import Message
from ...prompt.token_texts import TokenTexts
from ...prompt.tools import Tool, describe_tools
from .errors import ContextOverflowError
from .messages import answer_message, last_chunk, read_messages
from .structured_output import parsed_output

if TYPE_CHECKING:
    from asyncio import Future

_STARTERS = ThreadPoolExecutor(max_workers=4, thread_name_prefix="phi3ov-langchain")
"""Threads that start the answers of coroutines, because encoding a long prompt and waiting for a
place in the queue must not block the event loop."""

_LANGCHAIN_NAMES = {"max_tokens": "max_new_tokens", "timeout": "timeout_seconds", "n": "candidates"}
"""phi3ov's option names by LangChain's names."""

_METHODS = ("json_schema", "function_calling", "json_mode")


class ChatPhi3(BaseChatModel):
    """A Phi-3 in this process as LangChain's chat model.

    A path or hub id is loaded here, and `close` closes the model. The caller closes a model that
    was passed loaded. ``engine="worker"`` answers many requests at once, for ``batch`` and
    ``abatch``.

    Attributes:
        model: A folder made by `phi3ov.export_model`, its hub id, or a loaded `phi3ov.Phi3Model`.
        engine: Engine for loading a path; None with a loaded model.
        temperature: 0 is greedy.
        max_tokens: Maximum number of tokens of an answer; None for phi3ov's default, 1024.
        timeout: Time limit in seconds; the answer then ends with ``finish_reason="timeout"``.
        stop: Strings that end an answer.
        max_retries: Accepted like ``api_key``, because LangChain applications set them for every
            model; both have no effect without a network.
        streaming: Whether ``invoke`` reads a stream, so that callbacks receive each piece.
        options: Other fields of `phi3ov.GenerationOptions`, such as ``{"top_p": 0.9}``.

    Raises:
        OptionError: An option is unknown, or not allowed.
        ArtifactError: There is no such folder; and other errors of `phi3ov.load_model`.

    Example:
        >>> from phi3ov.integrations.langchain import ChatPhi3
        >>> with ChatPhi3(model="models/phi3-int4") as chat:  # doctest: +SKIP
        ...     print(chat.invoke("The capital of France?").content)
        The capital of France is Paris.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    model: str | Path | Phi3Model
    engine: EngineName | None = None
    temperature: float = 0.0
    max_tokens: int | None = None
    timeout: float | None = None
    stop: list[str] = Field(default_factory=list)
    max_retries: int | None = None
    api_key: SecretStr | None = Field(default=None, exclude=True)
    streaming: bool = False
    options: dict[str, Any] = Field(default_factory=dict)

    _loaded: Phi3Model = PrivateAttr()
    _defaults: GenerationOptions = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        """Check the options and load the model."""
        super().model_post_init(context)
        named: dict[str, Any] = {
            "temperature": self.temperature,
            "timeout_seconds": self.timeout,
            "stop": tuple(self.stop),
        }
        if self.max_tokens is not None:
            named["max_new_tokens"] = self.max_tokens
        for name in self.options.keys() & named.keys():
            raise OptionError(
                f"options={self.options!r:.80} repeats the field {name!r}. Set it once.",
                option="options",
            )
        waiting = GenerationOptions(on_full_queue="wait")
        self._defaults = waiting.changed({**named, **self.options})  # type: ignore[typeddict-item]
        if not isinstance(self.model, Phi3Model):
            self._loaded = load_model(self.model, engine=self.engine or "pipeline")
        elif self.engine is not None:
            raise OptionError(
                f"engine={self.engine!r} was given with a model that is loaded already. Leave it "
                "out, and give it to phi3ov.load_model.",
                option="engine",
            )
        else:
            self._loaded = self.model

    def close(self) -> None:
        """Close the model if it was loaded here. Idempotent."""
        if not isinstance(self.model, Phi3Model):
            self._loaded.close()

    def __enter__(self) -> ChatPhi3:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    # --- LangChain's model interface ----------------------------------------------------------

    @property
    def model_name(self) -> str:
        """Name of the model's folder."""
        return self._loaded.artifact.path.name

    @property
    def _llm_type(self) -> str:
        return "phi3ov"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """Everything that determines an answer; the cache key of LangChain."""
        loaded = self._loaded
        return {
            "model": str(loaded.artifact.path),
            "fingerprint": repr(loaded.fingerprint) if loaded.artifact.has_checksums else None,
            "device": loaded.device.selected,
            "context_tokens": loaded.context.tokens,
            "options": repr(self._defaults),
        }

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        described = super()._get_ls_params(stop=stop or self.stop or None, **kwargs)
        described["ls_provider"] = "phi3ov"
        if not isinstance(kwargs.get("model"), str):  # a call that names another one fails
            described["ls_model_name"] = self.model_name
        return described

    def _resolve_model_profile(self) -> ModelProfile | None:
        tokenizer = self._loaded.tokenizer
        return ModelProfile(
            max_input_tokens=self._loaded.context.tokens,
            text_inputs=True,
            image_inputs=False,
            audio_inputs=False,
            video_inputs=False,
            text_outputs=True,
            reasoning_output=tokenizer.thought_tags is not None,
            tool_calling=tokenizer.tool_call_ids is not None,
            structured_output=True,
        )

    def get_token_ids(self, text: str) -> list[int]:
        """Return the ids of a text."""
        return self._loaded.tokenizer.encode_text(text)

    def get_num_tokens_from_messages(
        self,
        messages: list[BaseMessage],
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool] | None = None,
    ) -> int:
        """Count the tokens of a prompt exactly, including control tokens and tool descriptions.

        It also counts part of a conversation, as ``trim_messages`` needs.
        """
        tokenizer, read = self._loaded.tokenizer, read_messages(messages)
        described = describe_tools([_make_tool(tool) for tool in tools]) if tools else None
        if described is not None and (not read or read[0].role != "system"):
            read.insert(0, Message("system", ""))
        counts = [
            len(tokenizer.encode_message(message, tools=described if number == 0 else None))
            for number, message in enumerate(read)
        ]
        return len(tokenizer.prefix) + sum(counts) + len(tokenizer.opening)

    # --- tools and schemas --------------------------------------------------------------------

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | dict[str, Any] | bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Let the model call tools; needs a model that was trained with tools (Phi-4-mini).

        A grammar enforces names and arguments of calls.

        Args:
            tools: Functions, pydantic classes, LangChain's tools, or OpenAI's dictionaries.
            tool_choice: ``"auto"`` or None: the model decides; ``"none"``: no calls; ``"any"``,
                ``"required"`` or True: at least one call; a name: exactly one call of this tool.
                With a single tool, ``"any"`` means its name.
            **kwargs: Options of the call. ``strict`` has no effect, because arguments are always
                enforced. ``parallel_tool_calls=False`` needs a choice that allows only one call.

        Raises:
            OptionError: A choice names an unknown tool, or several calls cannot be prevented.
        """
        made = [_make_tool(tool) for tool in tools]
        kwargs.pop("strict", None)
        choice = _read_choice(tool_choice, made)
        parallel = kwargs.pop("parallel_tool_calls", None)
        if parallel is False and choice != "none" and not isinstance(choice, dict):
            raise OptionError(
                "parallel_tool_calls=False needs a tool_choice that names a tool: otherwise the "
                "model decides how many calls it writes.",
                option="parallel_tool_calls",
            )
        if choice is not None:
            kwargs["tool_choice"] = choice
        return self.bind(tools=[_describe(tool) for tool in made], **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        include_raw: bool = False,
        method: str = "json_schema",
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """Return a chain whose answers are values of ``schema``; a grammar enforces it.

        Args:
            schema: A pydantic class, a TypedDict, or a JSON schema.
            include_raw: Return ``{"raw", "parsed", "parsing_error"}`` and raise no parsing error.
            method: ``"json_schema"``, ``"function_calling"`` or ``"json_mode"``. All three give
                the same guided answer, also from models without tools.
            strict: Has no effect: the grammar is always strict.
            **kwargs: Options of the call, such as ``max_tokens``.

        Raises:
            OptionError: The method is unknown; or, when asked, a keyword of the schema cannot be
                enforced.
        """
        del strict
        if method not in _METHODS:
            raise OptionError(
                f"method={method!r} is not one of {', '.join(_METHODS)}.", option="method"
            )
        shape = convert_to_json_schema(schema)
        answering = self.bind(
            json_schema=shape,
            ls_structured_output_format={"kwargs": {"method": method}, "schema": schema},
            **kwargs,
        )
        return parsed_output(answering, schema, include_raw=include_raw)

    # --- answers ------------------------------------------------------------------------------

    def _start(
        self, messages: Sequence[BaseMessage], stop: list[str] | None, kwargs: Mapping[str, Any]
    ) -> ReplyStream:
        """Encode the conversation and start its answer."""
        tools, options = self._read_call(stop, kwargs)
        try:
            return self._loaded.stream(read_messages(messages), tools=tools, options=options)
        except ContextLengthError as error:
            raise ContextOverflowError(
                prompt_tokens=error.prompt_tokens,
                max_new_tokens=error.max_new_tokens,
                context_tokens=error.context_tokens,
            ) from error

    async def _astart(
        self, messages: Sequence[BaseMessage], stop: list[str] | None, kwargs: Mapping[str, Any]
    ) -> ReplyStream:
        """Run `_start` on another thread."""
        import asyncio

        loop = asyncio.get_running_loop()
        starting = loop.run_in_executor(_STARTERS, partial(self._start, messages, stop, kwargs))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:  # the caller was cancelled during encoding
            starting.add_done_callback(_cancel_started)
            raise

    def _read_call(
        self, stop: list[str] | None, kwargs: Mapping[str, Any]
    ) -> tuple[Sequence[dict[str, Any]], GenerationOptions]:
        """Return the tools and options of one call."""
        changes = {_LANGCHAIN_NAMES.get(name, name): value for name, value in kwargs.items()}
        for name in ("stream", "ls_structured_output_format", "strict", "parallel_tool_calls"):
            changes.pop(name, None)  # read elsewhere: by LangChain, or by bind_tools
        tools = changes.pop("tools", None) or ()
        if stop is not None:
            changes["stop"] = tuple(stop)
        if "response_format" in changes:
            changes["json_schema"] = _read_format(changes.pop("response_format"))
        options = self._defaults.changed(changes)  # type: ignore[arg-type]  # checked there
        if tools and options.shape() is not None:
            raise OptionError(
                "A schema together with tools is not supported: a call would not fit it. Ask for "
                "calls and for the schema in separate requests."
            )
        return tools, options

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002 - LangChain's name
        **kwargs: Any,
    ) -> ChatResult:
        with self._start(messages, stop, kwargs) as stream:
            return self._result(stream.drain())

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,  # noqa: ARG002 - likewise
        **kwargs: Any,
    ) -> ChatResult:
        async with await self._astart(messages, stop, kwargs) as stream:
            return self._result(await stream.adrain())

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        with self._start(messages, stop, kwargs) as stream:
            _require_single(stream)
            for piece in stream.pieces():
                if chunk := _chunk_of(piece):
                    if run_manager is not None:
                        run_manager.on_llm_new_token(piece.text, chunk=chunk)
                    yield chunk
            yield self._end_of(stream.reply)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        async with await self._astart(messages, stop, kwargs) as stream:
            _require_single(stream)
            async for piece in stream.apieces():
                if chunk := _chunk_of(piece):
                    if run_manager is not None:
                        await run_manager.on_llm_new_token(piece.text, chunk=chunk)
                    yield chunk
            yield self._end_of(stream.reply)

    def _result(self, reply: Reply) -> ChatResult:
        generations = []
        for candidate in reply.candidates or (reply,):
            message = answer_message(candidate, model_name=self.model_name, texts=self._texts)
            reason = message.response_metadata["finish_reason"]
            info = {"finish_reason": reason}
            generations.append(ChatGeneration(message=message, generation_info=info))
        return ChatResult(generations=generations, llm_output={"model_name": self.model_name})

    def _end_of(self, reply: Reply) -> ChatGenerationChunk:
        message = last_chunk(reply, model_name=self.model_name, texts=self._texts)
        info = {"finish_reason": message.response_metadata["finish_reason"]}
        return ChatGenerationChunk(message=message, generation_info=info)

    @property
    def _texts(self) -> TokenTexts:
        return TokenTexts(self._loaded.tokenizer)


def _chunk_of(piece: Piece) -> ChatGenerationChunk | None:
    """Return a piece as a chunk; None if it is empty."""
    if not (piece.text or piece.reasoning):
        return None
    thoughts = {"reasoning_content": piece.reasoning} if piece.reasoning else {}
    message = AIMessageChunk(content=piece.text, additional_kwargs=thoughts)
    return ChatGenerationChunk(message=message)


def _require_single(stream: ReplyStream) -> None:
    if stream.candidates:
        raise OptionError(
            f"candidates={len(stream.candidates)} cannot be streamed: LangChain's streams have one "
            "answer. Call generate().",
            option="candidates",
        )


def _cancel_started(starting: Future[ReplyStream]) -> None:
    if not starting.cancelled() and starting.exception() is None:
        starting.result().cancel()


def _make_tool(tool: dict[str, Any] | type | Callable[..., Any] | BaseTool) -> Tool:
    """Return a tool; one without parameters takes none.

    LangChain describes those by an object without properties, which JSON Schema fits any object.
    """
    made = Tool.of(convert_to_openai_tool(tool))
    if made.parameters.get("type") == "object" and not made.parameters.get("properties"):
        closed = {"properties": {}, "additionalProperties": False}
        return replace(made, parameters={**closed, **made.parameters})
    return made


def _describe(tool: Tool) -> dict[str, Any]:
    """Return a tool as OpenAI's dictionary, which tracers and caches can serialize."""
    described = {
        "name": tool.name,
        "description": tool.description,
        "parameters": dict(tool.parameters),
    }
    return {"type": "function", "function": described}


def _read_choice(
    choice: str | dict[str, Any] | bool | None,  # noqa: FBT001 - as LangChain has it
    tools: Sequence[Tool],
) -> str | dict[str, str] | None:
    """Convert LangChain's tool choice to phi3ov's."""
    names = [tool.name for tool in tools]
    if choice is None or choice is False:
        return None
    if choice is True or choice in ("any", "required"):
        return {"name": names[0]} if len(names) == 1 else "required"
    if choice in ("auto", "none"):
        return str(choice)
    if isinstance(choice, dict):
        function = choice.get("function", choice)
        name = function.get("name") if isinstance(function, dict) else None
    else:
        name = choice
    if name not in names:
        raise OptionError(
            f"tool_choice={choice!r:.80} names none of the tools: {', '.join(names)}.",
            option="tool_choice",
        )
    return {"name": str(name)}


def _read_format(response_format: Any) -> dict[str, Any] | None:
    """Return the schema of OpenAI's ``response_format``; None for text."""
    if response_format is None:
        return None
    kind = response_format.get("type") if isinstance(response_format, Mapping) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    if kind == "json_schema":
        described = response_format.get("json_schema")
        schema = described.get("schema") if isinstance(described, Mapping) else None
        if isinstance(schema, Mapping):
            return dict(schema)
    raise OptionError(
        f"response_format={response_format!r:.80} is not one of {{'type': 'text'}}, {{'type': "
        "'json_object'}} and {{'type': 'json_schema', 'json_schema': {{'schema': ...}}}}.",
        option="response_format",
    )
