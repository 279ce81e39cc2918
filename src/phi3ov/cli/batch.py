"""``phi3ov batch``: conversations of a JSONL file answered into another."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..batch.runner import BatchProgress
from ..errors import OptionError, Phi3OVError
from ..runtime.limits import RequestLimits
from .arguments import add_json, add_model, loading_options
from .printing import print_json

if TYPE_CHECKING:
    from . import Commands

_SAY_EVERY_SECONDS = 10.0

EXAMPLE = "phi3ov batch phi3-int4 questions.jsonl answers.jsonl"


def add(commands: Commands) -> None:
    """Declare the command and its arguments."""
    parser = commands.add_parser(
        "batch",
        help="answer a JSONL file of conversations; may be killed and run again",
        description="Answer each line of INPUT and append a record to OUTPUT. Run again with the\n"
        "same arguments, it goes on where it stopped. Exit code 1 if a line has failed.",
    )
    add_model(parser, engine="worker")
    parser.add_argument(
        "input",
        type=Path,
        help='lines of {"messages": [...]} or {"prompt": "..."}, with "id" and "options" if wanted',
    )
    parser.add_argument("output", type=Path, help="the JSONL file to write or to go on with")
    parser.add_argument("--max-running", type=int, help="worker: answers at once (32)")
    parser.add_argument("--timeout-seconds", type=float, help="for each answer")
    add_json(parser, "how many lines were answered")
    parser.add_argument("--quiet", action="store_true", help="print no progress")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    from ..answer.options import GenerationOptions
    from ..batch.file import answer_lines
    from ..batch.records import locked_output
    from ..loading import load_model

    chosen = GenerationOptions(
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        timeout_seconds=options.timeout_seconds,
    )
    _require_files(options.input, options.output)
    limits = RequestLimits(max_running=options.max_running)
    report = (lambda _progress: None) if options.quiet else _Reporter()
    with (
        locked_output(options.output),  # before the model is loaded, which may take a minute
        load_model(options.model, limits=limits, **loading_options(options)) as model,
    ):
        end = answer_lines(model, options.input, options.output, chosen, report)
    if options.json:
        print_json({"output": options.output, **asdict(end)})
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
