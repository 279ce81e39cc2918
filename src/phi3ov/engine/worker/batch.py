"""The running batch in the worker's process: genai's continuous batching, step by step.

`Batch` receives commands from ``child.py``. It starts requests in the order of their arrival, each
as soon as the KV cache has room for its longest answer, and collects the results of each step.

It also schedules prefill, because genai's own scheduling has two defects. genai's prefix cache
finds a KV cache block by the ids assigned to it, even before the block is filled:

- If a request is cancelled after part of its prompt was read, it leaves blocks that are found but
  were never filled. The next request with that prompt gets a wrong answer.
- Two prompts that share a partially filled block, such as forks of one conversation, are both
  written into that block.

So a prompt that is too long for one step is given to genai in pieces that end at a block
boundary. Each piece is a request for one token that finds the earlier pieces in the prefix cache.
And a prompt that would be written into another request's partial block waits for the next step.
Between two steps, every block that the prefix cache can find is filled.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..genai.draft import SpeculationPlan
from ..genai.pace import AnswerPace, Pacer
from ..genai.prefix_cache import CachedSequence, PrefixCache, UnfollowedCache, follow_cache
from .protocol import Cancel, Command, Forget, Progress, ProtocolError, Submit

if TYPE_CHECKING:
    from ..genai.kv_pool import KVPool


@dataclass(slots=True)
class _Running:
    """A request in the batch.

    Attributes:
        command: The request's command.
        blocks: Number of KV cache blocks reserved for it.
        cached_tokens: Number of prompt ids that were cached when it began.
        known_tokens: Number of prompt ids that are cached now, including the pieces read so far.
        answering: Whether genai has the whole prompt rather than a piece of it.
        handle: genai's handle; None between two pieces.
        sequence: Its state in the modelled cache; None between two pieces.
        pace: How many draft tokens its passes check; None before the whole prompt is given.
    """

    command: Submit
    blocks: int
    cached_tokens: int | None = None
    known_tokens: int = 0
    answering: bool = False
    handle: Any = None
    sequence: CachedSequence | None = None
    pace: AnswerPace | None = None


class Batch:
    """The running requests and the queue of waiting ones, first come, first served."""

    def __init__(
        self,
        open_pipeline: Callable[[], Any],
        pool: KVPool,
        max_running: int,
        prompt_tokens: int,
        speculation: SpeculationPlan | None = None,
        *,
        leading_space: bool = False,
    ) -> None:
        """Open the pipeline with an empty batch.

        Args:
            open_pipeline: Opens genai's pipeline; called again to empty its cache.
            pool: Size of its KV cache.
            max_running: Maximum number of requests in the batch.
            prompt_tokens: Maximum number of prompt tokens per step, at least one block; tokens
                of running answers are not counted. The pipeline's ``max_num_batched_tokens`` must
                have room for both.
            speculation: The plan for speculative decoding.
            leading_space: Whether the decoder drops a space at the beginning of an answer.
        """
        self._open_pipeline = open_pipeline
        self._pool = pool
        self._speculation = SpeculationPlan() if speculation is None else speculation
        self._pacer = Pacer(self._speculation)
        self._leading_space = leading_space
        self._max_running = max_running
        self._prompt_tokens = prompt_tokens
        self._waiting: deque[Submit | Forget] = deque()
        self._running: dict[int, _Running] = {}  # in the order in which genai has them
        self._leaving: list[_Running] = []  # cancelled; genai frees them in the next step
        self._ended: list[Progress] = []  # between two steps
        self._forget()

    def _forget(self) -> None:
        self.pipeline: Any = None  # free the old one first
        self.pipeline = self._open_pipeline()
        self.cache: PrefixCache | UnfollowedCache = follow_cache(self._pool)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to compute or report."""
        busy = self._waiting or self._running or self._ended
        # genai frees a cancelled request at the end of the next step
        return not busy and not self.pipeline.has_non_finished_requests()

    def accept(self, command: Command) -> None:
        """Queue a request, cancel one, or queue the emptying of the cache."""
        if isinstance(command, Submit | Forget):
            self._waiting.append(command)
        elif isinstance(command, Cancel):
            self._cancel(command.number)
        else:
            raise ProtocolError("Load came twice.")

    def step(self) -> list[Progress]:
        """Start waiting requests, compute one step, and return its results."""
        self._read_prompts()
        if self.pipeline.has_non_finished_requests():
            sequences = [
                running.sequence
                for running in self._running.values()
                if running.sequence is not None
            ]
            self.cache.step(sequences, self._prompt_tokens)
            self.pipeline.step()
        progress, self._ended = self._ended, []
        for running in list(self._running.values()):
            progress += self._collect(running)
        for running in self._leaving:  # genai frees them after requests that ended normally
            if running.sequence is not None:
                self.cache.end(running.sequence)
        self._leaving = []
        return progress

    def _cancel(self, number: int) -> None:
        waiting = [
            command
            for command in self._waiting
            if isinstance(command, Submit) and command.number == number
        ]
        if number in self._running:
            running = self._running.pop(number)
            if running.handle is not None:
                running.handle.cancel()
            self._leaving.append(running)
        elif waiting:
            self._waiting.remove(waiting[0])
        else:
            return  # it has already ended
        self._end(number)

    def _end(self, number: int, *, error: str | None = None) -> None:
        self._ended.append(Progress(number=number, token_ids=(), ended=True, error=error))

    # --- prefill of the next step -------------------------------------------------------------

    def _read_prompts(self) -> None:
        """Submit to genai the prompt pieces that the next step reads, first come, first served."""
        left = self._prompt_tokens
        unread: list[CachedSequence] = []
        for running in list(self._running.values()):
            if not running.answering:  # at most one request: the last that began
                left -= self._give(running, self._end_of_piece(running, left), unread)
        while self._waiting and self._has_room_for(self._waiting[0]):
            first = self._waiting[0]
            if isinstance(first, Forget):
                self._forget()
            else:
                running = _Running(first, self._blocks_for(first))
                end = self._end_of_piece(running, left)
                if not end or self.cache.writes_beside(first.request.prompt_ids, unread):
                    break
                self._running[first.number] = running
                left -= self._give(running, end, unread)
            self._waiting.popleft()

    def _has_room_for(self, command: Submit | Forget) -> bool:
        """Whether the request can begin without taking blocks that running answers may need.

        genai itself would start more requests. When no block is left, it would preempt a request
        and compute it again later, or fail if it cannot preempt any.
        """
        if isinstance(command, Forget):
            # genai frees a cancelled request at the end of the next step
            return not self._running and not self.pipeline.has_non_finished_requests()
        taken = sum(running.blocks for running in (*self._leaving, *self._running.values()))
        enough = taken + self._blocks_for(command) <= self._pool.blocks
        return enough and len(self._running) < self._max_running

    def _blocks_for(self, command: Submit) -> int:
        request = command.request
        return self._pool.blocks_for(len(request.prompt_ids) + request.max_new_tokens)

    def _end_of_piece(self, running: _Running, left: int) -> int:
        """Return the prompt position at which a step with a budget of ``left`` tokens stops.

        It is the end of the prompt or of a block; 0 if the step does not read this prompt.
        """
        prompt_ids = running.command.request.prompt_ids
        start = max(self.cache.reusable(prompt_ids), running.known_tokens)
        end = start + left
        if end >= len(prompt_ids):
            return len(prompt_ids) if left else 0
        end -= end % self._pool.block_tokens
        return end if end > start else 0

    def _give(self, running: _Running, end: int, unread: list[CachedSequence]) -> int:
        """Submit a prompt to genai up to ``end``; return how many tokens the next step reads.

        Args:
            running: The request.
            end: The prompt's length, or the end of a block.
            unread: The request's cache state is appended to this list.
        """
        import numpy as np
        import openvino

        from ...answer.token_stream import TokenRequest
        from ..pipeline import generation_config

        number, request = running.command.number, running.command.request
        running.answering = end == len(request.prompt_ids)
        if not running.answering:
            piece_ids = request.prompt_ids[:end]
            request = TokenRequest(prompt_ids=piece_ids, max_new_tokens=1, stop_ids=frozenset())
        config = generation_config(request, leading_space=self._leading_space)
        candidates = self._speculation.candidate_tokens
        if running.answering:
            waiting = {each.number for each in self._waiting if isinstance(each, Submit)}
            together = len(waiting | self._running.keys())
            running.pace = self._pacer.begin(request, split=False, together=together)
            part = running.pace.next_part()
            candidates = 0 if part is None else part.candidates
        self._speculation.configure(config, candidates)
        if request.stop_ids:  # otherwise genai uses the folder's generation_config.json
            config.eos_token_id = max(request.stop_ids)
        else:
            config.ignore_eos = True
        prompt = openvino.Tensor(np.array([request.prompt_ids], dtype=np.int64))
        try:
            running.handle = self.pipeline.add_request(number, prompt, config)
        except RuntimeError as error:
            del self._running[number]
            self._end(number, error=str(error))
            return 0
        running.sequence = self.cache.begin(request.prompt_ids)
        if running.cached_tokens is None:
            running.cached_tokens = running.sequence.reused
        unread.append(running.sequence)
        return end - running.sequence.reused

    # --- results of a step --------------------------------------------------------------------

    def _collect(self, running: _Running) -> list[Progress]:
        """Return the progress of a request in this step, if any."""
        import openvino_genai

        if running.sequence is None:
            return []
        number, handle = running.command.number, running.handle
        token_ids: list[int] = []
        logprobs: list[float] = []
        while handle.can_read():
            output = next(iter(handle.read().values()))
            token_ids += output.generated_ids
            logprobs += output.generated_log_probs
        running.sequence.ids += token_ids
        checked = 0
        if running.pace is not None and token_ids:
            checked = running.pace.note(token_ids)
        status = handle.get_status()
        ended = status != openvino_genai.GenerationStatus.RUNNING
        if ended:
            self.cache.end(running.sequence)
        if ended and not running.answering:
            running.known_tokens = running.sequence.prompt_tokens
            running.handle = running.sequence = None
            return []
        if not token_ids and not ended:
            return []
        error = None
        if ended:
            del self._running[number]
            if running.pace is not None:
                running.pace.end()
            if status == openvino_genai.GenerationStatus.IGNORED:
                error = "The KV cache has no room for this request."
        return [
            Progress(
                number=number,
                token_ids=tuple(token_ids),
                logprobs=tuple(logprobs) if running.command.request.logprobs else (),
                cached_tokens=running.cached_tokens or 0,
                checked=checked,
                ended=ended,
                error=error,
            )
        ]
