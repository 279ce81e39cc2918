"""The running batch in the worker engine's process: genai's continuous batching, step by step.

Who talks to the parent is ``worker_process.py``. `Batch` takes its commands, begins requests in
the order in which they came, each only when the KV cache has room for its longest answer, and
collects after every step what each of them got.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .worker_protocol import Cancel, Command, Forget, Progress, ProtocolError, Submit

if TYPE_CHECKING:
    from .kv_pool import KVPool
    from .speculative import SpeculationPlan


@dataclass(slots=True)
class _Running:
    """A request in the batch.

    Attributes:
        command: What was asked for.
        handle: genai's handle.
        reused: Prompt ids that were cached.
        blocks: Blocks of the KV cache that are kept for it.
        alone: Whether it has been the only one in the batch all the time.
        token_ids: What it got so far.
    """

    command: Submit
    handle: Any
    reused: int
    blocks: int
    alone: bool
    token_ids: list[int] = field(default_factory=list)


class Batch:
    """The requests that run together, and those that wait for a place, first come, first served."""

    def __init__(
        self,
        open_pipeline: Callable[[], Any],
        pool: KVPool,
        max_running: int,
        speculation: SpeculationPlan | None = None,
        *,
        leading_space: bool = False,
    ) -> None:
        """Answer on what ``open_pipeline`` returns, at most ``max_running`` requests at once.

        Args:
            open_pipeline: Opens genai's pipeline, also anew.
            pool: Its KV cache.
            max_running: The most requests in the batch.
            speculation: What is proposed for each pass.
            leading_space: Whether the text of an answer loses a space at its beginning.
        """
        self._open_pipeline = open_pipeline
        self._pool = pool
        self._speculation = speculation
        self._leading_space = leading_space
        self._max_running = max_running
        self._waiting: deque[Submit | Forget] = deque()
        self._running: dict[int, _Running] = {}
        self._leaving = 0  # blocks of cancelled requests, which genai frees with the next step
        self._ended: list[Progress] = []  # between two steps
        self._forget()

    def _forget(self) -> None:
        from .prefix_cache import PrefixCache

        self._pipeline: Any = None  # frees the old one first
        self._pipeline = self._open_pipeline()
        self._cache = PrefixCache(self._pool.block_tokens, self._pool.blocks)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do, nor to report."""
        busy = self._waiting or self._running or self._ended
        # genai frees a cancelled request at the end of the next step
        return not busy and not self._pipeline.has_non_finished_requests()

    def accept(self, command: Command) -> None:
        """Take a request, cancel one, or forget the cache in its turn."""
        if isinstance(command, Submit | Forget):
            self._waiting.append(command)
        elif isinstance(command, Cancel):
            self._cancel(command.number)
        else:
            raise ProtocolError("Load came twice.")

    def step(self) -> list[Progress]:
        """Fill free places, compute one step, and return what came out."""
        while self._waiting and self._has_room_for(self._waiting[0]):
            first = self._waiting.popleft()
            if isinstance(first, Submit):
                self._start(first)
            else:
                self._forget()
        if self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        self._leaving = 0
        progress, self._ended = self._ended, []
        for running in list(self._running.values()):
            progress += self._collect(running)
        return progress

    def _has_room_for(self, command: Submit | Forget) -> bool:
        """Whether it can begin, and every running request still reach its longest answer.

        genai would begin more, drop one in the middle when no block is left, and compute it
        again later; or find none that it may drop, and fail.
        """
        if isinstance(command, Forget):
            # genai frees a cancelled request at the end of the next step
            return not self._running and not self._pipeline.has_non_finished_requests()
        taken = self._leaving + sum(one.blocks for one in self._running.values())
        enough = taken + self._blocks_for(command) <= self._pool.blocks
        return enough and len(self._running) < self._max_running

    def _blocks_for(self, command: Submit) -> int:
        request = command.request
        return self._pool.blocks_for(len(request.prompt_ids) + request.max_new_tokens)

    def _start(self, command: Submit) -> None:
        import numpy as np
        import openvino

        from .pipeline import generation_config

        request = command.request
        config = generation_config(request, leading_space=self._leading_space)
        if self._speculation is not None:
            self._speculation.configure(config)
        if request.stop_ids:  # or genai would take those of the folder's generation_config.json
            config.eos_token_id = max(request.stop_ids)
        else:
            config.ignore_eos = True
        # What genai reuses can be told while nothing else takes or frees blocks of its cache.
        alone = not self._running
        reused = self._cache.reusable(request.prompt_ids) if alone else 0
        prompt = openvino.Tensor(np.array([request.prompt_ids], dtype=np.int64))
        try:
            handle = self._pipeline.add_request(command.number, prompt, config)
        except RuntimeError as error:
            self._end(command.number, error=str(error))
            return
        for other in self._running.values():
            other.alone = False
        if not alone:
            self._cache.forget()
        self._running[command.number] = _Running(
            command, handle, reused, self._blocks_for(command), alone
        )

    def _cancel(self, number: int) -> None:
        waiting = [
            command
            for command in self._waiting
            if isinstance(command, Submit) and command.number == number
        ]
        if number in self._running:
            running = self._running.pop(number)
            running.handle.cancel()
            self._leaving += running.blocks
            self._cache.forget()
        elif waiting:
            self._waiting.remove(waiting[0])
        else:
            return  # it ended by itself meanwhile
        self._end(number)

    def _end(self, number: int, *, error: str | None = None) -> None:
        self._ended.append(Progress(number=number, token_ids=(), ended=True, error=error))

    def _collect(self, running: _Running) -> list[Progress]:
        import openvino_genai

        number, handle = running.command.number, running.handle
        token_ids: list[int] = []
        logprobs: list[float] = []
        while handle.can_read():
            output = next(iter(handle.read().values()))
            token_ids += output.generated_ids
            logprobs += output.generated_log_probs
        running.token_ids += token_ids
        status = handle.get_status()
        ended = status != openvino_genai.GenerationStatus.RUNNING
        if not token_ids and not ended:
            return []
        error = None
        if ended:
            del self._running[number]
            if status == openvino_genai.GenerationStatus.FINISHED:
                self._remember(running)
            else:
                self._cache.forget()
            if status == openvino_genai.GenerationStatus.IGNORED:
                error = "The KV cache has no room for this request."
        return [
            Progress(
                number=number,
                token_ids=tuple(token_ids),
                logprobs=tuple(logprobs) if running.command.request.logprobs else (),
                cached_tokens=running.reused,
                ended=ended,
                error=error,
            )
        ]

    def _remember(self, running: _Running) -> None:
        """Note what a finished request leaves in the cache."""
        prompt_ids, read_ids = running.command.request.prompt_ids, running.token_ids[:-1]
        exact = running.alone and not self._pool.spare_tokens
        self._cache.add(prompt_ids, read_ids, exact=exact)
