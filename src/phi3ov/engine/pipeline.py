"""The default engine: openvino-genai's `LLMPipeline` in this process, one answer at a time.

Paged attention with prefix caching is requested explicitly, because genai otherwise falls back to
another attention back end silently. Prompts are passed as token ids, so genai neither applies a
template nor tokenizes, and needs no tokenizer files.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import openvino
import openvino_genai

from ..errors import DeviceError, GenerationError, PromptError
from ..runtime.huge_pages import HugePages
from ..runtime.lora import AdapterFile, read_adapter
from ..runtime.properties import compiling, device_settings
from ..runtime.settings import Setting, passed_properties
from .genai.draft import plan_speculation
from .genai.kv_pool import plan_pool
from .genai.npu import MAX_PROMPT, is_npu, plan_static
from .genai.pace import AnswerPace, Pacer
from .genai.prefix_cache import follow_cache
from .genai.vocabulary import grammar_tokenizer, loses_first_space
from .pinned import open_pinned
from .sampling import check_request, configure_genai
from .serial import SerialEngine

if TYPE_CHECKING:
    from ..answer.token_stream import TokenRequest, TokenStream
    from ..family import Phi3Config
    from .protocol import EngineSetup

PREFILL_CHUNK_TOKENS = 512
"""Prompt tokens per forward pass; limits the memory of a long prompt."""

CACHED_CONTEXTS = 4
MOST_CACHE_BYTES = 2 * 1024**3
"""Default size of the KV cache: this many full contexts, but at most this many bytes."""

ANSWERS_PER_DROP = 16
"""Interval at which mapped pages of the weights are dropped: after the first answer, then every
16th.

Each answer reads rows of the embedding table again. Dropping pages after every answer increased
the time to first token of a short prompt by 6 %.
"""


class PipelineEngine(SerialEngine):
    """Generates with openvino-genai."""

    def __init__(self, setup: EngineSetup) -> None:
        """Compile the setup's model.

        Raises:
            DeviceError: OpenVINO could not compile the model for the device, or an NPU does not
                support the export's recipe or an option.
            OptionError: The device does not support a property, or ``cache_bytes`` holds less
                than one context.
            UnsupportedModelError: The export does not hold the rope factors of ``setup.context``.
        """
        self._runner = _Runner(setup)
        self.takes_grammars: bool = not self._runner.speculation.candidate_tokens
        self.longest_prompt: int | None = self._runner.longest_prompt
        super().__init__(
            self._runner.run, free=self._runner.free, name="pipeline", limits=setup.limits
        )

    @property
    def settings(self) -> tuple[Setting, ...]:
        """The settings in force, each with its reason."""
        return (*self._runner.settings, self._runner.huge_pages.setting)

    def submit(
        self, request: TokenRequest, *, timeout_seconds: float | None = None, wait: bool = False
    ) -> TokenStream:
        """Queue ``request`` and return its stream at once; see `Engine.submit`."""
        check_request(request, "pipeline")
        self._runner.speculation.check(request)
        longest = self.longest_prompt
        if longest is not None and len(request.prompt_ids) > longest:
            raise PromptError(
                f"The prompt has {len(request.prompt_ids)} tokens, and the longest that an NPU can "
                f"read here has {longest}: the rest of the model's positions is kept for the "
                "answer. Shorten the conversation, or load the model with device='CPU'."
            )
        return super().submit(request, timeout_seconds=timeout_seconds, wait=wait)

    def forget_cache(self) -> None:
        """Build a new pipeline after earlier requests have ended: genai cannot empty its cache."""
        try:
            self.do(self._runner.build)
        except DeviceError as error:  # it compiled before, so the caller's options are valid
            raise GenerationError(f"The engine failed: {error}") from error


class _Runner:
    """Owns the native pipeline; used on the engine's thread only, once built.

    Attributes:
        settings: The OpenVINO properties in force.
        huge_pages: Moves the weights into huge pages.
        longest_prompt: Maximum prompt length of a static pipeline; None for no such limit.
        speculation: The plan for speculative decoding.
    """

    def __init__(self, setup: EngineSetup) -> None:
        self._setup = setup
        self.pipeline: Any = None
        self.settings = device_settings(
            setup.config,
            openvino.Core(),
            setup.device,
            artifact=setup.artifact,
            tuned=setup.tuned,
        )
        self.huge_pages = HugePages(setup.config, setup.device, "pipeline")
        self._static = plan_static(setup) if is_npu(setup.device) else {}
        passed = passed_properties(self.settings)
        self._properties = {name: passed[name] for name in passed if name not in self._static}
        self.longest_prompt = self._static.get(MAX_PROMPT)
        self.speculation = plan_speculation(setup)
        self._pacer = Pacer(self.speculation)
        self._adapter = (
            None if setup.adapter is None else read_adapter(setup.adapter, setup.artifact.config)
        )
        self.pool = plan_pool(
            setup,
            self._properties,
            self.speculation,
            contexts=CACHED_CONTEXTS,
            most_bytes=MOST_CACHE_BYTES,
        )
        self._model = open_pinned(setup.artifact, setup.context)  # must outlive the pipeline
        self._answers = itertools.count()
        self._leading_space = loses_first_space(setup.artifact.path)
        self.build()

    def free(self) -> None:
        """Free the model and its cache; must be the last call."""
        self.pipeline = None
        del self._model

    def build(self) -> None:
        """Build the pipeline with an empty cache; after a failure the next request tries again."""
        self.pipeline = None  # free the old one first
        self.huge_pages.begin()
        artifact, device = self._setup.artifact, self._setup.device
        scheduler = scheduler_config(self.pool.blocks, PREFILL_CHUNK_TOKENS)
        shape = self._static or {"scheduler_config": scheduler}
        # genai compiles a draft model for an NPU with lengths of its own.
        extra = self.speculation.properties(
            device,
            {**self._properties, **self._static},
            context_tokens=self._setup.context.tokens,
            model_folder=artifact.path,
        )
        with compiling(artifact.path, device), extra as speculative:
            self.pipeline = openvino_genai.LLMPipeline(
                self._model.xml,
                self._model.weights,
                grammar_tokenizer(artifact.path, drafted=bool(self.speculation.draft_folder)),
                device,
                openvino_genai.GenerationConfig(),
                **shape,
                **self._properties,
                **speculative,
                **adapter_properties(self._adapter, artifact.config),
            )
        self.cache = follow_cache(self.pool)

    def run(self, stream: TokenStream) -> None:
        """Generate for one stream; called on the engine's thread."""
        if self.pipeline is None:
            self.build()
        request = stream.request
        sequence = None  # a static pipeline keeps nothing between requests
        if not self._static:
            sequence = self.cache.begin(request.prompt_ids)
            stream.cached_tokens = sequence.reused
        pace = self._pacer.begin(request, split=not self._static)  # without a prefix cache
        streamer = _Streamer(stream, pace)
        computed_ids = list(request.prompt_ids)
        while streamer.goes_on and (part := pace.next_part()) is not None:
            known_ids = list(pace.ids)
            prompt = openvino.Tensor(np.array([known_ids], dtype=np.int64))
            config = generation_config(
                replace(request, max_new_tokens=part.new_tokens), leading_space=self._leading_space
            )
            self.speculation.configure(config, part.candidates)
            try:
                result = self.pipeline.generate(prompt, config, streamer)
            except BaseException:
                self.pipeline = None  # a failed request leaves the cache in an unknown state
                raise
            computed_ids = [*known_ids, *result.tokens[0]]
        pace.end()
        if sequence is not None:
            # Includes ids that genai generated after the last streamed id, until it saw the
            # cancellation. The very last id is never read.
            self.cache.follow(sequence, computed_ids[len(request.prompt_ids) : -1])
        if streamer.error is not None:
            raise streamer.error
        number = next(self._answers)
        if number % ANSWERS_PER_DROP == 0:
            self._model.drop_pages()
        self.huge_pages.finish()  # the first answer has repacked the weights


