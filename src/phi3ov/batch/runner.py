"""Answer many independent conversations, each with its own outcome: `Phi3Model.iter_batch`.

The caller's thread does all the work: it submits enough conversations to keep the engine busy,
reads their answers, and submits the next conversation when one has ended. Batches in files are in
`phi3ov.batch.file`.
"""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, cast

from ..answer.options import GenerationOptions, Options
from ..answer.reply import Reply
from ..errors import EngineCrashedError, OptionError, Phi3OVError, QueueFullError, StateError
from ..prompt.messages import Message
from ..prompt.tools import ToolSource

if TYPE_CHECKING:
    from ..answer.stream import ReplyStream

_MOST_CRASHES = 3
"""A batch gives up after this many consecutive conversations that crash the engine on their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRequest:
    """A conversation of a batch with its own options.

    Attributes:
        messages: The conversation; it ends with a user message.
        options: Changes to the batch's options for this conversation.
        tools: Tools that the model may call in this conversation.

    Raises:
        OptionError: ``options`` is not a mapping.
    """

    messages: Sequence[Message | Mapping[str, object]]
    options: Options = field(default_factory=Options)
    tools: Sequence[ToolSource] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.options, Mapping):
            raise OptionError(
                f"options={self.options!r} must be a mapping of names to values, such as "
                "{'max_new_tokens': 10}.",
                option="options",
            )


Conversation = Sequence[Message | Mapping[str, object]] | BatchRequest
"""One item of a batch: messages, or messages with their own options."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchResult:
    """The outcome of one conversation of a batch.

    Attributes:
        index: Position in the batch, from 0.
        outcome: The reply, or the error that ended the conversation.

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
    """Progress of a batch.

    Attributes:
        done: Conversations that have ended, with a reply or an error.
        failed: Conversations that ended with an error.
        total: Conversations in the batch; None if the iterable has no length.
    """

    done: int
    failed: int
    total: int | None


def waiting_options(options: GenerationOptions) -> Options:
    """Return ``options`` as the keywords of `Phi3Model.iter_batch`, which waits for a full queue.

    Example:
        >>> waiting_options(GenerationOptions(seed=1, temperature=0.5))["on_full_queue"]
        'wait'
    """
    changes = {field.name: getattr(options, field.name) for field in fields(options)}
    return cast("Options", changes | {"on_full_queue": "wait"})


ReportProgress = Callable[[BatchProgress], None]
"""Called after each result of a batch."""

StartReply = Callable[[BatchRequest, GenerationOptions], "ReplyStream"]


@dataclass(slots=True)
class _Job:
    """A conversation taken from the batch.

    Attributes:
        index: Position in the batch, from 0.
        request: The conversation and its options.
        suspect: Whether it was in the engine when the engine crashed.
    """

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
            options: Options of every conversation.
            running: Number of conversations in the engine at once. With ``in_order``, up to four
                times as many results wait for those before them.
            in_order: Whether to yield results in the order of the conversations.
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
        """Yield the results; closing the generator early cancels the running answers."""
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
                    self._take_more(jobs)  # so that the engine does not wait for the caller
                    report(BatchProgress(done=done, failed=failed, total=total))
                    yield result
                if not self._open and not self._ended and not self._suspects:
                    return
                self._read()
        finally:
            for _, stream in self._open.values():
                stream.cancel()

    def _take_more(self, jobs: Iterator[_Job]) -> None:
        """Start enough conversations to keep the engine busy; start a suspect alone."""
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
            stream = self._start_reply(job.request, chosen)
        except Phi3OVError as error:
            if isinstance(error, StateError) and not isinstance(error, QueueFullError):
                raise  # the model is closed
            self._end(job, error)
            return
        self._open[job.index] = (job, stream)
        stream.add_listener(lambda: self._news.put(job.index))
        self._news.put(job.index)

    def _read(self) -> None:
        """Wait until an answer has news, and read what has arrived."""
        try:
            index = self._news.get(timeout=0.5)  # a wait without end would block Ctrl-C on Windows
        except queue.Empty:
            pending = list(self._open)  # the engine does not report a time limit that has passed
        else:
            pending = [index]
        for position in pending:
            if position not in self._open:
                continue
            job, stream = self._open[position]
            try:
                if not stream.poll():
                    continue
                outcome: Reply | Phi3OVError = stream.reply
            except Phi3OVError as error:
                outcome = error
            del self._open[position]
            self._end(job, outcome)

    def _end(self, job: _Job, outcome: Reply | Phi3OVError) -> None:
        if isinstance(outcome, EngineCrashedError):
            if not job.suspect:  # any of the running ones may be the cause: retry each alone
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
        """Return a result that can be yielded now, or None."""
        if not self._ended:
            return None
        if self._in_order:
            return self._ended.pop(done, None)
        return self._ended.pop(next(iter(self._ended)))
