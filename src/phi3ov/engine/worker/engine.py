"""The worker engine: openvino-genai's continuous batching in a child process.

genai's ``step()`` holds the GIL while it computes, so it runs in a child process (``child.py``).
Requests join and leave the running batch. At most ``max_running`` are in it; the others wait in a
queue. If the child dies, open streams end with `EngineCrashedError`, and the next request starts a
new child.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING

import openvino

from ...answer.token_stream import TokenRequest, TokenStream
from ...errors import DeviceError, StateError
from ...runtime.huge_pages import plan_huge_pages
from ...runtime.limits import RequestLoad
from ...runtime.lora import read_adapter
from ...runtime.properties import device_settings
from ...runtime.settings import Setting, passed_properties
from ..genai.draft import plan_speculation
from ..genai.kv_pool import plan_pool
from ..genai.npu import is_npu
from ..protocol import EngineState, require_own_process
from ..sampling import check_request
from .parent import WorkerChild, WorkerStream
from .process import EarlyProcess, package_folders
from .protocol import Load

if TYPE_CHECKING:
    from ..protocol import EngineSetup

MAX_RUNNING = 32
"""Default number of requests in the batch; more bring little gain on a CPU."""

CACHED_CONTEXTS = 16
MOST_CACHE_BYTES = 4 * 1024**3
"""Default size of the KV cache: this many full contexts, but at most this many bytes."""


class WorkerEngine:
    """Generates many answers at once, in a child process."""

    longest_prompt: int | None = None

    def __init__(self, setup: EngineSetup) -> None:
        """Start the child and wait until it has compiled the model for the device.

        Raises:
            DeviceError: OpenVINO could not compile the model for the device.
            OptionError: The device does not support a property; ``cache_bytes`` holds less than
                one context; or there is no Python executable to start.
            UnsupportedModelError: The export does not hold the rope factors of ``setup.context``.
            EngineCrashedError: The child died while loading.
        """
        limits = setup.limits
        self.max_running: int = MAX_RUNNING if limits.max_running is None else limits.max_running
        if is_npu(setup.device):
            raise DeviceError(
                f"engine='worker' batches with paged attention, which device={setup.device!r} "
                "does not have. Use engine='pipeline' there."
            )
        huge_pages = plan_huge_pages(setup.config, setup.device, "worker")
        settings = device_settings(
            setup.config,
            openvino.Core(),
            setup.device,
            artifact=setup.artifact,
            tuned=setup.tuned,
        )
        self.settings: tuple[Setting, ...] = (*settings, huge_pages)
        properties = passed_properties(self.settings)
        self._speculation = plan_speculation(setup)
        self.takes_grammars: bool = not self._speculation.candidate_tokens
        adapter = (
            None if setup.adapter is None else read_adapter(setup.adapter, setup.artifact.config)
        )
        pool = plan_pool(
            setup,
            properties,
            self._speculation,
            contexts=CACHED_CONTEXTS,
            most_bytes=MOST_CACHE_BYTES,
        )
        load = Load(
            folder=str(setup.artifact.path.resolve()),
            device=setup.device,
            properties=properties,
            context_tokens=setup.context.tokens,
            factors=setup.context.factors,
            max_running=self.max_running,
            blocks=pool.blocks,
            block_tokens=pool.block_tokens,
            candidate_tokens=self._speculation.candidate_tokens,
            ngram_tokens=self._speculation.ngram_tokens,
            draft_folder=self._speculation.draft_folder,
            draft_factors=self._speculation.draft_factors,
            adaptive=self._speculation.adaptive,
            candidate_cost=self._speculation.candidate_cost,
            draft_cost=self._speculation.draft_cost,
            adapter="" if adapter is None else str(adapter.weights),
            prompt_chunk_tokens=(setup.tuned and setup.tuned.prompt_chunk_tokens) or 0,
            adapter_scale=1.0 if adapter is None else adapter.scale,
        )
        self._limits = limits
        self._process_id = os.getpid()
        self._state = _State(
            load,
            package_folders(),
            limit=self.max_running + limits.max_waiting,
            huge_pages=huge_pages.value == "on",
        )
        self._finalizer = weakref.finalize(self, _shut_down, self._state)  # also at exit
        try:
            self._state.living_child(setup.early_process).wait_until_loaded()
        except BaseException:
            self.close()
            raise

    def submit(
        self, request: TokenRequest, *, timeout_seconds: float | None = None, wait: bool = False
    ) -> TokenStream:
        """Send ``request`` to the child and return its stream at once; see `Engine.submit`."""
        check_request(request, "worker")
        self._speculation.check(request)
        state = self._state
        require_own_process(self._process_id)
        with state.lock:
            if state.closing:
                raise StateError("The model is closed. Load it again with phi3ov.load_model().")
            child = state.living_child()
            if not wait:
                self._limits.check(
                    child.load(self.max_running),
                    max_running=self.max_running,
                    prompt_tokens=len(request.prompt_ids),
                )
            state.last_number += 1
            return child.submit(state.last_number, request, timeout_seconds)

    @property
    def load(self) -> RequestLoad:
        """Number of running and waiting requests."""
        state = self._state
        with state.lock:
            if state.child is None:
                return RequestLoad(running=0, waiting=0, waiting_tokens=0)
            return state.child.load(self.max_running)

    @property
    def state(self) -> EngineState:
        """Whether it accepts requests; "restarting" until a new child has loaded the model."""
        state = self._state
        with state.lock:
            if state.closing:
                return "closed"
            child = state.child
            return "ready" if child is not None and child.ready else "restarting"

    def forget_cache(self) -> None:
        """Empty the KV cache by rebuilding the pipeline, after earlier requests have ended."""
        state = self._state
        with state.lock:
            if state.child is not None and state.child.usable:  # a new child has an empty cache
                state.child.forget_cache()

    def close(self) -> None:
        """End every stream and the child. Idempotent."""
        self._finalizer()


class _State:
    """State shared by engine, threads and finalizer; holds no reference to the engine."""

    def __init__(
        self, load: Load, packages: tuple[str, ...], *, limit: int, huge_pages: bool
    ) -> None:
        self.load = load
        self.huge_pages = huge_pages
        self.packages = packages
        self.limit = limit
        self.lock = threading.RLock()  # reentrant: a finalizer may run while it is held
        self.closing = False
        self.child: WorkerChild | None = None
        self.last_number = 0

    def living_child(self, early: EarlyProcess | None = None) -> WorkerChild:
        """Return the child; starts a new one if it died, in the process ``early`` if there is."""
        with self.lock:
            if self.child is None or not self.child.usable:
                self.child = WorkerChild(
                    self.load,
                    self.lock,
                    limit=self.limit,
                    packages=self.packages,
                    huge_pages=self.huge_pages,
                    early=early,
                )
            return self.child


def _shut_down(state: _State) -> None:
    with state.lock:
        state.closing = True
        child, state.child = state.child, None
        streams: list[WorkerStream] = []
        if child is not None:
            streams = child.take_streams()
    for stream in streams:
        stream.cancel()
        stream.end()
    if child is not None:
        child.stop()
