"""One request after the other, on a thread that owns the native model.

`pipeline` and `transformers` both run one generation at a time, and both native objects break
when two threads meet in them. So each is owned by one thread, which takes requests first come,
first served, while callers wait on their own streams with the interpreter lock free.
"""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable

from ..errors import StateError
from . import TokenRequest, TokenStream

RunRequest = Callable[[TokenStream], None]
"""Generates for one stream: puts ids, looks at ``stream.cancelled`` after each, and returns."""


class SerialEngine:
    """Runs requests one by one on a thread of its own."""

    def __init__(self, run: RunRequest, *, name: str) -> None:
        """Start the thread; ``run`` is called on it for each request in turn."""
        self._state = _State()
        self._thread = threading.Thread(
            target=_serve, args=(self._state, run), name=f"phi3ov-{name}", daemon=True
        )
        self._thread.start()
        # Also at interpreter exit: a daemon thread must not be inside native code by then.
        self._finalizer = weakref.finalize(self, _shut_down, self._state, self._thread)

    def submit(self, request: TokenRequest) -> TokenStream:
        """Queue ``request`` and return its stream at once.

        Raises:
            StateError: The engine is closed.
        """
        stream = TokenStream(request)
        with self._state.lock:
            if self._state.closing:
                raise StateError("The model is closed. Load it again with phi3ov.load_model().")
            self._state.waiting.put(stream)
        return stream

    def close(self) -> None:
        """Cancel what runs, end every stream and wait for the thread. May be called twice."""
        self._finalizer()


class _State:
    """What engine and thread share; the thread must not keep the engine itself alive."""

    def __init__(self) -> None:
        self.waiting: queue.SimpleQueue[TokenStream | None] = queue.SimpleQueue()
        self.lock = threading.RLock()  # a finalizer may run where it is held
        self.closing = False
        self.current: TokenStream | None = None


def _serve(state: _State, run: RunRequest) -> None:
    while (stream := state.waiting.get()) is not None:
        with state.lock:
            state.current = stream
            if state.closing:
                stream.cancel()
        error: BaseException | None = None
        try:
            if not stream.cancelled:
                run(stream)
        except BaseException as raised:  # noqa: BLE001 - it belongs to whoever reads the stream
            error = raised
        stream.end(error)
        with state.lock:  # `_shut_down` looks at it twice
            state.current = None
        del stream  # an idle thread must not keep the last answer's stream alive


def _shut_down(state: _State, thread: threading.Thread) -> None:
    with state.lock:
        state.closing = True
        if state.current is not None:
            state.current.cancel()
    state.waiting.put(None)
    if thread is not threading.current_thread():
        thread.join()
