"""Parent side of the worker process: starts it, sends requests, reads replies, handles its exit."""

from __future__ import annotations

import logging
import queue
import shutil
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from itertools import islice
from typing import IO, cast

from msgspec.structs import replace

from ... import errors
from ...answer.token_stream import TokenRequest, TokenStream
from ...errors import EngineCrashedError, GenerationError, OptionError, Phi3OVError
from ...runtime.limits import RequestLoad
from ..pinned import temporary_folder
from .process import EarlyProcess, start_process
from .protocol import (
    MAX_LINE_BYTES,
    Cancel,
    Failed,
    Forget,
    Load,
    Progress,
    ProtocolError,
    Ready,
    Submit,
    decode_report,
    encode,
    encode_paths,
    read_lines,
)

_LOGGER = logging.getLogger("phi3ov")
_PATIENCE_SECONDS = 2.0
"""Grace period of a child that was asked to end, before it is terminated and then killed."""
_LAST_WORDS = 12
_MAX_WORDS_BYTES = 2000


class WorkerStream(TokenStream):
    """A stream that forwards its cancellation to the child."""

    def __init__(
        self,
        request: TokenRequest,
        number: int,
        outbox: queue.SimpleQueue[bytes | None],
        *,
        timeout_seconds: float | None,
    ) -> None:
        """Open the stream of request ``number``; ``outbox`` holds lines for the child."""
        super().__init__(request, timeout_seconds=timeout_seconds)
        self._number = number
        self._outbox = outbox

    def cancel(self) -> None:
        """Ask the child to stop within one step; safe from any thread."""
        if not self._cancelled:
            super().cancel()
            self._outbox.put(encode(Cancel(number=self._number)))


