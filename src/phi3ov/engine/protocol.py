"""Engines: token ids in, token ids out.

An engine does not know about roles, templates or text. It accepts a `TokenRequest` and returns a
`TokenStream`, which it fills from its own thread while the reader waits on the stream.
To add an engine, write a class with the methods of `Engine` and name it in `ENGINES`.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, cast, runtime_checkable

from ..answer.token_stream import TokenRequest, TokenStream, TopLogprobs
from ..errors import OptionError, StateError
from ..runtime.limits import RequestLimits, RequestLoad

if TYPE_CHECKING:
    from pathlib import Path

    from ..artifact.fingerprint import ModelFingerprint
    from ..artifact.folder import Artifact
    from ..runtime.config import RuntimeConfig
    from ..runtime.lora import LoraAdapter
    from ..runtime.rope import ContextChoice
    from ..runtime.settings import Setting
    from ..runtime.speculation import Speculation
    from ..runtime.tuning import TunedSettings
    from .worker.process import EarlyProcess

EngineName = Literal["pipeline", "worker", "paged", "transformers"]
"""Name of an engine; see `load_model`."""

EngineState = Literal["ready", "restarting", "closed"]
"""Whether an engine accepts requests; "restarting" while a new worker process loads the model."""

ENGINES: dict[EngineName, str] = {
    "pipeline": "phi3ov.engine.pipeline:PipelineEngine",
    "worker": "phi3ov.engine.worker.engine:WorkerEngine",
    "paged": "phi3ov.engine.paged.engine:PagedEngine",
    "transformers": "phi3ov.engine.transformers:TransformersEngine",
}
"""Import path of each engine's class; imported on first use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSetup:
    """Everything that an engine needs to load a model.

    Attributes:
        artifact: The exported folder.
        device: OpenVINO's name of the device.
        config: OpenVINO's settings.
        context: Context in tokens, and the LongRoPE factors in force.
        limits: How many requests run at the same time, and how many may wait.
        cache_bytes: Maximum size of the KV cache; None for the engine's default.
        speculation: Source of draft tokens for speculative decoding; None to disable it.
        adapter: A LoRA adapter; None for the model alone.
        tuned: Settings from ``phi3ov tune`` for this machine and export, if any.
        early_process: An interpreter that was started for the worker; None to start one.
    """

    artifact: Artifact
    device: str
    config: RuntimeConfig
    context: ContextChoice
    limits: RequestLimits = RequestLimits()  # noqa: RUF009 - immutable
    cache_bytes: int | None = None
    speculation: Speculation | None = None
    adapter: LoraAdapter | None = None
    tuned: TunedSettings | None = None
    early_process: EarlyProcess | None = None

    def refuse(self, engine: EngineName, **why: str) -> None:
        """Raise if one of the named options is set, for an engine that does not support them."""
        for name, reason in why.items():
            if (value := getattr(self, name)) is not None:
                raise OptionError(
                    f"{name}={value!r}: engine={engine!r} {reason}. Leave it out, or choose "
                    "engine='pipeline'.",
                    option=name,
                )


class Engine(Protocol):
    """Interface between `phi3ov.Phi3Model` and a native back end.

    Attributes:
        max_running: Maximum number of requests that run at the same time.
        takes_grammars: Whether it supports `TokenRequest.grammar`.
        longest_prompt: Maximum prompt length in tokens if less than the context; otherwise None.
    """

    max_running: int
    takes_grammars: bool = False
    longest_prompt: int | None = None

    @property
    def settings(self) -> tuple[Setting, ...]:
        """The settings in force, each with its reason."""
        return ()

    @property
    def load(self) -> RequestLoad:
        """Number of running and waiting requests, without cancelled ones."""
        ...

    @property
    def state(self) -> EngineState:
        """Whether the engine accepts requests."""
        ...

    def submit(
        self, request: TokenRequest, *, timeout_seconds: float | None = None, wait: bool = False
    ) -> TokenStream:
        """Start or queue a request, and return its stream at once.

        Args:
            request: The request.
            timeout_seconds: Seconds from now after which the stream ends as timed out.
            wait: Queue the request even if the queue is full.

        Raises:
            OptionError: The engine does not support an option of the request.
            StateError: The engine is closed, or belongs to a parent process.
            QueueFullError: The queue is full (see `RequestLimits`).
        """
        ...

    def forget_cache(self) -> None:
        """Empty the KV cache, after earlier requests have ended and before later ones begin.

        Raises:
            GenerationError: The engine failed.
            StateError: The engine is closed.
        """
        return

    def close(self) -> None:
        """Cancel running requests, end every stream and free the model. Idempotent."""
        ...


@runtime_checkable
class CacheEngine(Engine, Protocol):
    """An engine whose KV cache can be written to a file and read back."""

    def save_cache(
        self, token_ids: Sequence[int], path: Path, fingerprint: ModelFingerprint
    ) -> None:
        """Write the KV cache of ``token_ids`` to ``path``; computes it first if needed.

        Raises:
            GenerationError: The engine failed.
            OSError: The file cannot be written.
            StateError: The engine is closed.
        """
        ...

    def restore_cache(
        self, path: Path, fingerprint: ModelFingerprint, *, verify: bool
    ) -> tuple[int, ...]:
        """Load the KV cache from a file; return the ids that it holds.

        Raises:
            RestoreError: The file is damaged, or belongs to another model or other settings.
            OSError: The file cannot be read.
            StateError: The engine is closed.
        """
        ...


@runtime_checkable
class ScoringEngine(Engine, Protocol):
    """An engine that computes the log-probabilities of a given text."""

    def score(
        self, token_ids: Sequence[int], *, first: int
    ) -> tuple[tuple[float, ...], TopLogprobs]:
        """Return, from ``first`` on, each token's log-probability and the most likely token there.

        Raises:
            GenerationError: The engine failed.
            StateError: The engine is closed.
        """
        ...


class EngineFactory(Protocol):
    """Signature of an engine's class."""

    def __call__(self, setup: EngineSetup) -> Engine:
        """Compile the setup's model.

        Raises:
            DeviceError: OpenVINO could not compile the model for the device.
            OptionError: The device or the engine does not support an option of the setup.
            UnsupportedModelError: The export does not hold the rope factors of ``setup.context``.
        """
        ...


def load_engine(name: EngineName) -> EngineFactory:
    """Import and return the engine class ``name``."""
    module, _, attribute = ENGINES[name].partition(":")
    return cast("EngineFactory", getattr(importlib.import_module(module), attribute))


def require_own_process(process_id: int) -> None:
    """Check that this is the engine's process: after a fork, its threads exist in the parent only.

    Raises:
        StateError: The current process is not ``process_id``.
    """
    if os.getpid() != process_id:
        raise StateError(
            f"The model was loaded in process {process_id}, and this is its forked child "
            f"{os.getpid()}, in which the model's threads do not exist. Load the model in the "
            "child, or start processes with the 'spawn' method."
        )
