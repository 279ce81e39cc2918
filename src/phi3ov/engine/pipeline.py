"""The default engine: openvino-genai's `LLMPipeline` in this process, one answer at a time.

Paged attention with prefix caching is asked for explicitly, because without that genai falls
back to another attention back end in silence. Prompts go in as token ids, so genai neither
templates nor tokenizes anything, and needs no tokenizer files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import openvino
import openvino_genai

from ..errors import DeviceError
from .pinned import open_pinned
from .serial import SerialEngine

if TYPE_CHECKING:
    from ..artifact import Artifact
    from ..rope import ContextChoice
    from ..runtime import RuntimeConfig
    from . import TokenRequest, TokenStream

PREFILL_CHUNK_TOKENS = 512
"""Prompt tokens per forward pass: bounds the memory that a long prompt takes."""

BLOCK_TOKENS = {"CPU": 32, "GPU": 16}
"""Tokens per block of genai's KV cache (its ``cpu_block_size`` and ``gpu_block_size``)."""


class PipelineEngine(SerialEngine):
    """Generates with openvino-genai."""

    def __init__(
        self, artifact: Artifact, *, device: str, config: RuntimeConfig, context: ContextChoice
    ) -> None:
        """Compile the artifact's model for ``device``.

        Raises:
            DeviceError: OpenVINO could not compile the model for the device.
            OptionError: A property was set that the device does not take.
            UnsupportedModelError: The rope factors of ``context`` cannot be had.
        """
        runner = _Runner(artifact, device=device, config=config, context=context)
        super().__init__(runner.run, name="pipeline")


class _Runner:
    """Owns the native pipeline; lives on the engine's thread once it is built."""

    def __init__(
        self, artifact: Artifact, *, device: str, config: RuntimeConfig, context: ContextChoice
    ) -> None:
        core = openvino.Core()
        properties = config.to_properties(core.get_property(device, "SUPPORTED_PROPERTIES"))
        self._model = open_pinned(artifact, context)  # its weights must outlive the pipeline
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = True
        scheduler.max_num_batched_tokens = PREFILL_CHUNK_TOKENS
        try:
            self._pipeline = openvino_genai.LLMPipeline(
                self._model.xml,
                self._model.weights,
                openvino_genai.Tokenizer(str(artifact.path)),
                device,
                openvino_genai.GenerationConfig(),
                scheduler_config=scheduler,
                **properties,
            )
        except RuntimeError as error:
            raise DeviceError(
                f"OpenVINO could not compile {artifact.path} for device={device!r}: {error}"
            ) from error
        self._cache = LastSequence(BLOCK_TOKENS.get(device.partition(".")[0], 32))

    def run(self, stream: TokenStream) -> None:
        """Generate for one stream; called on the engine's thread."""
        request = stream.request
        reused = self._cache.reusable(request.prompt_ids)
        # The last id is always read: its logits are needed.
        stream.cached_tokens = min(reused, len(request.prompt_ids) - 1)
        streamer = _Streamer(stream)
        prompt = openvino.Tensor(np.array([request.prompt_ids], dtype=np.int64))
        self._cache.forget()
        self._pipeline.generate(prompt, generation_config(request), streamer)
        if streamer.error is not None:
            raise streamer.error
        self._cache.remember(request.prompt_ids, streamer.token_ids[:-1], reused=reused)


def generation_config(request: TokenRequest) -> openvino_genai.GenerationConfig:
    """Translate a request into genai's own configuration."""
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = request.max_new_tokens
    config.stop_token_ids = set(request.stop_ids)
    config.repetition_penalty = request.repetition_penalty
    config.apply_chat_template = False
    if request.temperature > 0:
        config.do_sample = True
        config.temperature = request.temperature
        config.top_p = request.top_p
        if request.top_k is not None:
            config.top_k = request.top_k
        config.rng_seed = request.seed or 0
    return config


class _Streamer(openvino_genai.StreamerBase):  # type: ignore[misc]
    """Hands tokens to the stream and tells genai when to stop."""

    def __init__(self, stream: TokenStream) -> None:
        super().__init__()
        self._stream = stream
        self.token_ids: list[int] = []
        self.error: BaseException | None = None

    def write(self, token: int | list[int]) -> openvino_genai.StreamingStatus:
        token_ids = [token] if isinstance(token, int) else [int(one) for one in token]
        self.token_ids += token_ids
        try:
            self._stream.put(token_ids)
        except BaseException as error:  # noqa: BLE001 - genai aborts the process if it gets out
            self.error = error
        if self._stream.cancelled or self.error is not None:
            return openvino_genai.StreamingStatus.CANCEL
        return openvino_genai.StreamingStatus.RUNNING

    def end(self) -> None:
        """Nothing is held back."""


class LastSequence:
    """What genai's prefix cache keeps of the last request, counted as genai counts it.

    The cache holds whole blocks, and the begun block at the end of a sequence, which it can find
    by one length only: where the last *generated* token left it, or where a prompt first filled
    it. genai does not report what it reused. This says what it reuses of the *last* sequence,
    which is right for a chat that grows and at most too low where older sequences are still in
    the cache. (Source: ``append_slots`` and ``get_full_prefix_restore_plan`` in genai's
    ``block_manager.hpp``.)
    """

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._token_ids: tuple[int, ...] = ()
        self._findable_end = 0

    def forget(self) -> None:
        """Expect nothing: what a failed request leaves behind is not known."""
        self._token_ids, self._findable_end = (), 0

    def remember(
        self, prompt_ids: tuple[int, ...], generated_ids: list[int], *, reused: int
    ) -> None:
        """Note the ids that the model has read, of which `reusable` had found ``reused``."""
        self._token_ids = (*prompt_ids, *generated_ids)
        begun = len(self._token_ids) - len(self._token_ids) % self._block_tokens
        kept = not generated_ids and reused > begun
        self._findable_end = reused if kept else len(self._token_ids)

    def reusable(self, prompt_ids: tuple[int, ...]) -> int:
        """Return how many of ``prompt_ids`` the cache holds."""
        equal = 0
        for one, other in zip(self._token_ids, prompt_ids, strict=False):
            if one != other:
                break
            equal += 1
        whole = equal - equal % self._block_tokens
        return self._findable_end if whole < self._findable_end <= equal else whole
