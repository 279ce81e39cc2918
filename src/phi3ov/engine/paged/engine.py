"""The paged engine, whose KV cache can be saved: OpenVINO's paged attention without genai.

It runs one request at a time and caches one sequence. A new prompt reuses its longest common
prefix with that sequence, with token granularity. `phi3ov.engine.pipeline` is faster and supports
more options.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...answer.token_stream import TokenRequest, TokenStream, TopLogprobs
from ...errors import DeviceError, OptionError, RestoreError
from ...runtime.huge_pages import HugePages
from ..sampling import check_request
from ..serial import SerialEngine
from .cache_file import CacheFile, CacheOrigin, write_cache
from .model import BLOCK_TOKENS, PagedModel
from .sampling import Sampler, log_probabilities, top_logprobs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ...artifact.fingerprint import ModelFingerprint
    from ...runtime.settings import Setting
    from ..protocol import EngineSetup

PREFILL_CHUNK_TOKENS = 512
"""Prompt tokens per forward pass; limits memory and the delay of a cancellation."""
SCORED_CHUNK_TOKENS = 64
"""Tokens per forward pass when scoring; their logits take 51 MB with Phi-4-mini's vocabulary."""


class PagedEngine(SerialEngine):
    """Generates with OpenVINO; keeps, saves and restores the KV cache of one sequence."""

    def __init__(self, setup: EngineSetup) -> None:
        """Compile the setup's model.

        Raises:
            DeviceError: The device is not a CPU, or OpenVINO could not compile the model for it.
            OptionError: ``cache_bytes`` is set, or the device does not support a property.
            UnsupportedModelError: The model lacks the rope factors of ``setup.context``, or its
                graph has an unknown structure.
        """
        device, artifact, context = setup.device, setup.artifact, setup.context
        setup.refuse(
            "paged",
            cache_bytes="keeps one sequence, without a size limit",
            speculation="reads one token per pass",
            adapter="does not support LoRA adapters",
        )
        if device.partition(".")[0] != "CPU":
            raise DeviceError(
                f"engine='paged' runs on the CPU only, and device={device!r} was chosen. Load with "
                "device='CPU', or with engine='pipeline'."
            )
        huge_pages = HugePages(setup.config, device, "paged")
        huge_pages.begin()
        model = PagedModel(
            artifact, device=device, config=setup.config, context=context, tuned=setup.tuned
        )
        runner = _Runner(model, huge_pages)
        self._settings, self._huge_pages = model.settings, huge_pages
        self._runner = runner
        self._context_tokens = context.tokens
        self._vocabulary_size = artifact.vocabulary_size
        super().__init__(runner.run, free=runner.free, name="paged", limits=setup.limits)

    @property
    def settings(self) -> tuple[Setting, ...]:
        """The settings in force, each with its reason."""
        return (*self._settings, self._huge_pages.setting)

    def submit(
        self, request: TokenRequest, *, timeout_seconds: float | None = None, wait: bool = False
    ) -> TokenStream:
        """Queue ``request`` and return its stream at once; see `Engine.submit`."""
        check_request(request, "paged")
        largest = max(request.sampling.logit_bias or (0,))
        if largest >= self._vocabulary_size:
            raise OptionError(
                f"logit_bias names the token {largest}, and the model's ids go from 0 to "
                f"{self._vocabulary_size - 1}.",
                option="logit_bias",
            )
        return super().submit(request, timeout_seconds=timeout_seconds, wait=wait)

    def score(
        self, token_ids: Sequence[int], *, first: int
    ) -> tuple[tuple[float, ...], TopLogprobs]:
        """Return, from ``first`` on, each token's log-probability and the most likely token there.

        Raises:
            GenerationError: The model failed.
            StateError: The engine is closed.
        """
        scores: list[tuple[float, tuple[int, float]]] = []
        self.do(lambda: scores.extend(self._runner.score(token_ids, first)))
        return tuple(value for value, _ in scores), tuple(likeliest for _, likeliest in scores)

    def save_cache(
        self, token_ids: Sequence[int], path: Path, fingerprint: ModelFingerprint
    ) -> None:
        """Write the KV cache of ``token_ids`` to ``path``; computes missing parts first."""
        self.do(lambda: self._runner.save(token_ids, path, fingerprint))

    def restore_cache(
        self, path: Path, fingerprint: ModelFingerprint, *, verify: bool
    ) -> tuple[int, ...]:
        """Load the KV cache from a file; return the ids that it holds."""
        restored: list[tuple[int, ...]] = []

        def restore() -> None:
            origin = self._runner.origin(fingerprint)
            try:
                file = CacheFile.open(path, origin, vocabulary_size=self._vocabulary_size)
                if len(file.token_ids) > self._context_tokens:
                    raise ValueError(
                        f"it holds {len(file.token_ids)} tokens, and the context has "
                        f"{self._context_tokens}."
                    )
                self._runner.restore(file, verify=verify)
            except ValueError as error:
                raise RestoreError(path, str(error)) from error
            restored.append(file.token_ids)

        self.do(restore)
        return restored[0]

    def forget_cache(self) -> None:
        """Empty the cache after earlier requests have ended."""
        self.do(self._runner.forget)


