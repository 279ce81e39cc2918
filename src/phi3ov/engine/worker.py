"""Many answers at once: openvino-genai's continuous batching, in a process of its own.

genai's ``step()`` holds the interpreter lock for as long as it computes, so it runs in a child
process, whose side is ``worker_process.py``. Requests join and leave the running batch; at most
``max_running`` are in it, the others wait their turn. If the child dies, open streams end with
`EngineCrashedError` and the next request starts a new child.
"""

from __future__ import annotations

import sys
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

import openvino

from ..errors import OptionError, QueueFullError, StateError
from . import TokenRequest, TokenStream
from .worker_child import WorkerChild, WorkerStream
from .worker_protocol import Load

if TYPE_CHECKING:
    from ..artifact import Artifact
    from ..rope import ContextChoice
    from ..runtime import RuntimeConfig

MAX_RUNNING = 32
"""Requests in the batch; on a CPU more than 16 bring little."""

MAX_WAITING = 256
"""Requests that wait for a place in the batch before `QueueFullError`."""


class WorkerEngine:
    """Generates many answers at once, in a child process."""

    def __init__(
        self,
        artifact: Artifact,
        *,
        device: str,
        config: RuntimeConfig,
        context: ContextChoice,
        max_running: int = MAX_RUNNING,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        """Start the child and wait until it has compiled the model for ``device``.

        Raises:
            DeviceError: OpenVINO could not compile the model for the device.
            OptionError: A property was set that the device does not take; or the program is
                frozen (PyInstaller and its like), so that there is no Python to start.
            UnsupportedModelError: The rope factors of ``context`` cannot be had.
            EngineCrashedError: The child died meanwhile.
        """
        if getattr(sys, "frozen", False):  # sys.executable would start the whole program again
            raise OptionError(
                "engine='worker' starts Python, which a frozen program does not have. Use "
                "engine='pipeline'."
            )
        supported = openvino.Core().get_property(device, "SUPPORTED_PROPERTIES")
        load = Load(
            folder=str(artifact.path.resolve()),
            device=device,
            properties=config.to_properties(supported),
            context_tokens=context.tokens,
            factors=context.factors,
            max_running=max_running,
            sys_path=_package_folders(),
        )
        self._state = _State(load, limit=max_running + max_waiting)
        self._finalizer = weakref.finalize(self, _shut_down, self._state)  # also at exit
        try:
            self._state.living_child().wait_until_loaded()
        except BaseException:
            self.close()
            raise

    def submit(self, request: TokenRequest) -> TokenStream:
        """Send ``request`` to the child and return its stream at once.

        Raises:
            StateError: The engine is closed.
            QueueFullError: As many requests as are allowed run and wait already.
        """
        state = self._state
        with state.lock:
            if state.closing:
                raise StateError("The model is closed. Load it again with phi3ov.load_model().")
            child = state.living_child()
            if len(child.streams) >= state.limit:
                raise QueueFullError(
                    f"{len(child.streams)} requests run or wait already, which is the most that "
                    "this engine takes. Try again when one has ended."
                )
            state.last_number += 1
            return child.submit(state.last_number, request)

    def close(self) -> None:
        """End every stream and the child. May be called twice."""
        self._finalizer()


class _State:
    """What engine, threads and finalizer share; nothing here keeps the engine alive."""

    def __init__(self, load: Load, *, limit: int) -> None:
        self.load = load
        self.limit = limit
        self.lock = threading.RLock()  # a finalizer may run where it is held
        self.closing = False
        self.child: WorkerChild | None = None
        self.last_number = 0

    def living_child(self) -> WorkerChild:
        """Return the child, a new one if it died."""
        with self.lock:
            if self.child is None or not self.child.usable:
                self.child = WorkerChild(self.load, self.lock)
            return self.child


def _shut_down(state: _State) -> None:
    with state.lock:
        state.closing = True
        child, state.child = state.child, None
        streams: list[WorkerStream] = []
        if child is not None:
            streams = list(child.streams.values())
            child.streams = {}
    for stream in streams:
        stream.cancel()
        stream.end()
    if child is not None:
        child.stop()


def _package_folders() -> tuple[str, ...]:
    """Return ``sys.path``, which notebooks and tests change at run time, for another folder."""
    try:
        here = Path.cwd()
    except FileNotFoundError:  # the current folder has been removed
        return tuple(one for one in sys.path if Path(one).is_absolute())
    return tuple(str(here / one) for one in sys.path)
