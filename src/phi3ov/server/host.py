"""The model behind the server: loading, state, load, and shutdown."""

from __future__ import annotations

import asyncio
import logging
import math
import statistics
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from .errors import unavailable
from .settings import ServerSettings

if TYPE_CHECKING:
    from ..model import Phi3Model
    from .answering import Answers

_LOGGER = logging.getLogger("phi3ov.server")

HostState = Literal["loading", "ready", "restarting", "draining", "failed", "closed"]
"""``restarting`` while a worker process is replaced; ``draining`` after SIGTERM."""

REMEMBERED_ANSWERS = 64
"""Number of last answers whose durations determine Retry-After."""
LONGEST_RETRY_SECONDS = 60
FEW_STREAMS = 4
"""Up to this many answers, each token is sent at once."""
LONGEST_PAUSE_SECONDS = 0.1
"""Maximum time that tokens are collected before they are sent, for any number of answers."""


class ModelHost:
    """Holds the model of one application.

    Attributes:
        running: The answers that are running or waiting.
        scoring: Requests for log-probabilities of prompts that are running or waiting.
        failure: The error that occurred while loading the model; None otherwise.
    """

    def __init__(
        self,
        load: Callable[[], Phi3Model],
        *,
        model: Phi3Model | None = None,
        events_per_second: int = ServerSettings().events_per_second,
    ) -> None:
        """Hold a loaded model, which its owner closes, or a function that loads a model."""
        self._events_per_second = events_per_second
        self.running: set[Answers] = set()
        self.scoring: int = 0
        self.failure: Exception | None = None
        self._load = load
        self._model = model
        self._owned = model is None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._draining = False
        self._closed = False
        self._durations: deque[float] = deque(maxlen=REMEMBERED_ANSWERS)

    def start(self) -> None:
        """Start loading the model on another thread, unless this has already happened."""
        with self._lock:
            if self._model is None and self._thread is None and not self._closed:
                # A daemon: the process can end while a model loads.
                self._thread = threading.Thread(
                    target=self._load_model, name="phi3ov-server-load", daemon=True
                )
                self._thread.start()

    def _load_model(self) -> None:
        try:
            model = self._load()
            _ = model.fingerprint  # hashes whole files if the folder has no manifest
        except Exception as error:  # noqa: BLE001 - requests and the command report it
            _LOGGER.error("The model could not be loaded: %s", error)
            self.failure = error
            return
        with self._lock:
            if not self._closed:
                self._model = model
                return
        model.close()

    @property
    def state(self) -> HostState:
        """The current state."""
        if self._closed:
            return "closed"
        if self._draining:
            return "draining"
        if self.failure is not None:
            return "failed"
        if self._model is None:
            return "loading"
        return self._model.state

    @property
    def model(self) -> Phi3Model | None:
        """The model; None until it is loaded."""
        return self._model

    def require_model(self) -> Phi3Model:
        """Return the model if it accepts requests.

        Raises:
            ApiError: 503: the model is loading or could not be loaded, or the server is shutting
                down.
        """
        self.start()
        state = self.state
        if self._model is not None and state in ("ready", "restarting"):
            return self._model
        reasons = {
            "loading": "The model is being loaded.",
            "draining": "The server is shutting down.",
            "failed": "The model could not be loaded; the server's log says why.",
            "closed": "The model is closed.",
        }
        raise unavailable(
            f"model_{state}" if state != "draining" else "server_draining",
            f"{reasons[state]} See /health.",
            retry_after=5,
        )

    def note_scored(self) -> None:
        """Count a request that is no longer `scoring`."""
        self.scoring = self.scoring - 1

    def note_duration(self, seconds: float) -> None:
        """Record the duration of an answer, for `retry_after_seconds`."""
        self._durations.append(seconds)

    def retry_after_seconds(self) -> int:
        """Estimate when a full queue will have room, from the durations of the last answers.

        A place becomes free when the next answer ends: on average after the median duration
        divided by the number of answers that run at the same time.
        """
        if self._model is None or not self._durations:
            return 1
        load = self._model.load
        together = max(load.running, 1)
        seconds = statistics.median(self._durations) * (1 + load.waiting) / together
        return max(1, min(LONGEST_RETRY_SECONDS, math.ceil(seconds)))

    def pause_seconds(self) -> float:
        """Return how long an answer's tokens are collected before they are sent.

        The pause is 0 for few answers. For more, it limits all answers together to
        ``events_per_second``.
        """
        streams = sum(len(answers.streams) for answers in self.running)
        if streams <= FEW_STREAMS:
            return 0.0
        return min(streams / self._events_per_second, LONGEST_PAUSE_SECONDS)

    async def drain(self, seconds: float, *, hurry: Callable[[], bool] = lambda: False) -> None:
        """Refuse new requests, wait for the running answers, and cut off those that take longer.

        Args:
            seconds: Maximum time to wait.
            hurry: Returns whether to stop waiting; called every 50 ms.
        """
        self._draining = True
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while self.running and loop.time() < deadline and not hurry():
            await asyncio.sleep(0.05)
        for answers in tuple(self.running):
            answers.cut_off()

    def close(self) -> None:
        """Close the model if this host loaded it."""
        with self._lock:
            self._closed = True
            model, self._model = self._model, None
        if model is not None and self._owned:
            model.close()