class _Runner:
    """Owns the native model and its cache; used on the engine's thread only, once built."""

    def __init__(self, model: PagedModel, huge_pages: HugePages) -> None:
        self.model = model
        self._huge_pages = huge_pages
        self._cached_ids: list[int] = []  # the tokens in the cache

    def free(self) -> None:
        """Release the model and its cache; must be the last call."""
        del self.model

    def run(self, stream: TokenStream) -> None:
        """Generate for one stream; called on the engine's thread."""
        request = stream.request
        stream.cached_tokens = self._keep(request.prompt_ids, len(request.prompt_ids) - 1)
        self.model.reserve(
            len(request.prompt_ids) + request.max_new_tokens, keep=len(self._cached_ids)
        )
        sampler = Sampler(request)
        produced = 0
        logits = self._read(request.prompt_ids[stream.cached_tokens :], stream)
        while logits is not None and not stream.cancelled:
            token = sampler.choose(logits)
            produced += 1
            if request.logprobs:
                logprobs = log_probabilities(logits)
                stream.logprobs.append(float(logprobs[token]))
                if request.top_logprobs:
                    stream.top_logprobs.append(top_logprobs(logprobs, request.top_logprobs))
            stream.put([token])
            if token in request.stop_ids or produced == request.max_new_tokens:
                break
            logits = self._read([token], stream)
        self._huge_pages.finish()  # the first answer has repacked the weights

    def score(
        self, token_ids: Sequence[int], first: int
    ) -> Iterator[tuple[float, tuple[int, float]]]:
        """Yield, from ``first`` on, each token's log-probability and the most likely token."""
        known = self._keep(token_ids, first - 1)
        self.model.reserve(len(token_ids), keep=known)
        self._read(token_ids[known : first - 1], None)
        # The logits after a token predict the next one, so the last token need not be read.
        for start in range(first - 1, len(token_ids) - 1, SCORED_CHUNK_TOKENS):
            chunk = token_ids[start : min(start + SCORED_CHUNK_TOKENS, len(token_ids) - 1)]
            rows = self.model.read_all(chunk, past=len(self._cached_ids))
            self._cached_ids += chunk
            for row, token in zip(rows, token_ids[start + 1 :], strict=False):
                logprobs, best = log_probabilities(row), int(row.argmax())
                yield float(logprobs[token]), (best, float(logprobs[best]))

    def origin(self, fingerprint: ModelFingerprint) -> CacheOrigin:
        """Return the model and settings that determine the cache's numbers."""
        return CacheOrigin(
            fingerprint=fingerprint, numerics=self.model.numerics, layout=self.model.layout
        )

    def save(self, token_ids: Sequence[int], path: Path, fingerprint: ModelFingerprint) -> None:
        """Write the cache of ``token_ids``."""
        # Read the last, unfilled block again into zeros. Otherwise the file would hold what other
        # tokens left in it, and in a quantized cache they would change the scales.
        whole = len(token_ids) - len(token_ids) % BLOCK_TOKENS
        kept = self._keep(token_ids, whole)
        kept -= kept % BLOCK_TOKENS
        del self._cached_ids[kept:]
        self.model.reserve(len(token_ids), keep=kept)
        used = math.ceil(len(token_ids) / BLOCK_TOKENS)
        for buffer in self.model.buffers:
            buffer[kept // BLOCK_TOKENS : used] = 0
        self._read(token_ids[kept:], None)
        buffers = [buffer[:used] for buffer in self.model.buffers]
        write_cache(path, self.origin(fingerprint), token_ids, buffers)

    def restore(self, file: CacheFile, *, verify: bool) -> None:
        """Load the cache from ``file``."""
        self._cached_ids = []
        self.model.reserve(len(file.token_ids), keep=0)
        used = math.ceil(len(file.token_ids) / BLOCK_TOKENS)
        file.read_into([buffer[:used] for buffer in self.model.buffers], verify=verify)
        self._cached_ids = [*file.token_ids]

    def forget(self) -> None:
        """Release the cache's memory."""
        self._cached_ids = []
        self.model.release()

    def _keep(self, token_ids: Sequence[int], most: int) -> int:
        """Keep the cached prefix of ``token_ids``, at most ``most`` tokens; return its length."""
        equal = 0
        for cached, token in zip(self._cached_ids, token_ids[:most], strict=False):
            if cached != token:
                break
            equal += 1
        del self._cached_ids[equal:]
        return equal

    def _read(
        self, token_ids: Sequence[int], stream: TokenStream | None
    ) -> NDArray[np.float32] | None:
        """Append ids to the cache; return the last logits, or None if cancelled."""
        logits = None
        for start in range(0, len(token_ids), PREFILL_CHUNK_TOKENS):
            if stream is not None and stream.cancelled:
                return None
            chunk = token_ids[start : start + PREFILL_CHUNK_TOKENS]
            logits = self.model.read(chunk, past=len(self._cached_ids))
            self._cached_ids += chunk
        return logits