def adapter_properties(adapter: AdapterFile | None, config: Phi3Config) -> dict[str, Any]:
    """Return the pipeline properties that apply a LoRA adapter statically."""
    if adapter is None:
        return {}
    mode = openvino_genai.AdapterConfig.Mode.MODE_STATIC
    folded = adapter.folded(config)
    source: Any = str(adapter.weights)
    if folded is not None:
        source = openvino.Tensor(np.frombuffer(folded, np.uint8))
    pair = (openvino_genai.Adapter(source), adapter.scale)
    return {"adapters": openvino_genai.AdapterConfig([pair], mode)}


def scheduler_config(blocks: int, batched_tokens: int) -> openvino_genai.SchedulerConfig:
    """Return genai's scheduler settings: prefix caching in a KV cache of fixed size."""
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.enable_prefix_caching = True
    scheduler.max_num_batched_tokens = batched_tokens
    scheduler.num_kv_blocks = blocks
    return scheduler


def generation_config(
    request: TokenRequest, *, leading_space: bool = False
) -> openvino_genai.GenerationConfig:
    """Translate a request into genai's own configuration.

    Args:
        request: The request.
        leading_space: Whether the decoder drops a space at the beginning of an answer.
    """
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = request.max_new_tokens
    config.stop_token_ids = set(request.stop_ids)
    configure_genai(config, request.sampling)
    config.logprobs = int(request.logprobs)
    config.apply_chat_template = False
    if request.grammar is not None:
        root = 'root ::= " " answer' if leading_space else "root ::= answer"
        config.structured_output_config = openvino_genai.StructuredOutputConfig(
            grammar=f"{root}\n{request.grammar}"
        )
    return config


class _Streamer(openvino_genai.StreamerBase):  # type: ignore[misc]
    """Streaming callback: puts tokens on the stream and tells genai when to stop."""

    def __init__(self, stream: TokenStream, pace: AnswerPace) -> None:
        super().__init__()
        self._stream = stream
        self._pace = pace
        self.error: BaseException | None = None

    @property
    def goes_on(self) -> bool:
        """Whether more ids are wanted."""
        return self.error is None and not self._stream.cancelled

    def write(self, token: int | list[int]) -> openvino_genai.StreamingStatus:
        token_ids = [token] if isinstance(token, int) else [int(each) for each in token]
        status = openvino_genai.StreamingStatus
        if self._pace.switching:  # genai computes on until it sees the status
            return status.STOP
        try:
            self._stream.checked.append(self._pace.note(token_ids))
            self._stream.put(token_ids)
        except BaseException as error:  # noqa: BLE001 - an exception would make genai abort
            self.error = error
        if not self.goes_on:
            return status.CANCEL
        return status.STOP if self._pace.switching else status.RUNNING

    def end(self) -> None:
        """Do nothing: no token is held back."""
