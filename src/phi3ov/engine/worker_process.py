"""The worker engine's process: ``python -m phi3ov.engine.worker_process``, continuous batching.

It reads commands from stdin and writes reports to stdout (see ``worker_protocol.py``). Both
are moved to private descriptors first, so that nothing a native library prints can get between.

It ends when its stdin does, that is, when its parent has closed it or died in whatever way.
While the model loads that is at once; while it answers, when the step under way has finished,
because genai's ``step()`` holds the interpreter lock: milliseconds, or the seconds that a
large model takes for ``PREFILL_CHUNK_TOKENS`` of prompt. A process that the parent forked and
did not exec inherits the other end of the pipe; so the parent's id is looked at, too (POSIX).
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

from ..errors import DeviceError, Phi3OVError
from .worker_protocol import (
    Cancel,
    Command,
    Failed,
    Load,
    Progress,
    ProtocolError,
    Ready,
    Report,
    Step,
    Submit,
    decode_command,
    encode,
    read_lines,
)

if TYPE_CHECKING:
    from .pipeline import LastSequence

_LOOK_AT_PARENT_SECONDS = 1.0

Send = Callable[[Report], None]


def main() -> NoReturn:
    """Load what the parent says, then answer until it closes the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal's group
    parent = os.getppid()
    commands, reports = _claim_pipes()
    inbox: queue.SimpleQueue[Command] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(commands, inbox), daemon=True).start()

    def send(report: Report) -> None:
        try:
            reports.write(encode(report))
            reports.flush()
        except OSError:  # the parent is gone
            _leave(0)

    try:
        batch = _load(inbox.get())
        send(Ready())
        _serve(batch, inbox, send, parent)
    except Phi3OVError as error:
        send(Failed(error=type(error).__name__, message=str(error)))
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent reports it
        send(Failed(error="GenerationError", message=f"{type(error).__name__}: {error}"))
    _leave(1)


def _leave(code: int) -> NoReturn:
    """End at once: there is nothing to keep, and native destructors may take their time."""
    os._exit(code)


