"""A loaded model: `load_model` puts artifact, device and engine together into a `Phi3Model`.

A model turns prompts into replies. Conversations with a memory are ``chat.py``.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from .artifact import Artifact
from .chat_format import Message
from .engine import ENGINES, Engine, EngineName, TokenRequest, load_engine
from .errors import ContextLengthError, OptionError, PromptError
from .generation import GenerationOptions, Options, Reply, ReplyPlan
from .prompt import ChatTokenizer
from .rope import ContextChoice, choose_context
from .runtime import DeviceChoice, RuntimeConfig, choose_device
from .stream import ReplyStream
from .text import AnswerText

if TYPE_CHECKING:
    from typing import Unpack

_LOGGER = logging.getLogger("phi3ov")

_BATCH_READERS = 32
"""How many conversations of a batch are given to the engine at once."""

FitPrompt = Callable[[int], tuple[list[int], int]]
"""Drops so many of the oldest turns; returns the prompt's ids and how many were dropped."""


def load_model(
    path: str | Path,
    *,
    device: str | Sequence[str] = ("GPU", "CPU"),
    config: RuntimeConfig = RuntimeConfig(),  # noqa: B008 - immutable
    engine: EngineName = "pipeline",
    context_tokens: int | None = None,
    verify: bool = True,
) -> Phi3Model:
    """Load an exported folder on the first of the preferred devices that is there.

    Args:
        path: A folder made by `phi3ov.export_model`.
        device: One OpenVINO device name, or several in order of preference.
        config: OpenVINO's settings.
        engine: ``"pipeline"`` (openvino-genai in this process, one answer at a time),
            ``"worker"`` (openvino-genai in a child process, many answers at once) or
            ``"transformers"`` (optimum-intel; needs ``phi3ov[export]``).
        context_tokens: Tokens that prompt and answer may have together. None is the model's
            original context. For a LongRoPE model a larger number chooses the long factors,
            for the whole life of the loaded model.
        verify: Compare every file with its SHA-256 in the manifest, beside the compilation.
            Without it only presence and size are checked. A folder that phi3ov did not export
            has no checksums; that is logged as a warning.

    Raises:
        ArtifactError: The folder is not what was exported; lists every problem.
        DeviceError: None of the devices is there, or compiling for it failed.
        OptionError: ``context_tokens`` or an OpenVINO property is not allowed.
        MissingDependencyError: The engine needs a package that is not installed.
        EngineCrashedError: The worker's process died while it loaded the model.

    Example:
        >>> with load_model("models/phi3-int4", device="CPU") as model:  # doctest: +SKIP
        ...     print(model.device.reason)
        CPU is the first choice and is there.
    """
    if engine not in ENGINES:
        raise OptionError(f"engine={engine!r} is not one of {', '.join(map(repr, ENGINES))}.")
    artifact = Artifact.open(path)
    context = choose_context(artifact.config, context_tokens)
    tokenizer = ChatTokenizer.from_folder(artifact.path, artifact.chat_format)
    choice = choose_device(device)
    _LOGGER.info("%s: %s", artifact.path, choice.reason)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="phi3ov-verify") as executor:
        checked = executor.submit(artifact.verify) if verify and artifact.has_checksums else None
        try:
            running = load_engine(engine)(
                artifact, device=choice.selected, config=config, context=context
            )
        except Exception:
            if checked is not None:
                checked.result()  # a damaged file is the better explanation
            raise
        try:
            if checked is not None:
                checked.result()
        except BaseException:
            running.close()
            raise
    return Phi3Model(
        artifact=artifact,
        device=choice,
        context=context,
        tokenizer=tokenizer,
        engine=running,
        config=config,
    )


