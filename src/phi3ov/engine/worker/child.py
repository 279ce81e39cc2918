"""The worker engine's child process: reads commands, runs the batch, writes reports.

`startup` prepares the process and calls `run`. The process ends when its stdin is closed, because
the parent has closed it or has died. While the model loads, it ends at once. During an answer it
ends after the current step, because genai's ``step()`` holds the GIL: after milliseconds, or after
the half second that two cores take for a chunk of a prompt (`prompt_tokens_per_step`). A process
that the parent has forked without exec keeps the other end of the pipe open, so on POSIX the child
also checks its parent's id.
"""

from __future__ import annotations

import importlib
import os
import queue
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

from ...errors import OptionError, Phi3OVError
from .batch import Batch
from .protocol import (
    Command,
    Failed,
    Load,
    ProtocolError,
    Ready,
    Report,
    Step,
    decode_command,
    encode,
    read_lines,
)

if TYPE_CHECKING:
    from ..genai.draft import SpeculationPlan

_LOOK_AT_PARENT_SECONDS = 1.0
_LEAST_PROMPT_TOKENS, _MOST_PROMPT_TOKENS = 64, 512
_STEP_BYTES_TOKENS = 200 * 10**9
"""Limit of weight bytes times prompt tokens in one step, which takes about half a second."""
_work_folders: list[str] = []
"""Folders that `_leave` removes: the work folder of the parent, if any."""

Send = Callable[[Report], None]


def run(commands: BinaryIO, reports: BinaryIO, parent: int) -> NoReturn:
    """Load the model that the parent names, then answer until the parent closes the connection.

    Args:
        commands: Pipe from the parent.
        reports: Pipe to the parent.
        parent: Process id of the parent.
    """
    inbox: queue.SimpleQueue[Command] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(commands, inbox), daemon=True).start()

    def send(report: Report) -> None:
        try:
            reports.write(encode(report))
            reports.flush()
        except OSError:  # the parent is gone
            _leave(0)

    try:
        _import_engine()
        batch = _load(inbox.get())
        send(Ready())
        _serve(batch, inbox, send, parent)
    except Phi3OVError as error:
        option = error.option if isinstance(error, OptionError) else None
        send(Failed(error=type(error).__name__, message=_text(error), option=option))
    except Exception as error:  # noqa: BLE001 - the parent reports every error
        send(Failed(error="GenerationError", message=f"{type(error).__name__}: {_text(error)}"))
    _leave(1)


def _text(error: Exception) -> str:
    """Return an error's message; characters that UTF-8 cannot encode become ``?``."""
    return str(error).encode(errors="replace").decode()


def _leave(code: int) -> NoReturn:
    """Exit immediately: there is nothing to save, and native destructors may be slow."""
    for folder in _work_folders:  # the parent may have died before it could remove it
        for _ in range(50):  # the other thread may still be writing into it
            shutil.rmtree(folder, ignore_errors=True)
            if not Path(folder).is_dir():
                break
            time.sleep(0.01)
    os._exit(code)


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


def _import_engine() -> None:
    """Import what `_load` needs, while the parent still prepares its first command."""
    importlib.import_module("phi3ov.engine.pipeline")


def _load(command: Command) -> Batch:
    if not isinstance(command, Load):
        raise ProtocolError(f"{type(command).__name__} came before Load.")
    from ...artifact.folder import MODEL_BIN
    from ..genai.draft import SpeculationPlan
    from ..genai.kv_pool import KVPool
    from ..genai.vocabulary import loses_first_space

    speculation = SpeculationPlan(
        candidate_tokens=command.candidate_tokens,
        ngram_tokens=command.ngram_tokens,
        draft_folder=command.draft_folder,
        draft_factors=command.draft_factors,
        adaptive=command.adaptive,
        candidate_cost=command.candidate_cost,
        draft_cost=command.draft_cost,
    )
    pool = KVPool(
        blocks=command.blocks,
        block_tokens=command.block_tokens,
        block_bytes=0,
        spare_tokens=speculation.spare_tokens,
    )
    prompt_tokens = command.prompt_chunk_tokens or prompt_tokens_per_step(
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
    """Return the maximum number of prompt tokens per step, a power of two.

    All other requests of the batch wait for the step. On two cores prefill takes about 3 ns per
    token and byte of the weights. A long chunk is faster on a small model. On a large model it is
    not faster, and would block the other requests for seconds (decision 18).
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
    context = ContextChoice(tokens=command.context_tokens, factors=command.factors)
    inside = command.work_folder or None
    with ExitStack() as stack:
        # The parent removes its folder once the model is loaded. A rebuilt pipeline creates it
        # again under the same name, so that the surviving process can remove it.
        if inside is not None and not Path(inside).is_dir():
            Path(inside).mkdir(mode=0o700)
            stack.callback(shutil.rmtree, inside, ignore_errors=True)
        folder = stack.enter_context(pinned_folder(artifact, context, inside=inside))
        extra = speculation.properties(
            command.device,
            command.properties,
            context_tokens=command.context_tokens,
            model_folder=artifact.path,
            inside=inside,
        )
        with compiling(artifact.path, command.device), extra as speculative:
            return openvino_genai.ContinuousBatchingPipeline(
                str(folder),
                grammar_tokenizer(artifact.path, drafted=bool(speculation.draft_folder)),
                scheduler,
                command.device,
                **command.properties,
                **speculative,
                **adapter_properties(adapter, artifact.config),
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
