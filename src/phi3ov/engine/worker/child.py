"""The worker engine's process: `main` of a Python that was started with ``-S``.

It reads commands from stdin and writes reports to stdout (see ``worker_protocol.py``). Both
are moved to private descriptors first, so that nothing a native library prints can get between;
nor a ``sitecustomize``, which is why ``site`` (``-S``) runs only after that.

It ends when its stdin does, that is, when its parent has closed it or died in whatever way.
While the model loads that is at once; while it answers, when the step under way has finished,
because genai's ``step()`` holds the interpreter lock: milliseconds, or the half second that two
cores take for a chunk of prompt (`prompt_tokens_per_step`). A process that the parent forked and
did not exec inherits the other end of the pipe; so the parent's id is looked at, too (POSIX).
"""

from __future__ import annotations

import os
import queue
import shutil
import signal
import site
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

from ...errors import Phi3OVError
from .batch import Batch
from .fields import ProtocolError
from .protocol import Command, Failed, Load, Ready, Report, Step, decode_command, encode, read_lines

if TYPE_CHECKING:
    from ..genai.draft import SpeculationPlan

_LOOK_AT_PARENT_SECONDS = 1.0
_LEAST_PROMPT_TOKENS, _MOST_PROMPT_TOKENS = 64, 512
_STEP_BYTES_TOKENS = 200 * 10**9
"""Bytes of weights times tokens of prompt that a step may take: about half a second."""
_work_folders: list[str] = []
"""What `_leave` removes: the parent's folder, if it named one."""

Send = Callable[[Report], None]


def main() -> NoReturn:
    """Load what the parent says, then answer until it closes the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal's group
    parent = os.getppid()
    commands, reports = _claim_pipes()
    site.main()  # what -S left out
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
    for folder in _work_folders:  # the parent may have died before it could remove it
        for _ in range(50):  # the other thread may still be writing into it
            shutil.rmtree(folder, ignore_errors=True)
            if not Path(folder).is_dir():
                break
            time.sleep(0.01)
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
            command = decode_command(line)
            if isinstance(command, Load) and command.work_folder:
                _work_folders.append(command.work_folder)
            inbox.put(command)
    except (ProtocolError, OSError) as error:
        os.write(2, f"phi3ov worker: {error}\n".encode(errors="replace"))
        _leave(2)
    _leave(0)


def _load(command: Command) -> Batch:
    if not isinstance(command, Load):
        raise ProtocolError(f"{type(command).__name__} came before Load.")
    sys.path[:] = dict.fromkeys((*command.sys_path, *sys.path))
    from ...artifact.folder import MODEL_BIN  # only now, because of the line above
    from ..genai.draft import SpeculationPlan
    from ..genai.kv_pool import KVPool
    from ..genai.vocabulary import loses_first_space

    speculation = SpeculationPlan(
        candidate_tokens=command.candidate_tokens,
        ngram_tokens=command.ngram_tokens,
        draft_folder=command.draft_folder,
        draft_factors=command.draft_factors,
    )
    pool = KVPool(
        blocks=command.blocks,
        block_tokens=command.block_tokens,
        block_bytes=0,
        spare_tokens=speculation.spare_tokens,
    )
    prompt_tokens = prompt_tokens_per_step(
        (Path(command.folder) / MODEL_BIN).stat().st_size, command.device
    )
    return Batch(
        partial(_open_pipeline, command, speculation, prompt_tokens),
        pool,
        command.max_running,
        prompt_tokens,
        speculation,
        leading_space=loses_first_space(Path(command.folder)),
    )


def prompt_tokens_per_step(weight_bytes: int, device: str) -> int:
    """Return how much of a prompt one step reads, at most: a power of two.

    Whoever else is in the batch waits for the step. On two cores reading takes about 3 ns per
    byte of the weights and token, so a long chunk, which pays on a small model, would hold up the
    others for seconds on a large one, where it gains nothing (decision 18).
    """
    fitting = _STEP_BYTES_TOKENS // weight_bytes if device == "CPU" else _MOST_PROMPT_TOKENS
    tokens = min(max(fitting, _LEAST_PROMPT_TOKENS), _MOST_PROMPT_TOKENS)
    return 1 << tokens.bit_length() - 1


def _open_pipeline(command: Load, speculation: SpeculationPlan, prompt_tokens: int) -> Any:
    import openvino_genai

    from ...artifact.folder import Artifact
    from ...runtime.lora import AdapterFile
    from ...runtime.properties import compiling
    from ...runtime.rope import ContextChoice
    from ..genai.vocabulary import grammar_tokenizer
    from ..pinned import pinned_folder
    from ..pipeline import adapter_properties, scheduler_config

    adapter = None
    if command.adapter:
        adapter = AdapterFile(weights=Path(command.adapter), scale=command.adapter_scale)

    artifact = Artifact.open(command.folder)
    answer_tokens = command.max_running * (1 + command.candidate_tokens)
    scheduler = scheduler_config(command.blocks, prompt_tokens + answer_tokens)
    scheduler.max_num_seqs = command.max_running
    context = ContextChoice(tokens=command.context_tokens, factors=command.factors)
    # The parent removes its folder once the model is loaded; building anew makes another.
    made = bool(command.work_folder) and Path(command.work_folder).is_dir()
    inside = command.work_folder if made else None
    with pinned_folder(artifact, context, inside=inside) as folder:
        extra = speculation.properties(
            command.device,
            command.properties,
            context_tokens=command.context_tokens,
            inside=inside,
        )
        with compiling(artifact.path, command.device), extra as speculative:
            return openvino_genai.ContinuousBatchingPipeline(
                str(folder),
                grammar_tokenizer(
                    artifact.path, inside=inside, drafted=bool(speculation.draft_folder)
                ),
                scheduler,
                command.device,
                **command.properties,
                **speculative,
                **adapter_properties(adapter),
            )


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
