"""Engines: token ids in, token ids out.

An engine knows nothing of roles, templates or text. It takes a `TokenRequest` and returns a
`TokenStream`, which it fills from a thread of its own; whoever reads the stream waits there.
To add an engine, write a class with the methods of `Engine` and name it in `ENGINES`.
"""

from __future__ import annotations

import importlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, cast, runtime_checkable

from ..errors import GenerationError, OptionError
from ..limits import RequestLimits

if TYPE_CHECKING:
    from pathlib import Path

    from ..artifact import Artifact
    from ..fingerprint import ModelFingerprint
    from ..lora import LoraAdapter
    from ..rope import ContextChoice
    from ..runtime import RuntimeConfig
    from ..speculation import Speculation

_LOGGER = logging.getLogger("phi3ov")

EngineName = Literal["pipeline", "worker", "paged", "transformers"]
"""What generates; see `load_model`."""

ENGINES: dict[EngineName, str] = {
    "pipeline": "phi3ov.engine.pipeline:PipelineEngine",
    "worker": "phi3ov.engine.worker:WorkerEngine",
    "paged": "phi3ov.engine.paged:PagedEngine",
    "transformers": "phi3ov.engine.transformers:TransformersEngine",
}
"""Where each engine's class is; imported when it is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRequest:
    """What to generate.

    Attributes:
        prompt_ids: The prompt, at least one id.
        max_new_tokens: The most ids to produce, the stop id included.
        stop_ids: Ids that end the answer; the one that did is the last id produced.
        temperature: 0 for greedy decoding.
        top_p: Nucleus probability; 1.0 is off.
        top_k: Number of candidates; None is off.
        min_p: Least share of the likeliest token's probability; 0.0 is off.
        repetition_penalty: 1.0 is off.
        presence_penalty: 0.0 is off.
        frequency_penalty: 0.0 is off.
        logprobs: Whether to fill `TokenStream.logprobs`.
        grammar: Rules in EBNF; the text of the ids follows the first, ``answer``. None is off.
        seed: Seed of the drawing; None for greedy decoding.
    """

    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    stop_ids: frozenset[int]
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logprobs: bool = False
    grammar: str | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSetup:
    """What an engine loads, and how.

    Attributes:
        artifact: The exported folder.
        device: OpenVINO's name of the device.
        config: OpenVINO's settings.
        context: Context in tokens, and the LongRoPE factors in force.
        limits: How many requests are answered together, and how many may wait.
        cache_bytes: Bytes that the KV cache may take; None is the engine's default.
        speculation: Where candidates for several tokens per pass come from; None is nowhere.
        adapter: A LoRA adapter; None is the model alone.
    """

    artifact: Artifact
    device: str
    config: RuntimeConfig
    context: ContextChoice
    limits: RequestLimits = RequestLimits()  # noqa: RUF009 - immutable
    cache_bytes: int | None = None
    speculation: Speculation | None = None
    adapter: LoraAdapter | None = None

    def refuse(self, engine: EngineName, **why: str) -> None:
        """Refuse the named options where they are set, for an engine that does not take them."""
        for name, reason in why.items():
            if (value := getattr(self, name)) is not None:
                raise OptionError(
                    f"{name}={value!r}: engine={engine!r} {reason}. Leave it out, or choose "
                    "engine='pipeline'."
                )


class TokenStream(Iterator[list[int]]):
    """Ids of one answer, put in by an engine's thread and read by one consumer.

    Attributes:
        request: What was asked for.
        cached_tokens: Prompt ids that the engine did not have to read again; right once the
            first ids have come.
        logprobs: If the request asks for them: the log-probability of each id put so far,
            in the same order. An engine adds to it before it puts the ids.
        begun: Whether the engine works on it; until then it can end without the engine.
        timed_out: Whether its time was over before it ended.
        asked_at: When it was opened, as ``time.perf_counter`` counts.
        put_at: When each chunk was put.
    """

    def __init__(self, request: TokenRequest, *, timeout_seconds: float | None = None) -> None:
        """Open the stream for ``request``; its time, if limited, runs from now."""
        self.request = request
        self.cached_tokens = 0
        self.logprobs: list[float] = []
        self.begun = False
        self.timed_out: bool = False
        self.asked_at: float = time.perf_counter()
        self.put_at: list[float] = []
        self._deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        self._chunks: queue.SimpleQueue[list[int] | BaseException | None] = queue.SimpleQueue()
        self._listeners: list[Callable[[], None]] = []
        self._end_listeners: list[Callable[[], None]] = []
        self._over = threading.Event()
        self._cancelled = False
        self._ended = False

    def __next__(self) -> list[int]:
        while not (chunk := self.poll(self._nap_seconds())):
            if chunk is None:
                raise StopIteration
        return chunk

    def poll(self, wait_seconds: float = 0.0) -> list[int] | None:
        """Return the next ids, ``[]`` if none come in time, None at the end.

        Raises:
            GenerationError: The engine failed.
        """
        if self._ended:
            return None
        chunk = self._next_chunk(wait_seconds)
        if chunk:
            if isinstance(chunk, list):
                return chunk
            self._ended = True
            if isinstance(chunk, GenerationError):
                raise chunk
            raise GenerationError(f"The engine failed: {chunk}") from chunk
        # The engine may be in the middle of something long; whoever reads need not wait for it.
        self._ended = chunk is None or (self.cancelled and (self.timed_out or not self.begun))
        return None if self._ended else []

    def _next_chunk(self, wait_seconds: float) -> list[int] | BaseException | None:
        """Return what the engine said next; ``[]``, which also wakes readers, says nothing."""
        try:
            chunk = self._chunks.get(block=wait_seconds > 0, timeout=wait_seconds or None)
            while chunk == []:
                chunk = self._chunks.get_nowait()
        except queue.Empty:
            return []
        return chunk

    def _nap_seconds(self) -> float:
        """How long to wait at once: a while, or Windows would not see Ctrl-C."""
        left = self.remaining_seconds
        return 0.5 if left is None else min(0.5, max(left, 0.001))

    @property
    def remaining_seconds(self) -> float | None:
        """How much of its time is left; None if that is not limited or it was cancelled."""
        if self._deadline is None or self._cancelled:
            return None
        return max(0.0, self._deadline - time.monotonic())

    def wait_for_end(self) -> None:
        """Wait until the engine has ended it, somebody has cancelled it, or its time is over."""
        while not self._over.wait(self._nap_seconds()):
            self.expire()

    def add_listener(self, wake: Callable[[], None], *, only_end: bool = False) -> None:
        """Call ``wake`` on the engine's thread whenever `poll` may have something new.

        Args:
            wake: Must not wait for anything.
            only_end: Call it when `wait_for_end` would return, not for each chunk.
        """
        (self._end_listeners if only_end else self._listeners).append(wake)

    def remove_listener(self, wake: Callable[[], None]) -> None:
        """Undo `add_listener` for each chunk."""
        self._listeners.remove(wake)

    def cancel(self) -> None:
        """Ask the engine to stop; it ends the stream within one token. For any thread."""
        self._cancelled = True
        self._tell([])
        self._tell_end()

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked to stop, or the time is over; engines ask after each token."""
        self.expire()
        return self._cancelled

    def expire(self) -> None:
        """Cancel it if its time is over."""
        if self.remaining_seconds == 0:
            self.timed_out = True
            self.cancel()

    def put(self, token_ids: list[int]) -> None:
        """Add ids, those of one pass over the weights; for the engine."""
        if token_ids:
            self.put_at.append(time.perf_counter())
            self._tell(token_ids)

    def end(self, error: BaseException | None = None) -> None:
        """End the stream, with the error that ended it if there was one; for the engine."""
        self._tell(error)
        self._tell_end()

    def _tell(self, chunk: list[int] | BaseException | None) -> None:
        self._chunks.put(chunk)
        _wake_all(self._listeners)

    def _tell_end(self) -> None:
        self._over.set()
        _wake_all(self._end_listeners)


