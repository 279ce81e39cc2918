"""One request after the other, on a thread that owns the native model.

`pipeline`, `paged` and `transformers` run one generation at a time, and their native objects
break when two threads meet in them. So each is owned by one thread, which takes requests first
come, first served, while callers wait on their own streams with the interpreter lock free.
"""

from __future__ import annotations

import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable

from ..answer.token_stream import TokenRequest, TokenStream
from ..errors import GenerationError, Phi3OVError, QueueFullError, StateError
from ..runtime.limits import RequestLimits
from ..runtime.settings import Setting

RunRequest = Callable[[TokenStream], None]
"""Generates for one stream: puts ids, looks at ``stream.cancelled`` after each, and returns."""


class SerialEngine:
    """Runs requests one by one on a thread of its own."""

    max_running = 1
    settings: tuple[Setting, ...] = ()

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
            run: Called on it for each request in turn.
            free: Called on it at its end: gives the model's memory back, which a caller may need
                while something still holds the closed engine.
            name: What the thread is called.
            limits: How many requests may wait.
        """
        self._state = _State()
        self._max_waiting = limits.max_waiting
        self._thread = threading.Thread(
            target=_serve, args=(self._state, run, free), name=f"phi3ov-{name}", daemon=True
        )
        self._thread.start()
        # Also at interpreter exit: a daemon thread must not be inside native code by then.
        self._finalizer = weakref.finalize(self, _shut_down, self._state, self._thread)

    def submit(
        self, request: TokenRequest, *, timeout_seconds: float | None = None, wait: bool = False
    ) -> TokenStream:
        """Queue ``request`` and return its stream at once; see `Engine.submit`."""
        stream = TokenStream(request, timeout_seconds=timeout_seconds)
        self._enqueue(stream, wait=wait)
        return stream

    def _do(self, work: Callable[[], None]) -> None:
        """Do ``work`` on the engine's thread, after the requests before it, and wait for it."""
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
            raise StateError("The model was closed meanwhile.")

    def _enqueue(self, stream: TokenStream, *, wait: bool) -> None:
        state = self._state
        with state.lock:
            if state.closing:
                raise StateError("The model is closed. Load it again with phi3ov.load_model().")
            if not wait and state.open_requests() > self._max_waiting:
                raise QueueFullError(state.open_requests())
            # Ctrl-C may come between the two: a spare wake does no harm, a missing one would
            # leave every later request one behind.
            state.wake.put(None)
            state.waiting.append(stream)

    def forget_cache(self) -> None:
        """Do nothing: for `transformers`, which keeps no cache. The others override it."""

    def close(self) -> None:
        """Cancel what runs, end every stream and wait for the thread. May be called twice."""
        self._finalizer()


class _Task(TokenStream):
    """Work for the engine's thread that takes its turn among the requests."""

    def __init__(self, work: Callable[[], None]) -> None:
        super().__init__(TokenRequest(prompt_ids=(), max_new_tokens=0, stop_ids=frozenset()))
        self._work = work
        self.done = False
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits
            self.error = error
        self.done = True


class _State:
    """What engine and thread share; the thread must not keep the engine itself alive."""

    def __init__(self) -> None:
        self.waiting: deque[TokenStream] = deque()
        self.wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.lock = threading.RLock()  # a finalizer may run where it is held
        self.closing = False
        self.current: TokenStream | None = None

    def open_requests(self) -> int:
        """Count what runs and what waits and is still wanted."""
        return (self.current is not None) + sum(not one.cancelled for one in self.waiting)


def _serve(state: _State, run: RunRequest, free: Callable[[], None] = lambda: None) -> None:
    while True:
        state.wake.get()
        with state.lock:
            if state.closing:
                break
            if not state.waiting:  # Ctrl-C came before it was queued
                continue
            stream = state.current = state.waiting.popleft()
            stream.begun = True
        error: BaseException | None = None
        try:
            if stream.cancelled:
                pass
            elif isinstance(stream, _Task):
                stream.run()
            else:
                run(stream)
        except BaseException as raised:  # noqa: BLE001 - it belongs to whoever reads the stream
            error = raised
        stream.end(error)
        with state.lock:  # `_shut_down` looks at it twice
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