class WorkerChild:
    """A child process, and the three threads that write to it, read from it and keep its log."""

    def __init__(
        self,
        load: Load,
        lock: AbstractContextManager[bool],
        *,
        limit: int,
        packages: tuple[str, ...],
        huge_pages: bool,
        early: EarlyProcess | None = None,
    ) -> None:
        """Start a child that loads ``load``.

        Args:
            load: The child's first command.
            lock: Guards `streams`, the unsent lines, and `dead`.
            limit: Maximum number of requests that the child has at once; the others wait here.
            packages: Folders in which the child finds packages: the parent's ``sys.path``.
            huge_pages: Whether the allocator of a new process asks for huge pages.
            early: A process that was started before; None to start one.

        Raises:
            EngineCrashedError: The process cannot be started.
            OptionError: A temporary folder is needed and cannot be created; there is no Python
                executable to start; or a path is not UTF-8.
        """
        try:
            encode(load)
        except UnicodeEncodeError as error:
            raise OptionError(
                f"engine='worker' sends paths as UTF-8, and {error.object!r:.200} cannot be "
                "written in it. Rename it, or use engine='pipeline'.",
                option="engine",
            ) from error
        self.streams: dict[int, WorkerStream] = {}
        self.dead: bool = False
        self.outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()  # lines
        self._lock = lock
        self._limit = limit
        self._max_running = load.max_running
        self._sent: dict[int, None] = {}  # numbers of the child's requests, in order
        self._unsent: deque[tuple[int | None, bytes]] = deque()  # number of a request, and line
        self._loaded = threading.Event()
        self._failure: Phi3OVError | None = None
        self.last_words: deque[str] = deque(maxlen=_LAST_WORDS)
        with ExitStack() as stack:
            needs_folder = load.factors != "none" or load.draft_folder
            if needs_folder:  # the child may die before cleaning up
                folder = stack.enter_context(temporary_folder())
                load = replace(load, work_folder=str(folder))
            started = None if early is None else early.take()
            self.process: subprocess.Popen[bytes] = started or self._start_process(
                huge_pages=huge_pages
            )
            self._remove_work_folder = stack.pop_all().close
        self._work_folder = load.work_folder
        if started is None:
            self.outbox.put(encode_paths(packages))
        self.outbox.put(encode(load))
        self._keeper = self._start_thread(self._keep_log)
        self._start_thread(self._write)
        self._reader = self._start_thread(self._read)

    def _start_process(self, *, huge_pages: bool) -> subprocess.Popen[bytes]:
        return start_process(huge_pages=huge_pages)

    def _start_thread(self, target: Callable[[], None]) -> threading.Thread:
        name = f"phi3ov-worker{target.__name__}"
        thread = threading.Thread(target=target, name=name, daemon=True)
        thread.start()
        return thread

    @property
    def usable(self) -> bool:
        """Whether the child accepts requests."""
        return not self.dead and self.process.poll() is None

    @property
    def ready(self) -> bool:
        """Whether the child is alive and has loaded the model."""
        return self._loaded.is_set() and self.usable

    def load(self, max_running: int) -> RequestLoad:
        """Return the number of running and waiting requests; call it under the lock."""
        self._drop_cancelled()
        unsent = [number for number, _ in self._unsent if number is not None]
        waiting = [*self._sent][max_running:] + unsent
        return RequestLoad(
            running=min(len(self._sent), max_running),
            waiting=len(waiting),
            waiting_tokens=sum(len(self.streams[number].request.prompt_ids) for number in waiting),
        )

    def _drop_cancelled(self) -> None:
        """End cancelled requests that were not sent, to free their places in the queue."""
        kept: deque[tuple[int | None, bytes]] = deque()
        for number, line in self._unsent:
            if number is not None and self.streams[number].cancelled:
                self.streams.pop(number).end()
            else:
                kept.append((number, line))
        self._unsent = kept

    def submit(
        self, number: int, request: TokenRequest, timeout_seconds: float | None
    ) -> WorkerStream:
        """Send a request, or queue it until the child has room; call it under the lock.

        Raises:
            OptionError: The request exceeds the maximum line length.
        """
        line = encode(Submit(number=number, request=request))
        if len(line) > MAX_LINE_BYTES:  # the child would end, and with it all answers
            raise OptionError(
                f"The request takes {len(line)} bytes, and the worker takes {MAX_LINE_BYTES}: its "
                "json_schema, regex or choices make a grammar that is too long. Give a shorter one."
            )
        stream = WorkerStream(request, number, self.outbox, timeout_seconds=timeout_seconds)
        self.streams[number] = stream
        self._unsent.append((number, line))
        self._send_more()
        return stream

    def forget_cache(self) -> None:
        """Send the command to empty the cache after earlier requests; call it under the lock."""
        self._unsent.append((None, encode(Forget())))
        self._send_more()

    def take_streams(self) -> list[WorkerStream]:
        """Remove and return the open streams, for the caller to end; call it under the lock."""
        streams, self.streams = list(self.streams.values()), {}
        self._sent.clear()
        self._unsent.clear()
        return streams

    def _send_more(self) -> None:
        while self._unsent and len(self._sent) < self._limit:
            number, line = self._unsent.popleft()
            if number is None:
                self.outbox.put(line)
                continue
            stream = self.streams[number]
            if stream.cancelled:
                del self.streams[number]
                stream.end()
            else:
                self._sent[number] = None
                self.outbox.put(line)
                if stream.cancelled:  # just now, by another thread, before this request was sent
                    self.outbox.put(encode(Cancel(number=number)))
        self._note_running()

    def _note_running(self) -> None:
        """Note when requests leave the queue: the child begins them in the order of `_sent`."""
        for number in islice(self._sent, self._max_running):
            stream = self.streams[number]
            if stream.began_at is None:
                stream.began_at = time.perf_counter()

    def wait_until_loaded(self) -> None:
        """Wait until the child has loaded the model; raises its error or the cause of its death."""
        while not self._loaded.wait(0.5):  # wakes up regularly, so that Windows sees Ctrl-C
            pass
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Ask the child to end; terminate it if it does not."""
        self.outbox.put(None)
        for force in (self.process.terminate, self.process.kill):
            try:
                self.process.wait(_PATIENCE_SECONDS)
                break
            except subprocess.TimeoutExpired:
                force()
        if threading.current_thread() is not self._reader:
            self._reader.join()

    def _write(self) -> None:
        pipe = cast("IO[bytes]", self.process.stdin)
        try:
            with pipe:
                while (line := self.outbox.get()) is not None:
                    pipe.write(line)
                    pipe.flush()
        except OSError:
            pass  # the child is gone; `_read` handles that

    def _keep_log(self) -> None:
        """Keep the last lines of the child's stderr, which native libraries may have written."""
        with cast("IO[bytes]", self.process.stderr) as pipe:
            while line := pipe.readline(_MAX_WORDS_BYTES):
                words = line.decode(errors="replace").rstrip()
                self.last_words.append(words)
                _LOGGER.debug("worker %d: %s", self.process.pid, words)

    def _read(self) -> None:
        why = ""
        try:
            with cast("IO[bytes]", self.process.stdout) as pipe:
                for line in read_lines(pipe):
                    self._take(line)
        except ProtocolError as error:
            why = f" after it had sent what no worker sends ({error})"
            self.process.kill()
        except Exception as error:  # noqa: BLE001 - a reader of a stream must not hang
            why = f" because its parent failed ({error!r})"
            self.process.kill()
        self._bury(why)

    def _take(self, line: bytes) -> None:
        report = decode_report(line)
        if isinstance(report, Ready):
            self._remove_work_folder()
            self._loaded.set()
        elif isinstance(report, Failed) and self._loaded.is_set():
            self.last_words.append(report.message)  # treated like a crash
        elif isinstance(report, Failed):
            self._failure = _translate(report)
        else:
            with self._lock:
                for progress in report.progress:
                    self._advance(progress)

    def _advance(self, progress: Progress) -> None:
        stream = self.streams.get(progress.number)
        if stream is None:
            return  # `_shut_down` has already ended the stream
        stream.begun = True
        stream.cached_tokens = max(stream.cached_tokens, progress.cached_tokens)
        stream.logprobs += progress.logprobs
        if progress.token_ids:
            stream.checked.append(progress.checked)
            stream.put(list(progress.token_ids))
        if progress.ended:
            del self.streams[progress.number]
            self._sent.pop(progress.number, None)
            self._send_more()
            failed = progress.error is not None
            stream.end(GenerationError(f"The engine failed: {progress.error}") if failed else None)
        stream.expire()  # streams without a reader must time out, too

    def _bury(self, why: str) -> None:
        """End all open streams, once the child has closed its pipe, which it does only at exit."""
        try:
            code = self.process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self._remove_work_folder()
        if self._work_folder:  # the child creates it again while it builds a pipeline
            shutil.rmtree(self._work_folder, ignore_errors=True)
        self._keeper.join(_PATIENCE_SECONDS)  # takes longer only if the child left children behind
        self.outbox.put(None)
        crash = f"The worker process died{why}: {_describe_exit(code)}."
        if self.last_words:
            crash += " Its last words:\n" + "\n".join(self.last_words)
        with self._lock:
            self.dead = True
            streams = self.take_streams()
        for stream in streams:  # a separate error each, since it will hold the partial text
            if self._failure is None:
                stream.end(EngineCrashedError(crash))
            else:
                stream.end(GenerationError(f"The engine failed: {self._failure}"))
        if self._failure is None:
            self._failure = EngineCrashedError(crash)
        self._loaded.set()


def _translate(report: Failed) -> Phi3OVError:
    """Return the error that the child raised; unknown names become a `GenerationError`."""
    kind = getattr(errors, report.error, None)
    if report.error in ("ContextLengthError", "MissingDependencyError") or not (
        isinstance(kind, type) and issubclass(kind, Phi3OVError)
    ):
        return GenerationError(report.message)
    return kind(report.message)


def _describe_exit(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    if name == "SIGKILL":
        return "SIGKILL, as the system does where memory runs out"
    return name
