"""Engines: token ids in, token ids out.

An engine knows nothing of roles, templates or text. It takes a `TokenRequest` and returns a
`TokenStream`, which it fills from a thread of its own; whoever reads the stream waits there.
To add an engine, write a class with the methods of `Engine` and name it in `ENGINES`.
"""

from __future__ import annotations

import importlib
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, cast

from ..errors import GenerationError

if TYPE_CHECKING:
    from ..artifact import Artifact
    from ..rope import ContextChoice
    from ..runtime import RuntimeConfig

EngineName = Literal["pipeline", "worker", "transformers"]

ENGINES: dict[EngineName, str] = {
    "pipeline": "phi3ov.engine.pipeline:PipelineEngine",
    "worker": "phi3ov.engine.worker:WorkerEngine",
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
        repetition_penalty: 1.0 is off.
        seed: Seed of the drawing; None for greedy decoding.
    """

    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    stop_ids: frozenset[int]
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None
    repetition_penalty: float = 1.0
    seed: int | None = None


class TokenStream(Iterator[list[int]]):
    """Ids of one answer, put in by an engine's thread and read by one consumer.

    Attributes:
        cached_tokens: Prompt ids that the engine did not have to read again; right once the
            first ids have come.
    """

    def __init__(self, request: TokenRequest) -> None:
        """Open the stream for ``request``."""
        self.request = request
        self.cached_tokens = 0
        self._chunks: queue.SimpleQueue[list[int] | BaseException | None] = queue.SimpleQueue()
        self._cancelled = threading.Event()
        self._ended = False

    def __next__(self) -> list[int]:
        if self._ended:
            raise StopIteration
        chunk = self._wait()
        if isinstance(chunk, list):
            return chunk
        self._ended = True
        if chunk is None:
            raise StopIteration
        if isinstance(chunk, GenerationError):
            raise chunk
        raise GenerationError(f"The engine failed: {chunk}") from chunk

    def _wait(self) -> list[int] | BaseException | None:
        """Return the next chunk; wakes up now and then, or Windows would not see Ctrl-C."""
        while True:
            try:
                return self._chunks.get(timeout=0.5)
            except queue.Empty:
                continue

    def cancel(self) -> None:
        """Ask the engine to stop; it ends the stream within one token. For any thread."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked to stop."""
        return self._cancelled.is_set()

    def put(self, token_ids: list[int]) -> None:
        """Add ids; for the engine."""
        self._chunks.put(token_ids)

    def end(self, error: BaseException | None = None) -> None:
        """End the stream, with the error that ended it if there was one; for the engine."""
        self._chunks.put(error)


class Engine(Protocol):
    """What `phi3ov.Phi3Model` runs on."""

    def submit(self, request: TokenRequest) -> TokenStream:
        """Start generating, or queue behind the requests before this one, without waiting.

        Raises:
            StateError: The engine is closed.
            QueueFullError: So many requests wait that it takes no more.
        """
        ...

    def close(self) -> None:
        """Cancel what runs, end every stream and free the model. May be called twice."""
        ...


class EngineFactory(Protocol):
    """How an engine's class is called by `load_engine`."""

    def __call__(
        self, artifact: Artifact, *, device: str, config: RuntimeConfig, context: ContextChoice
    ) -> Engine:
        """Compile the artifact's model for ``device`` with the rope factors of ``context``."""
        ...


def load_engine(name: EngineName) -> EngineFactory:
    """Import and return the class of the engine called ``name``."""
    module, _, attribute = ENGINES[name].partition(":")
    return cast("EngineFactory", getattr(importlib.import_module(module), attribute))
