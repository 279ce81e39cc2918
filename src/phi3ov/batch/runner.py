"""Many independent conversations, each with an outcome of its own: `Phi3Model.iter_batch`.

One thread serves them all: it gives the engine as many as keep it busy, reads what comes, and
takes the next conversation when one has ended. A batch in files is ``batch_file.py``.
"""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..answer.options import GenerationOptions, Options
from ..answer.reply import Reply
from ..errors import EngineCrashedError, OptionError, Phi3OVError, QueueFullError, StateError
from ..prompt.messages import Message

if TYPE_CHECKING:
    from ..answer.stream import ReplyStream

_MOST_CRASHES = 3
"""Conversations in a row that crash the engine, each alone in it, before a batch gives up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRequest:
    """A conversation of a batch that has options of its own.

    Attributes:
        messages: The conversation; it ends with a user message.
        options: Changes to the batch's options, for this conversation.

    Raises:
        OptionError: ``options`` is no mapping.
    """

    messages: Sequence[Message]
    options: Options = field(default_factory=Options)

    def __post_init__(self) -> None:
        if not isinstance(self.options, Mapping):
            raise OptionError(
                f"options={self.options!r} is no mapping of names to values, such as "
                "{'max_new_tokens': 10}."
            )


Conversation = Sequence[Message] | BatchRequest
"""What a batch answers: messages, or messages with options of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchResult:
    """What became of one conversation of a batch.

    Attributes:
        index: Its place in the batch, from 0.
        outcome: The reply, or the error that it ended with instead.

    Example:
        >>> failed = BatchResult(index=0, outcome=Phi3OVError("no room"))
        >>> failed.error
        Phi3OVError('no room')
        >>> failed.reply
        Traceback (most recent call last):
            ...
        phi3ov.errors.Phi3OVError: no room
    """

    index: int
    outcome: Reply | Phi3OVError

    @property
    def reply(self) -> Reply:
        """The reply.

        Raises:
            Phi3OVError: The conversation failed; this is its error.
        """
        if isinstance(self.outcome, Phi3OVError):
            raise self.outcome
        return self.outcome

    @property
    def error(self) -> Phi3OVError | None:
        """The error; None if there is a reply."""
        return self.outcome if isinstance(self.outcome, Phi3OVError) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchProgress:
    """How far a batch is.

    Attributes:
        done: Conversations that have ended, in whatever way.
        failed: How many of them ended with an error.
        total: Conversations of the batch; None where that is not known beforehand.
    """

    done: int
    failed: int
    total: int | None


ReportProgress = Callable[[BatchProgress], None]
"""What is called after each result of a batch."""

StartReply = Callable[[Sequence[Message], GenerationOptions], "ReplyStream"]


@dataclass(slots=True)
class _Job:
    """A conversation that has been taken from the batch."""

    index: int
    request: BatchRequest
    suspect: bool = False


class Batch:
    """Answers the conversations of one batch."""

    def __init__(
        self, start: StartReply, options: GenerationOptions, *, running: int, in_order: bool
    ) -> None:
        """Prepare a batch.

        Args:
            start: Starts one answer.
            options: For all of them.
            running: How many conversations are given to the engine at once. In order, up to
                four times as many are held until those before them have ended.
            in_order: Whether results come in the order of the conversations.
        """
        self._start_reply = start
        self._options = options
        self._running = running
        self._in_order = in_order
        self._open: dict[int, tuple[_Job, ReplyStream]] = {}
        self._ended: dict[int, BatchResult] = {}
        self._suspects: deque[_Job] = deque()
        self._news: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._crashes = 0

    def run(
        self, conversations: Iterable[Conversation], report: ReportProgress
    ) -> Iterator[BatchResult]:
        """Yield the results; leaving early cancels what runs."""
        total = len(conversations) if isinstance(conversations, Sized) else None
        jobs = (
            _Job(index, one if isinstance(one, BatchRequest) else BatchRequest(messages=one))
            for index, one in enumerate(conversations)
        )
        done = failed = 0
        try:
            while True:
                self._take_more(jobs)
                while (result := self._next_result(done)) is not None:
                    done += 1
                    failed += result.error is not None
                    self._take_more(jobs)  # the engine need not wait for whoever reads this
                    report(BatchProgress(done=done, failed=failed, total=total))
                    yield result
                if not self._open and not self._ended and not self._suspects:
                    return
                self._read()
        finally:
            for _, stream in self._open.values():
                stream.cancel()

    def _take_more(self, jobs: Iterator[_Job]) -> None:
        """Start as many as keep the engine busy; a suspect is started alone."""
        if self._suspects:
            if not self._open:
                self._start(self._suspects.popleft())
            return
        if any(job.suspect for job, _ in self._open.values()):
            return
        while len(self._open) < self._running and len(self._ended) < 3 * self._running:
            job = next(jobs, None)
            if job is None:
                return
            self._start(job)

    def _start(self, job: _Job) -> None:
        try:
            chosen = self._options.changed(job.request.options)
            stream = self._start_reply(job.request.messages, chosen)
        except Phi3OVError as error:
            if isinstance(error, StateError) and not isinstance(error, QueueFullError):
                raise  # the model is closed
            self._end(job, error)
            return
        self._open[job.index] = (job, stream)
        stream._add_listener(lambda: self._news.put(job.index))
        self._news.put(job.index)

    def _read(self) -> None:
        """Wait for news of one answer, and read what has come of it."""
        try:
            index = self._news.get(timeout=0.5)  # wakes up, or Windows would not see Ctrl-C
        except queue.Empty:
            pending = list(self._open)  # one whose time is over is not told by its engine
        else:
            pending = [index]
        for one in pending:
            if one not in self._open:
                continue
            job, stream = self._open[one]
            try:
                if not stream._read_ready():
                    continue
                outcome: Reply | Phi3OVError = stream.reply
            except Phi3OVError as error:
                outcome = error
            del self._open[one]
            self._end(job, outcome)

    def _end(self, job: _Job, outcome: Reply | Phi3OVError) -> None:
        if isinstance(outcome, EngineCrashedError):
            if not job.suspect:  # whichever of those in the engine it was: each again, alone
                job.suspect = True
                self._suspects.append(job)
                return
            self._crashes += 1
            if self._crashes == _MOST_CRASHES:
                raise outcome
        elif isinstance(outcome, Reply):
            self._crashes = 0
            if outcome.finish_reason == "cancelled":
                raise StateError("The model was closed before the batch had ended.")
        self._ended[job.index] = BatchResult(index=job.index, outcome=outcome)

    def _next_result(self, done: int) -> BatchResult | None:
        """Return a result that is due."""
        if not self._ended:
            return None
        if self._in_order:
            return self._ended.pop(done, None)
        return self._ended.pop(next(iter(self._ended)))
