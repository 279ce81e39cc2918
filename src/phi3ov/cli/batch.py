"""``phi3ov batch``: conversations of a JSONL file answered into another."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..engine.protocol import EngineName
from ..errors import OptionError, Phi3OVError
from ..runtime.limits import RequestLimits
from .options import AnswerOptions, LoadingOptions, Quiet, engine_option, json_option
from .printing import print_json
from .progress import batch_progress

EXAMPLE = "phi3ov batch phi3-int4 questions.jsonl answers.jsonl"


def run(
    loading: LoadingOptions,
    answer: AnswerOptions,
    source: Annotated[
        Path,
        typer.Argument(
            metavar="INPUT",
            help='lines of {"messages": [...]} or {"prompt": "..."}, with "id" and "options" '
            "if wanted",
        ),
    ],
    output: Annotated[Path, typer.Argument(help="the JSONL file to write or to continue")],
    *,
    engine: Annotated[EngineName, engine_option()] = "worker",
    max_running: Annotated[
        int | None, typer.Option(help="answers at once, for the worker", show_default="32")
    ] = None,
    timeout_seconds: Annotated[float | None, typer.Option(help="for each answer")] = None,
    as_json: Annotated[bool, json_option("how many lines were answered")] = False,
    quiet: Quiet = False,
) -> None:
    """Answer a JSONL file of conversations; continues after a kill.

    Answers each line of INPUT and appends a record to OUTPUT. Started again with the same
    arguments, it continues where it stopped. Exit code 1 if a line has failed.
    """
    from ..batch.file import answer_lines
    from ..batch.records import locked_output
    from ..loading import load_model

    chosen = answer.to_generation_options(timeout_seconds=timeout_seconds)
    _require_files(source, output)
    limits = RequestLimits(max_running=max_running)
    with (
        locked_output(output),  # before the model is loaded, which may take a minute
        load_model(loading.model, engine=engine, limits=limits, **loading.to_arguments()) as model,
        batch_progress(quiet=quiet) as report,
    ):
        end = answer_lines(model, source, output, chosen, report)
    if as_json:
        print_json({"output": output, **asdict(end)})
    if end.failed:
        raise Phi3OVError(f"{end.failed} of {end.total} lines failed; {output} says why ('error').")


def _require_files(source: Path, target: Path) -> None:
    """Find out before the model is loaded that a file is not there."""
    if not source.is_file():
        raise OptionError(f"{source} is not a file.")
    if target.exists() and target.samefile(source):
        raise OptionError(f"{target} is the input; choose another output.")