def _wake_all(listeners: Sequence[Callable[[], None]]) -> None:
    for wake in tuple(listeners):
        try:
            wake()
        except Exception:  # the engine's thread serves others, too
            _LOGGER.exception("A listener of a stream failed.")


class Engine(Protocol):
    """What `phi3ov.Phi3Model` runs on.

    Attributes:
        max_running: How many requests it answers together.
    """

    max_running: int

    def submit(
        self, request: TokenRequest, *, timeout_seconds: float | None = None, wait: bool = False
    ) -> TokenStream:
        """Start generating, or queue behind the requests before this one; returns at once.

        Args:
            request: What to generate.
            timeout_seconds: After so many seconds from now the stream ends as timed out.
            wait: Queue also where the queue is full.

        Raises:
            OptionError: The engine cannot do what an option asks for.
            StateError: The engine is closed.
            QueueFullError: So many requests wait that it takes no more.
        """
        ...

    def forget_cache(self) -> None:
        """Give up the KV cache, after the requests before this call and before those after it.

        Raises:
            GenerationError: The engine failed.
            StateError: The engine is closed.
        """
        return

    def close(self) -> None:
        """Cancel what runs, end every stream and free the model. May be called twice."""
        ...


@runtime_checkable
class CacheEngine(Engine, Protocol):
    """An engine whose KV cache can be written to a file and read back."""

    def save_cache(
        self, token_ids: Sequence[int], path: Path, fingerprint: ModelFingerprint
    ) -> None:
        """Read ``token_ids`` if they are not in the cache, and write their cache to ``path``.

        Raises:
            GenerationError: The engine failed.
            OSError: The file cannot be written.
            StateError: The engine is closed.
        """
        ...

    def restore_cache(
        self, path: Path, fingerprint: ModelFingerprint, *, verify: bool
    ) -> tuple[int, ...]:
        """Make the cache that of a file; return the ids that need not be read again.

        Raises:
            RestoreError: The file is damaged, or not of this model under these settings.
            OSError: The file cannot be read.
            StateError: The engine is closed.
        """
        ...


class EngineFactory(Protocol):
    """How an engine's class is called by `load_engine`."""

    def __call__(self, setup: EngineSetup) -> Engine:
        """Compile the setup's model.

        Raises:
            DeviceError: OpenVINO could not compile the model for the device.
            OptionError: The device or the engine does not take an option of the setup.
            UnsupportedModelError: The rope factors of ``setup.context`` cannot be had.
        """
        ...


def load_engine(name: EngineName) -> EngineFactory:
    """Import and return the class of the engine called ``name``."""
    module, _, attribute = ENGINES[name].partition(":")
    return cast("EngineFactory", getattr(importlib.import_module(module), attribute))
