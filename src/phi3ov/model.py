"""A loaded model, `Phi3Model`: messages, a raw prompt or token ids in, replies out.

Every answer follows the same path: encode to `PromptIds`, fit the context, submit to the engine,
read a `ReplyStream`. ``loading.py`` assembles a model; ``chat.py`` keeps conversation history.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, overload

from .answer.call_plan import plan_calls
from .answer.candidates import CandidateStream
from .answer.options import (
    MOST_SEED,
    GenerationOptions,
    Options,
    OptionsBesideSchema,
    Sampling,
)
from .answer.prompt_ids import PromptIds, conversation_ids, fit_prompt
from .answer.recommended import recommended_sampling
from .answer.reply import LoadTimings, Parsed, Reply, TokenScores
from .answer.stages import Stage, plan_stages, require_stages
from .answer.stream import AnswerStream, ReplyStream
from .answer.token_stream import TokenRequest, TokenStream
from .artifact.fingerprint import ModelFingerprint
from .artifact.folder import Artifact
from .batch.runner import Batch, BatchRequest, BatchResult, Conversation, ReportProgress
from .engine.protocol import CacheEngine, Engine, EngineState, ScoringEngine
from .engine.staged import submit_staged
from .errors import ContextLengthError, OptionError, PromptError
from .prompt.chat_tokenizer import ChatTokenizer
from .prompt.detokenizer import AnswerText
from .prompt.dictionaries import read_messages
from .prompt.messages import Message
from .prompt.tools import ToolSource, read_tools
from .runtime.config import RuntimeConfig
from .runtime.devices import DeviceChoice
from .runtime.limits import RequestLoad
from .runtime.lora import LoraAdapter
from .runtime.rope import ContextChoice
from .runtime.settings import Setting
from .validation import require_integer

if TYPE_CHECKING:
    from typing import Unpack


class Phi3Model:
    """A loaded model. Use it as a context manager, or call `close` when done.

    Attributes:
        artifact: The folder that it was loaded from.
        device: The device that it runs on, and the reason for the choice.
        context: Its context in tokens, and the LongRoPE factors in force.
        tokenizer: Encodes messages to ids, and decodes ids.
        config: The OpenVINO settings that it was loaded with.
        adapter: The LoRA adapter that it was loaded with, or None.
        load_timings: Durations of loading.
    """

    def __init__(
        self,
        *,
        artifact: Artifact,
        device: DeviceChoice,
        context: ContextChoice,
        tokenizer: ChatTokenizer,
        engine: Engine,
        config: RuntimeConfig,
        adapter: LoraAdapter | None = None,
        load_timings: LoadTimings = LoadTimings(),  # noqa: B008 - immutable
    ) -> None:
        """Assemble the parts; use `load_model` instead."""
        self.artifact = artifact
        self.device = device
        self.context = context
        self.tokenizer = tokenizer
        self.config = config
        self.adapter = adapter
        self.load_timings = load_timings
        self._engine = engine

    @property
    def settings(self) -> tuple[Setting, ...]:
        """Every setting in force, with its origin and reason.

        All are OpenVINO's properties except ``HUGE_PAGES``: whether the weights are in huge pages.
        """
        return self._engine.settings

    @cached_property
    def fingerprint(self) -> ModelFingerprint:
        """Identity of the model, for saved files: checksums of weights and tokenizer.

        The checksums are the manifest's, which `load_model` has compared with the files. With
        ``verify=False`` they describe the export, even if files have changed since. A folder
        without a manifest is hashed on first access, which takes seconds for a full-size model.
        """
        return ModelFingerprint.of(self.artifact)

    def recommended_options(self, **changes: Unpack[Options]) -> GenerationOptions:
        """Return the options that the model's card recommends; they are never set automatically.

        Phi-4-mini-reasoning: temperature 0.8, top_p 0.95. Phi-4-reasoning and -plus: temperature
        0.8, top_p 0.95, top_k 50. Source: the model cards at huggingface.co/microsoft.

        Args:
            **changes: Other fields of `GenerationOptions`, such as ``max_new_tokens``.

        Raises:
            OptionError: The card recommends nothing, or a change is not allowed.

        Example:
            >>> options = model.recommended_options(max_new_tokens=4096)  # doctest: +SKIP
            >>> phi3ov.Phi3Chat(model, options=options)  # doctest: +SKIP
        """
        sampling = recommended_sampling(self.tokenizer.format.name)
        chosen = {each.name: getattr(sampling, each.name) for each in fields(Sampling)}
        return GenerationOptions(**chosen).changed(changes)

    @overload
    def generate(
        self,
        messages: Sequence[Message | Mapping[str, object]],
        *,
        json_schema: type[Parsed],
        tools: Sequence[ToolSource] = ...,
        continue_last: bool = ...,
        options: GenerationOptions = ...,
        **changes: Unpack[OptionsBesideSchema],
    ) -> Reply[Parsed]: ...
    @overload
    def generate(
        self,
        messages: Sequence[Message | Mapping[str, object]],
        *,
        tools: Sequence[ToolSource] = ...,
        continue_last: bool = ...,
        options: GenerationOptions = ...,
        **changes: Unpack[Options],
    ) -> Reply: ...
    def generate(
        self,
        messages: Sequence[Message | Mapping[str, object]],
        *,
        tools: Sequence[ToolSource] = (),
        continue_last: bool = False,
        options: GenerationOptions = GenerationOptions(),  # noqa: B008 - immutable
        **changes: Unpack[Options],
    ) -> Reply:
        """Answer a conversation; the model keeps no history.

        Args:
            messages: The conversation, oldest first: `Message` values, or dictionaries of OpenAI's
                protocol. It ends with a user message or a tool result.
            tools: Tools that the model may call; `Reply.tool_calls` holds its calls. Needs a model
                that was trained with tools (Phi-4-mini).
            continue_last: Whether the last message is an assistant message that the answer
                continues. The reply holds only the continuation.
            options: Generation options.
            **changes: Fields of `GenerationOptions` that differ from ``options``.

        Raises:
            PromptError: The conversation cannot be answered; names the message.
            ContextLengthError: Conversation and answer do not fit the context.
            OptionError: An option is unknown or not allowed, or the engine does not support it.
            StateError: The model is closed, or was loaded by a parent process.
            QueueFullError: The queue is full, and ``on_full_queue`` is not ``"wait"``.
            GenerationError: The engine failed; ``partial_text`` holds the partial answer.

        Example:
            >>> model.generate([phi3ov.Message("user", "Hello")]).text  # doctest: +SKIP
            'Hello! How can I help you today?'
        """
        stream = self.stream(
            messages, tools=tools, continue_last=continue_last, options=options, **changes
        )
        return stream.drain()

    @overload
    def stream(
        self,
        messages: Sequence[Message | Mapping[str, object]],
        *,
        json_schema: type[Parsed],
        tools: Sequence[ToolSource] = ...,
        continue_last: bool = ...,
        options: GenerationOptions = ...,
        **changes: Unpack[OptionsBesideSchema],
    ) -> ReplyStream[Parsed]: ...
    @overload
    def stream(
        self,
        messages: Sequence[Message | Mapping[str, object]],
        *,
        tools: Sequence[ToolSource] = ...,
        continue_last: bool = ...,
        options: GenerationOptions = ...,
        **changes: Unpack[Options],
    ) -> ReplyStream: ...
    def stream(
        self,
        messages: Sequence[Message | Mapping[str, object]],
        *,
        tools: Sequence[ToolSource] = (),
        continue_last: bool = False,
        options: GenerationOptions = GenerationOptions(),  # noqa: B008 - immutable
        **changes: Unpack[Options],
    ) -> ReplyStream:
        """Answer a conversation with a stream of text; see `generate`.

        Generation starts at once. Errors of the engine are raised while the stream is read.
        """
        offered = read_tools(tools)
        read = read_messages(messages, ends_with="answer" if continue_last else "question")
        prompt = conversation_ids(self.tokenizer, read, tools=offered, continue_last=continue_last)
        return self.stream_ids(prompt, tools=offered, options=options, **changes)

    @overload
    async def agenerate(
        self,
        messages: Sequence[Message | Mapping[str, object]],
        *,
        json_schema: type[Parsed],
        tools: Sequence[ToolSource] = ...,
        continue_last: bool = ...,
        options: GenerationOptions = ...,
        **changes: Unpack[OptionsBesideSchema],
    ) -> Reply[Parsed]: ...
    @overload
    async def agenerate(
        self,
        messages: Sequence[Message | Mapping[str, object]],
        *,
        tools: Sequence[ToolSource] = ...,
        continue_last: bool = ...,
        options: GenerationOptions = ...,
        **changes: Unpack[Options],
    ) -> Reply: ...
    async def agenerate(
        self,
        messages: Sequence[Message | Mapping[str, object]],
        *,
        tools: Sequence[ToolSource] = (),
        continue_last: bool = False,
        options: GenerationOptions = GenerationOptions(),  # noqa: B008 - immutable
        **changes: Unpack[Options],
    ) -> Reply:
        """Async version of `generate`; does not block the event loop."""
        stream = self.stream(
            messages, tools=tools, continue_last=continue_last, options=options, **changes
        )
        async with stream:
            return await stream.adrain()

    def complete(self, prompt: str, **options: Unpack[Options]) -> Reply:
        r"""Continue a raw prompt string, in which control tokens are honoured.

        Only here can text become a control token: never put untrusted text into ``prompt``. For
        conversations use `generate` or `phi3ov.Phi3Chat`.

        Args:
            prompt: Such as ``"<|user|>\nHello<|end|>\n<|assistant|>\n"``.
            **options: Fields of `GenerationOptions`.

        Raises:
            PromptError: The prompt is empty.
            ContextLengthError: Prompt and answer do not fit the context.
            OptionError: An option is unknown or not allowed, or the engine does not support it.
            StateError: The model is closed, or was loaded by a parent process.
            QueueFullError: The queue is full, and ``on_full_queue`` is not ``"wait"``.
            GenerationError: The engine failed; ``partial_text`` holds the partial answer.
        """
        return self.stream_prompt(prompt, **options).drain()

    def stream_prompt(self, prompt: str, **options: Unpack[Options]) -> ReplyStream:
        """Continue a raw prompt string with a stream of text; see `complete`."""
        return self.stream_ids(self.tokenizer.encode_raw(prompt), **options)

    def stream_ids(
        self,
        token_ids: Sequence[int] | PromptIds,
        *,
        tools: Sequence[ToolSource] = (),
        options: GenerationOptions = GenerationOptions(),  # noqa: B008 - immutable
        **changes: Unpack[Options],
    ) -> ReplyStream:
        """Continue token ids with a stream of text. All other methods use this one.

        To continue an answer that was cut off exactly where it ended, pass its ids:
        ``model.stream_ids((*reply.prompt_ids, *reply.token_ids))``.

        Args:
            token_ids: The prompt. With `PromptIds`, ``on_overflow="drop_oldest"`` can drop turns.
            tools: Tools that the prompt describes; see ``tool_choice`` of `GenerationOptions`.
            options: Generation options.
            **changes: Fields of `GenerationOptions` that differ from ``options``.

        Raises:
            PromptError: ``token_ids`` is empty, or an id is not in the vocabulary.
            ContextLengthError: Prompt and answer do not fit the context.
            OptionError: An option is unknown or not allowed, or the engine does not support it.
            StateError: The model is closed, or was loaded by a parent process.
            QueueFullError: The queue is full, and ``on_full_queue`` is not ``"wait"``.
        """
        chosen, offered = options.changed(changes), read_tools(tools)
        if not isinstance(token_ids, PromptIds):
            token_ids = PromptIds(ending=tuple(token_ids))
        shape = chosen.shape()
        plan = plan_calls(
            self.tokenizer,
            offered,
            chosen.tool_choice,
            guide=self._engine.takes_grammars,
            shaped=shape is not None,
        )
        require_stages(self.tokenizer, plan, chosen, shaped=shape is not None)
        if self.tokenizer.thought_tags is None:  # otherwise they follow the thoughts
            token_ids = replace(token_ids, answer=(*token_ids.answer, *plan.opening_ids))
        fitted = fit_prompt(token_ids, chosen, self.context.tokens)
        self._require_ids(fitted.token_ids)
        request = TokenRequest(
            prompt_ids=fitted.token_ids,
            max_new_tokens=fitted.max_new_tokens,
            stop_ids=frozenset(self.tokenizer.stop_tokens) | plan.stop_ids,
            sampling=chosen.sampling,
            logprobs=chosen.logprobs,
            top_logprobs=chosen.top_logprobs,
            grammar=plan.grammar if shape is None else shape.grammar,
        )
        make_stages = partial(
            plan_stages,
            self.tokenizer,
            plan,
            chosen,
            shape_grammar=None if shape is None else shape.grammar,
            before=token_ids.answer,
        )
        streams = [
            AnswerStream(
                tokens,
                AnswerText(
                    self.tokenizer,
                    chosen.stop,
                    offered=plan.offered,
                    stop_ids=plan.stop_ids,
                    skip_special_tokens=chosen.skip_special_tokens,
                    before=token_ids.answer,
                ),
                shape=shape,
                dropped_turns=fitted.dropped_turns,
                keep_at_timeout=chosen.on_timeout == "keep",
            )
            for tokens in self._submit(request, chosen, make_stages)
        ]
        return streams[0] if len(streams) == 1 else CandidateStream(streams)

    def _submit(
        self,
        request: TokenRequest,
        options: GenerationOptions,
        make_stages: Callable[[], list[Stage]],
    ) -> list[TokenStream]:
        """Submit one request per candidate to the engine, each with its own seed: all or none."""
        streams: list[TokenStream] = []
        try:
            for sampling in _seeded(request.sampling, options.candidates):
                stream = submit_staged(
                    self._engine,
                    replace(request, sampling=sampling),
                    make_stages(),
                    timeout_seconds=options.timeout_seconds,
                    wait=options.on_full_queue == "wait" or bool(streams),
                )
                streams.append(stream)
        except BaseException:
            for stream in streams:
                stream.cancel()
            raise
        return streams

    def _require_ids(self, token_ids: Sequence[int]) -> None:
        size = self.artifact.vocabulary_size
        if not 0 <= min(token_ids) <= max(token_ids) < size:
            wrong = next(token_id for token_id in token_ids if not 0 <= token_id < size)
            raise PromptError(
                f"token_ids holds {wrong}, and the model's ids go from 0 to {size - 1}."
            )

    def generate_batch(
        self,
        conversations: Iterable[Conversation],
        *,
        progress: ReportProgress | None = None,
        **options: Unpack[Options],
    ) -> list[BatchResult]:
        """Answer each of several independent conversations; see `iter_batch`.

        Returns:
            One result per conversation, in the same order. The result of a failed conversation
            holds its error; the others are answered all the same.

        Example:
            >>> asked = [[phi3ov.Message("user", "Hello")], []]
            >>> for result in model.generate_batch(asked):  # doctest: +SKIP
            ...     print(result.index, result.error or result.reply)
            0 Hello! How can I help you today?
            1 The conversation is empty.
        """
        return list(self.iter_batch(conversations, in_order=True, progress=progress, **options))

    def iter_batch(
        self,
        conversations: Iterable[Conversation],
        *,
        in_order: bool = False,
        progress: ReportProgress | None = None,
        **options: Unpack[Options],
    ) -> Iterator[BatchResult]:
        """Answer any number of independent conversations, and yield each result when it ends.

        With ``engine="worker"`` conversations run at the same time, with other engines one after
        the other. ``conversations`` is read lazily, as places in the engine become free, so it may
        be a generator of any length; with ``in_order``, some results wait for earlier ones. When
        the engine crashes, its conversations are retried one by one, and only a conversation that
        crashes it again fails. Leaving the loop cancels the rest.

        Args:
            conversations: Each ends with a user message, or is a `BatchRequest` with its own
                options.
            in_order: Yield results in the order of the conversations instead of the order in
                which they end.
            progress: Called for each result, before it is yielded.
            **options: Fields of `GenerationOptions` for all conversations. A full queue is waited
                for, unless ``on_full_queue="raise"`` is set.

        Raises:
            OptionError: An option is unknown or not allowed.
            StateError: The model is closed.
            EngineCrashedError: Three consecutive conversations crashed the engine.
        """
        chosen = GenerationOptions(on_full_queue="wait").changed(options)
        running = self._engine.max_running
        batch = Batch(self._answer, chosen, running=running, in_order=in_order)
        return batch.run(conversations, progress or (lambda _progress: None))

    def save_kv_cache(self, token_ids: Sequence[int], path: str | Path) -> None:
        """Write the KV cache of ``token_ids`` to a file; computes missing parts first.

        For conversations use `Phi3Chat.save_kv_cache`, which calls this.

        Args:
            token_ids: At least one id, and fewer than the context has tokens.
            path: The file; an existing one is overwritten atomically. On POSIX only its owner
                may read it.

        Raises:
            PromptError: ``token_ids`` is empty.
            ContextLengthError: The ids fill the context.
            OptionError: The engine does not support saving its cache.
            GenerationError: The engine failed.
            OSError: The file cannot be written.
            StateError: The model is closed.
        """
        if not token_ids:
            raise PromptError("token_ids is empty, so there is no KV cache to save.")
        if len(token_ids) >= self.context.tokens:
            raise ContextLengthError(
                prompt_tokens=len(token_ids), max_new_tokens=1, context_tokens=self.context.tokens
            )
        self._cache_engine.save_cache(token_ids, Path(path), self.fingerprint)

    def restore_kv_cache(self, path: str | Path, *, verify: bool = True) -> int:
        """Load a KV cache that `Phi3Chat.save_kv_cache` wrote, in this process or another.

        Prompts that begin with its tokens then reuse them, until a prompt with another beginning
        replaces the cache. `Usage.cached_tokens` of a reply shows the reuse.

        Args:
            path: The file.
            verify: Compare the data with its checksums. The header is always checked.

        Returns:
            Number of tokens in the cache.

        Raises:
            RestoreError: The file is damaged, or was computed with another model, other
                precisions, rope factors, another device or another OpenVINO.
            OptionError: The engine does not support restoring a cache.
            OSError: The file cannot be read.
            StateError: The model is closed.
        """
        engine = self._cache_engine
        return len(engine.restore_cache(Path(path), self.fingerprint, verify=verify))

    @property
    def can_score(self) -> bool:
        """Whether `score` works: the engine computes the log-probabilities of a given text."""
        return isinstance(self._engine, ScoringEngine)

    def score(self, token_ids: Sequence[int], *, first: int = 1) -> TokenScores:
        """Return the log-probabilities of a given text's tokens, without generating.

        Evaluation harnesses use this for the probability of a continuation. Cached tokens before
        ``first`` are reused, so scoring several continuations of one context reads the context
        once.

        Args:
            token_ids: The text with its context, from
                ``model.tokenizer.encode_raw(text)``: at least two ids, at most the context length.
            first: Index of the first token to score, at least 1: the first token of the text has
                no predecessor and cannot be scored.

        Raises:
            PromptError: There are fewer than two ids, or an id is not in the vocabulary.
            ContextLengthError: The ids do not fit the context.
            OptionError: ``first`` is out of range, or the engine is not ``engine="paged"``.
            StateError: The model is closed.
            GenerationError: The engine failed.

        Example:
            >>> ids = model.tokenizer.encode_raw("The capital of France is Paris.")
            ...     # doctest: +SKIP
            >>> model.score(ids, first=len(ids) - 2).total_logprob  # doctest: +SKIP
            -1.3
        """
        if len(token_ids) < 2:
            raise PromptError(f"token_ids has {len(token_ids)} ids; scoring needs two or more.")
        self._require_ids(token_ids)
        require_integer("first", first, least=1, most=len(token_ids) - 1)
        if len(token_ids) > self.context.tokens:
            raise ContextLengthError(
                prompt_tokens=len(token_ids), max_new_tokens=0, context_tokens=self.context.tokens
            )
        if not isinstance(self._engine, ScoringEngine):
            raise OptionError(
                "This model's engine gives no probabilities of a given text. Load it with "
                "engine='paged'."
            )
        logprobs, likeliest = self._engine.score(token_ids, first=first)
        scored = tuple(token_ids[first:])
        return TokenScores(
            token_ids=scored,
            logprobs=logprobs,
            is_greedy=tuple(
                token == best for token, (best, _) in zip(scored, likeliest, strict=True)
            ),
            likeliest=likeliest,
        )

    @property
    def _cache_engine(self) -> CacheEngine:
        if not isinstance(self._engine, CacheEngine):
            raise OptionError(
                "This model's engine keeps its KV cache to itself. Load it with engine='paged'."
            )
        return self._engine

    def warm_up(self) -> float:
        """Generate two tokens, so that the next answer does not wait for weights to be repacked.

        `load_model` does this unless ``warm_up=False``.

        Returns:
            The duration in seconds, including earlier requests in the queue.

        Raises:
            StateError: The model is closed.
            GenerationError: The engine failed.
        """
        started = time.perf_counter()
        # No prompt starts with the end-of-message token, so warm-up neither hits nor pollutes the
        # prefix cache.
        prompt_ids = tuple(self.tokenizer.closing)
        request = TokenRequest(prompt_ids=prompt_ids, max_new_tokens=2, stop_ids=frozenset())
        for _ in self._engine.submit(request, wait=True):
            pass
        return time.perf_counter() - started

    def clear_cache(self) -> None:
        """Empty the KV cache; each conversation is read again with its next turn.

        Waits for earlier requests. openvino-genai cannot empty its cache, so the engines
        ``"pipeline"`` and ``"worker"`` build a new pipeline, which takes as long as when the model
        was loaded. ``"paged"`` frees its cache at once, including a restored one
        (`restore_kv_cache`). ``"transformers"`` keeps no cache between requests. Then the model
        is warmed up.

        Raises:
            StateError: The model is closed.
            GenerationError: The engine failed.
        """
        self._engine.forget_cache()
        self.warm_up()

    def close(self) -> None:
        """Cancel running requests and free the model. Idempotent."""
        self._engine.close()

    def __enter__(self) -> Phi3Model:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    @property
    def load(self) -> RequestLoad:
        """Current number of running and waiting requests, and of waiting prompt tokens."""
        return self._engine.load

    @property
    def state(self) -> EngineState:
        """``"ready"``, ``"restarting"`` while a worker process is replaced, or ``"closed"``."""
        return self._engine.state

    def __repr__(self) -> str:
        return (
            f"<phi3ov.Phi3Model {str(self.artifact.path)!r} on {self.device.selected}, "
            f"{self.context.tokens} tokens of context, {self.state}>"
        )

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "A loaded Phi3Model cannot be copied or pickled: it holds native memory and threads. "
            "Send the folder's path, and call phi3ov.load_model() in the other process."
        )

    def _answer(self, request: BatchRequest, options: GenerationOptions) -> ReplyStream:
        return self.stream(request.messages, tools=request.tools, options=options)


def _seeded(sampling: Sampling, candidates: int) -> Iterator[Sampling]:
    """Yield the sampling of each candidate, with consecutive seeds; None for greedy decoding."""
    if sampling.greedy:
        yield sampling
        return
    seed = secrets.randbelow(2**31) if sampling.seed is None else sampling.seed
    for number in range(candidates):
        yield replace(sampling, seed=(seed + number) % (MOST_SEED + 1))
