"""Base of engines that run one request at a time, on a thread that owns the native model.

`pipeline`, `paged` and `transformers` run one generation at a time, and their native objects are
not thread-safe. So a single thread owns the native model and serves requests in the order of their
arrival, while callers wait on their streams with the GIL released.
"""

from __future__ import annotations

import os
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable

from ..answer.token_stream import TokenRequest, TokenStream
from ..errors import GenerationError, Phi3OVError, StateError
from ..runtime.limits import RequestLimits, RequestLoad
from ..runtime.settings import Setting
from .protocol import EngineState, require_own_process

RunRequest = Callable[[TokenStream], None]
"""Generates one stream: puts ids, checks ``stream.cancelled`` after each, and returns."""


class SerialEngine:
    """Runs requests one by one on a separate thread."""

    max_running = 1
    takes_grammars: bool = False
    longest_prompt: int | None = None

    def __init__(
        self,
        run: RunRequest,
        *,
        free: Callable[[], None] = lambda: None,
        name: str,
        limits: RequestLimits = RequestLimits(),  # noqa: B008 - immutable
    ) -> None:
        """Start the thread.

        Args:
            run: Called on the thread for each request in turn.
            free: Called on the thread at its end to free the model's memory, which a caller may
                need while the closed engine is still referenced.
            name: Name of the thread.
            limits: Maximum number of waiting requests.
        """
        self._state = _State()
        self._limits = limits
        self._process_id = os.getpid()
        self._thread = threading.Thread(
            target=_serve, args=(self._state, run, free), name=f"phi3ov-{name}", daemon=True
        )
        self._thread.start()
        # Also runs at interpreter exit, when a daemon thread must not be inside native code.
        self._finalizer = weakref.finalize(self, _shut_down, self._state, self._thread)

    @property
    def settings(self) -> tuple[Setting, ...]:
        """The settings in force, each with its reason."""
        return ()

    @property
    def load(self) -> RequestLoad:
        """Number of running and waiting requests."""
        with self._state.lock:
            self._state.drop_cancelled()
            return self._state.load()

    @property
    def state(self) -> EngineState:
        """Whether the engine accepts requests."""
        return "closed" if self._state.closing else "ready"

    def submit(
        self, request: TokenRequest, *, timeout_seconds: float | None = None, wait: bool = False
    ) -> TokenStream:
        """Queue ``request`` and return its stream at once; see `Engine.submit`."""
        stream = TokenStream(request, timeout_seconds=timeout_seconds)
        self._enqueue(stream, wait=wait)
        return stream

    def do(self, work: Callable[[], None]) -> None:
        """Run ``work`` on the engine's thread after all earlier requests, and wait for it."""
        task = _Task(work)
        self._enqueue(task, wait=True)
        try:
            for _ in task:
                pass
        except BaseException:  # Ctrl-C while waiting
            task.cancel()
            raise
        if isinstance(task.error, (Phi3OVError, OSError)):
            raise task.error
        if task.error is not None:
            raise GenerationError(f"The engine failed: {task.error}") from task.error
        if not task.done:
            raise StateError("The model was closed while the call was waiting.")

    def _enqueue(self, stream: TokenStream, *, wait: bool) -> None:
        require_own_process(self._process_id)
        state = self._state
        with state.lock:
            if state.closing:
                raise StateError("The model is closed. Load it again with phi3ov.load_model().")
            state.drop_cancelled()
            if not wait:
                self._limits.check(
                    state.load(),
                    max_running=self.max_running,
                    prompt_tokens=len(stream.request.prompt_ids),
                )
            # Ctrl-C may interrupt between the two. A superfluous wake-up does no harm, but a
            # missing one would leave the request in the queue.
            if not state.waiting:
                state.wake.put(None)
            state.waiting.append(stream)

    def forget_cache(self) -> None:
        """Do nothing, for engines without a cache such as `transformers`; others override it."""

    def close(self) -> None:
        """Cancel running requests, end every stream and wait for the thread. Idempotent."""
        self._finalizer()


class _Task(TokenStream):
    """Work for the engine's thread that is queued like a request."""

    def __init__(self, work: Callable[[], None]) -> None:
        super().__init__(TokenRequest(prompt_ids=(), max_new_tokens=0, stop_ids=frozenset()))
        self._work = work
        self.done = False
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001 - the waiting caller raises it
            self.error = error
        self.done = True


class _State:
    """State shared by engine and thread; the thread must not keep the engine itself alive."""

    def __init__(self) -> None:
        self.waiting: deque[TokenStream] = deque()
        self.wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.lock = threading.RLock()  # reentrant: a finalizer may run while it is held
        self.closing = False
        self.current: TokenStream | None = None

    def drop_cancelled(self) -> None:
        """End cancelled streams that are waiting, to free their places in the queue."""
        if not any(stream.cancelled for stream in self.waiting):
            return
        kept: deque[TokenStream] = deque()
        for stream in self.waiting:
            if stream.cancelled:
                stream.end()
            else:
                kept.append(stream)
        self.waiting = kept

    def load(self) -> RequestLoad:
        """Return the number of running and waiting requests."""
        return RequestLoad(
            running=int(self.current is not None),
            waiting=len(self.waiting),
            waiting_tokens=sum(len(stream.request.prompt_ids) for stream in self.waiting),
        )

    def take_next(self) -> TokenStream | None:
        """Make the first waiting stream the current one; None if the queue is empty."""
        with self.lock:
            if self.closing or not self.waiting:
                return None
            self.current = self.waiting.popleft()
            self.current.begun = True
            self.current.began_at = time.perf_counter()
            return self.current


def _serve(state: _State, run: RunRequest, free: Callable[[], None] = lambda: None) -> None:
    while not state.closing:
        state.wake.get()
        while (stream := state.take_next()) is not None:
            error: BaseException | None = None
            try:
                if stream.cancelled:
                    pass
                elif isinstance(stream, _Task):
                    stream.run()
                else:
                    run(stream)
            except BaseException as raised:  # noqa: BLE001 - it belongs to the stream's reader
                error = raised
            stream.end(error)
            with state.lock:  # `_shut_down` reads it twice
                state.current = None
            del stream  # an idle thread must not keep the last answer's stream alive
    free()


def _shut_down(state: _State, thread: threading.Thread) -> None:
    with state.lock:
        state.closing = True
        if state.current is not None:
            state.current.cancel()
        waiting, state.waiting = state.waiting, deque()
    for stream in waiting:
        stream.cancel()
        stream.end()
    state.wake.put(None)
    if thread is not threading.current_thread():
        thread.join()