class Phi3Model:
    """A loaded model. Use it as a context manager, or call `close` when done.

    Attributes:
        artifact: The folder it was loaded from.
        device: The device it runs on, and why that one.
        context: Its context in tokens, and the LongRoPE factors in force.
        tokenizer: Messages to ids and back.
        config: The OpenVINO settings it was loaded with.
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
    ) -> None:
        """Put the parts together; `load_model` does it."""
        self.artifact = artifact
        self.device = device
        self.context = context
        self.tokenizer = tokenizer
        self.config = config
        self._engine = engine

    def complete(self, prompt: str, **options: Unpack[Options]) -> Reply:
        r"""Continue a raw prompt string, in which control tokens are honoured.

        This is the one place where text can become a control token: never put text of others
        into ``prompt``. For conversations use `phi3ov.Phi3Chat`.

        Args:
            prompt: Such as ``"<|user|>\nHello<|end|>\n<|assistant|>\n"``.
            **options: Fields of `GenerationOptions`.

        Raises:
            PromptError: The prompt is empty.
            ContextLengthError: Prompt and answer do not fit the context.
            OptionError: An option is unknown or not allowed.
            GenerationError: The engine failed.
        """
        prompt_ids = self.tokenizer.encode_raw(prompt)
        return self._start_alone(prompt_ids, GenerationOptions().changed(options)).drain()

    def generate_batch(
        self, conversations: Iterable[Sequence[Message]], **options: Unpack[Options]
    ) -> list[Reply]:
        """Answer each of several independent conversations.

        With ``engine="worker"`` they are answered together, else one after the other.

        Args:
            conversations: Each ends with a user message.
            **options: Fields of `GenerationOptions`, for all of them.

        Returns:
            One reply per conversation, in the same order.

        Raises:
            PromptError: A conversation cannot be answered; nothing was generated then.
            ContextLengthError: One does not fit the context; nothing was generated then.
            OptionError: An option is unknown or not allowed.
            GenerationError: The engine failed.
            QueueFullError: Others keep the engine so busy that it takes no more.
        """
        chosen = GenerationOptions().changed(options)
        prompts = [self.tokenizer.encode_prompt(messages) for messages in conversations]
        plans = [self.plan(_whole_prompt(prompt_ids), chosen) for prompt_ids in prompts]
        streams: list[ReplyStream] = []

        def answer(planned: tuple[list[int], ReplyPlan]) -> Reply:
            prompt_ids, plan = planned
            stream = self.start(prompt_ids, plan, chosen)
            streams.append(stream)
            return stream.drain()

        # A reader each, or the timings would be those of reading and not of answering.
        with ThreadPoolExecutor(_BATCH_READERS, thread_name_prefix="phi3ov-batch") as executor:
            try:
                return list(executor.map(answer, plans))
            except BaseException:
                executor.shutdown(wait=False, cancel_futures=True)
                for stream in streams:
                    stream.cancel()
                raise

    def close(self) -> None:
        """Cancel what runs and free the model. May be called twice."""
        self._engine.close()

    def __enter__(self) -> Phi3Model:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _start_alone(self, prompt_ids: list[int], options: GenerationOptions) -> ReplyStream:
        """Start an answer to ``prompt_ids`` that belongs to no chat."""
        ids, plan = self.plan(_whole_prompt(prompt_ids), options)
        return self.start(ids, plan, options)

    def plan(
        self, fit_prompt: FitPrompt, options: GenerationOptions
    ) -> tuple[list[int], ReplyPlan]:
        """Make prompt and answer fit the context as ``options.on_overflow`` says; for `Phi3Chat`.

        Raises:
            PromptError: The prompt is empty.
            ContextLengthError: They do not fit, and the policy does not allow to make room.
        """
        prompt_ids, dropped = fit_prompt(0)
        if not prompt_ids:
            raise PromptError("The prompt is empty. Give at least one token.")
        limit = options.max_new_tokens
        if options.on_overflow == "drop_oldest":
            while len(prompt_ids) + limit > self.context.tokens:
                shorter, more = fit_prompt(dropped + 1)
                if more == dropped:
                    break
                prompt_ids, dropped = shorter, more
        elif options.on_overflow == "clamp" and len(prompt_ids) < self.context.tokens:
            limit = min(limit, self.context.tokens - len(prompt_ids))
        if len(prompt_ids) + limit > self.context.tokens:
            raise ContextLengthError(
                prompt_tokens=len(prompt_ids),
                max_new_tokens=limit,
                context_tokens=self.context.tokens,
            )
        seed = options.seed
        if options.temperature > 0 and seed is None:
            seed = secrets.randbelow(2**31)
        return prompt_ids, ReplyPlan(
            prompt_tokens=len(prompt_ids), max_new_tokens=limit, dropped_turns=dropped, seed=seed
        )

    def start(
        self,
        prompt_ids: list[int],
        plan: ReplyPlan,
        options: GenerationOptions,
        *,
        on_end: Callable[[Reply, bool], None] = lambda _reply, _keep: None,
        on_abort: Callable[[], None] = lambda: None,
    ) -> ReplyStream:
        """Start the answer that `plan` made room for; for `Phi3Chat`."""
        request = TokenRequest(
            prompt_ids=tuple(prompt_ids),
            max_new_tokens=plan.max_new_tokens,
            stop_ids=frozenset(self.tokenizer.stop_tokens),
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=options.top_k,
            repetition_penalty=options.repetition_penalty,
            seed=plan.seed,
        )
        answer = AnswerText(self.tokenizer, options.stop)
        return ReplyStream(
            self._engine.submit(request), answer, plan, on_end=on_end, on_abort=on_abort
        )


def _whole_prompt(prompt_ids: list[int]) -> FitPrompt:
    """Return a prompt without turns that could be dropped."""
    return lambda _turns: (prompt_ids, 0)