def _claim_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Take stdin and stdout for the protocol; what prints to stdout from now on goes to stderr."""
    commands, reports = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return commands, reports


def _receive(commands: BinaryIO, inbox: queue.SimpleQueue[Command]) -> None:
    try:
        for line in read_lines(commands):
            inbox.put(decode_command(line))
    except (ProtocolError, OSError) as error:
        os.write(2, f"phi3ov worker: {error}\n".encode(errors="replace"))
        _leave(2)
    _leave(0)


def _load(command: Command) -> Batch:
    if not isinstance(command, Load):
        raise ProtocolError(f"{type(command).__name__} came before Load.")
    sys.path[:] = dict.fromkeys((*command.sys_path, *sys.path))
    import openvino_genai  # only now, because of the line above

    from ..artifact import Artifact
    from ..rope import ContextChoice
    from .pinned import pinned_folder
    from .pipeline import BLOCK_TOKENS, PREFILL_CHUNK_TOKENS, LastSequence

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.enable_prefix_caching = True
    scheduler.max_num_batched_tokens = max(PREFILL_CHUNK_TOKENS, 2 * command.max_running)
    scheduler.max_num_seqs = command.max_running
    artifact = Artifact.open(command.folder)
    context = ContextChoice(tokens=command.context_tokens, factors=command.factors)
    with pinned_folder(artifact, context) as folder:
        try:
            pipeline = openvino_genai.ContinuousBatchingPipeline(
                str(folder),
                openvino_genai.Tokenizer(command.folder),
                scheduler,
                command.device,
                **command.properties,
            )
        except RuntimeError as error:
            raise DeviceError(
                f"OpenVINO could not compile {command.folder} for device={command.device!r}: "
                f"{error}"
            ) from error
    block_tokens = BLOCK_TOKENS.get(command.device.partition(".")[0], 32)
    return Batch(pipeline, LastSequence(block_tokens), block_tokens, command.max_running)


def _serve(batch: Batch, inbox: queue.SimpleQueue[Command], send: Send, parent: int) -> NoReturn:
    while True:
        try:
            while True:
                wait = batch.idle
                command = inbox.get(block=wait, timeout=_LOOK_AT_PARENT_SECONDS if wait else None)
                batch.accept(command)
        except queue.Empty:
            pass
        if os.name == "posix" and os.getppid() != parent:
            _leave(0)
        progress = batch.step()
        if progress:
            send(Step(progress=tuple(progress)))


@dataclass(slots=True)
class _Running:
    """A request in the batch.

    Attributes:
        command: What was asked for.
        handle: genai's handle.
        reused: Prompt ids that were cached.
        alone: Whether it has been the only one in the batch all the time.
        token_ids: What it got so far.
    """

    command: Submit
    handle: Any
    reused: int
    alone: bool
    token_ids: list[int] = field(default_factory=list)


class Batch:
    """The requests that run together, and those that wait for a place, first come, first served."""

    def __init__(
        self, pipeline: Any, cache: LastSequence, block_tokens: int, max_running: int
    ) -> None:
        """Answer on ``pipeline``, at most ``max_running`` requests at once."""
        self._pipeline = pipeline
        self._cache = cache
        self._block_tokens = block_tokens
        self._max_running = max_running
        self._waiting: deque[Submit] = deque()
        self._running: dict[int, _Running] = {}
        self._ended: list[Progress] = []  # between two steps

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do, nor to report."""
        busy = self._waiting or self._running or self._ended
        # genai frees a cancelled request at the end of the next step
        return not busy and not self._pipeline.has_non_finished_requests()

    def accept(self, command: Command) -> None:
        """Take a request, or cancel one."""
        if isinstance(command, Submit):
            self._waiting.append(command)
        elif isinstance(command, Cancel):
            self._cancel(command.number)
        else:
            raise ProtocolError("Load came twice.")

    def step(self) -> list[Progress]:
        """Fill free places, compute one step, and return what came out."""
        while self._waiting and len(self._running) < self._max_running:
            self._start(self._waiting.popleft())
        if self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        progress, self._ended = self._ended, []
        for running in list(self._running.values()):
            progress += self._collect(running)
        return progress

    def _start(self, command: Submit) -> None:
        import numpy as np
        import openvino

        from .pipeline import generation_config

        request = command.request
        config = generation_config(request)
        if request.stop_ids:  # or genai would take those of the folder's generation_config.json
            config.eos_token_id = max(request.stop_ids)
        else:
            config.ignore_eos = True
        # What genai reuses can be told while nothing else takes or frees blocks of its cache.
        alone = not self._running
        reused = self._cache.reusable(request.prompt_ids) if alone else 0
        prompt = openvino.Tensor(np.array([request.prompt_ids], dtype=np.int64))
        try:
            handle = self._pipeline.add_request(command.number, prompt, config)
        except RuntimeError as error:
            self._end(command.number, error=str(error))
            return
        for other in self._running.values():
            other.alone = False
        self._cache.forget()
        reused = min(reused, len(request.prompt_ids) - 1)
        self._running[command.number] = _Running(command, handle, reused, alone)

    def _cancel(self, number: int) -> None:
        waiting = [command for command in self._waiting if command.number == number]
        if number in self._running:
            self._running.pop(number).handle.cancel()
            self._cache.forget()
        elif waiting:
            self._waiting.remove(waiting[0])
        else:
            return  # it ended by itself meanwhile
        self._end(number)

    def _end(self, number: int, *, error: str | None = None) -> None:
        self._ended.append(Progress(number=number, token_ids=(), ended=True, error=error))

    def _collect(self, running: _Running) -> list[Progress]:
        import openvino_genai

        number, handle = running.command.number, running.handle
        token_ids: list[int] = []
        while handle.can_read():
            token_ids += next(iter(handle.read().values())).generated_ids
        running.token_ids += token_ids
        status = handle.get_status()
        ended = status != openvino_genai.GenerationStatus.RUNNING
        if not token_ids and not ended:
            return []
        error = None
        if ended:
            del self._running[number]
            self._remember(running)
            if status == openvino_genai.GenerationStatus.IGNORED:
                error = "The KV cache has no room for this request."
        return [
            Progress(
                number=number,
                token_ids=tuple(token_ids),
                cached_tokens=running.reused,
                ended=ended,
                error=error,
            )
        ]

    def _remember(self, running: _Running) -> None:
        """Note what a finished request leaves in the cache: whole blocks if others ran, too."""
        prompt_ids, read_ids = running.command.request.prompt_ids, running.token_ids[:-1]
        if running.alone:
            self._cache.remember(prompt_ids, read_ids, reused=running.reused)
            return
        ids = (*prompt_ids, *read_ids)
        whole = len(ids) - len(ids) % self._block_tokens
        self._cache.remember(ids[:whole], [], reused=0)


if __name__ == "__main__":
    main()
