"""Engines: token ids in, token ids out.

An engine knows nothing of roles, templates or text. It takes a `TokenRequest` and returns a
`TokenStream`, which it fills from its own thread; the reader of the stream waits there.
To add an engine, write a class with the methods of `Engine` and name it in `ENGINES`.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, cast, runtime_checkable

from ..answer.token_stream import TokenRequest, TokenStream
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

EngineName = Literal["pipeline", "worker", "paged", "transformers"]
"""What generates; see `load_model`."""

EngineState = Literal["ready", "restarting", "closed"]
"""Whether an engine takes requests; "restarting" while a new worker process loads the model."""

ENGINES: dict[EngineName, str] = {
    "pipeline": "phi3ov.engine.pipeline:PipelineEngine",
    "worker": "phi3ov.engine.worker.engine:WorkerEngine",
    "paged": "phi3ov.engine.paged.engine:PagedEngine",
    "transformers": "phi3ov.engine.transformers:TransformersEngine",
}
"""Where each engine's class is; imported when it is asked for."""


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
        tuned: What ``phi3ov tune`` found for this machine and export; None is nothing.
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

    def refuse(self, engine: EngineName, **why: str) -> None:
        """Refuse the named options where they are set, for an engine that does not take them."""
        for name, reason in why.items():
            if (value := getattr(self, name)) is not None:
                raise OptionError(
                    f"{name}={value!r}: engine={engine!r} {reason}. Leave it out, or choose "
                    "engine='pipeline'."
                )


class Engine(Protocol):
    """What `phi3ov.Phi3Model` runs on.

    Attributes:
        max_running: How many requests it answers together.
        takes_grammars: Whether `TokenRequest.grammar` may be set.
        longest_prompt: Most tokens of a prompt, where that is less than the context; or None.
        settings: The OpenVINO properties in force, each with its reason.
    """

    max_running: int
    takes_grammars: bool = False
    longest_prompt: int | None = None
    settings: tuple[Setting, ...] = ()

    @property
    def load(self) -> RequestLoad:
        """Requests that run and wait, cancelled ones left out."""
        ...

    @property
    def state(self) -> EngineState:
        """Whether it takes requests."""
        ...

    def submit(
        self, request: TokenRequest, *, timeout_seconds: float | None = None, wait: bool = False
    ) -> TokenStream:
        """Start generating, or queue behind the requests before this one; returns at once.

        Args:
            request: What to generate.
            timeout_seconds: Seconds from now after which the stream ends as timed out.
            wait: Queue the request even where the queue is full.

        Raises:
            OptionError: The engine cannot do what an option asks for.
            StateError: The engine is closed, or belongs to a parent process.
            QueueFullError: As many requests wait as `RequestLimits` allows.
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


@runtime_checkable
class ScoringEngine(Engine, Protocol):
    """An engine that tells how likely the model finds a given text."""

    def score(
        self, token_ids: Sequence[int], *, first: int
    ) -> tuple[tuple[float, ...], tuple[bool, ...]]:
        """Return of each token from ``first`` its log-probability and whether it is the likeliest.

        Raises:
            GenerationError: The engine failed.
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


def require_own_process(process_id: int) -> None:
    """Refuse to use an engine in a forked child: its threads exist in the parent alone.

    Raises:
        StateError: This is another process than ``process_id``.
    """
    if os.getpid() != process_id:
        raise StateError(
            f"The model was loaded in process {process_id}, and this is its forked child "
            f"{os.getpid()}, in which the model's threads do not exist. Load the model in the "
            "child, or start processes with the 'spawn' method."
        )
