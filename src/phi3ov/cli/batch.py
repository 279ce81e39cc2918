"""``phi3ov batch``: conversations of a JSONL file answered into another."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from ..batch import BatchProgress
from ..engine import EngineName
from ..errors import OptionError, Phi3OVError
from ..limits import RequestLimits
from ..runtime import RuntimeConfig

if TYPE_CHECKING:
    from . import Commands

_SAY_EVERY_SECONDS = 10.0

EXAMPLE = "phi3ov batch phi3-int4 questions.jsonl answers.jsonl"


def add(commands: Commands) -> None:
    """Declare the command and its arguments."""
    parser = commands.add_parser(
        "batch",
        help="answer a JSONL file of conversations; may be killed and run again",
        description="Answer each line of INPUT and append a record to OUTPUT. Run again with the "
        "same arguments, it goes on where it stopped. Exit code 1 if a line has failed.",
    )
    parser.add_argument("model", help="an exported folder")
    parser.add_argument(
        "input",
        type=Path,
        help='lines of {"messages": [...]} or {"prompt": "..."}, with "id" and "options" if wanted',
    )
    parser.add_argument("output", type=Path, help="the JSONL file to write or to go on with")
    parser.add_argument("--device", action="append", help="OpenVINO device; repeat for preferences")
    parser.add_argument("--engine", choices=get_args(EngineName), default="worker")
    parser.add_argument("--max-running", type=int, help="worker: answers at once (32)")
    parser.add_argument("--context-tokens", type=int, help="tokens of prompt and answer together")
    parser.add_argument("--max-new-tokens", type=int, default=1024)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--timeout-seconds", type=float, help="for each answer")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--quiet", action="store_true", help="print no progress")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    from ..batch_file import run_batch_file
    from ..generation import GenerationOptions
    from ..loading import load_model

    chosen = GenerationOptions(
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        timeout_seconds=options.timeout_seconds,
    )
    _require_files(options.input, options.output)
    with load_model(
        options.model,
        device=tuple(options.device or ("GPU", "CPU")),
        config=RuntimeConfig(threads=options.threads),
        engine=options.engine,
        limits=RequestLimits(max_running=options.max_running),
        context_tokens=options.context_tokens,
    ) as model:
        report = (lambda _progress: None) if options.quiet else _Reporter()
        end = run_batch_file(model, options.input, options.output, chosen, report)
    if end.failed:
        raise Phi3OVError(
            f"{end.failed} of {end.total} lines failed; {options.output} says why ('error')."
        )


def _require_files(source: Path, target: Path) -> None:
    """Find out before the model is loaded that a file is not there."""
    if not source.is_file():
        raise OptionError(f"{source} is no file.")
    if target.exists() and target.samefile(source):
        raise OptionError(f"{target} is the input; choose another output.")


class _Reporter:
    """Says now and then how far the batch is."""

    def __init__(self) -> None:
        self._said = time.monotonic() - _SAY_EVERY_SECONDS

    def __call__(self, progress: BatchProgress) -> None:
        now = time.monotonic()
        if progress.done < (progress.total or 0) and now - self._said < _SAY_EVERY_SECONDS:
            return
        self._said = now
        print(
            f"{progress.done} of {progress.total} done, {progress.failed} failed", file=sys.stderr
        )
