"""``phi3ov batch``: conversations of a JSONL file answered into another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..engine.protocol import EngineName
from ..errors import OptionError, Phi3OVError
from ..runtime.limits import RequestLimits
from .options import AnswerOptions, LoadingOptions, Quiet, engine_option, json_option
from .printing import print_json
from .progress import batch_progress

if TYPE_CHECKING:
    from ..answer.options import GenerationOptions
    from ..batch.runner import BatchProgress, ReportProgress

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
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="answer on a Ray cluster: 'auto', HOST:PORT or 'local'; --threads are the CPUs "
            "of each loaded model (default: all of a node)",
        ),
    ] = None,
    actors: Annotated[
        int | None,
        typer.Option(help="loaded models, with --ray", show_default="as many as have room"),
    ] = None,
    as_json: Annotated[bool, json_option("how many lines were answered")] = False,
    quiet: Quiet = False,
) -> None:
    """Answer a JSONL file of conversations; continues after a kill.

    Answers each line of INPUT and appends a record to OUTPUT. Started again with the same
    arguments, it continues where it stopped. Exit code 1 if a line has failed.
    """
    chosen = answer.to_generation_options(timeout_seconds=timeout_seconds)
    limits = RequestLimits(max_running=max_running)
    _require_files(source, output)
    if ray is None:
        _require_unset("--actors", actors)
        answer_file = _on_this_machine(loading, engine, limits)
    else:
        if engine != "worker":
            raise OptionError(f"--engine {engine} does not go with --ray, which takes the worker.")
        answer_file = _on_ray(loading, limits, address=ray, actors=actors)
    from ..batch.records import locked_output

    with (
        locked_output(output),  # before the model is loaded, which may take a minute
        batch_progress(quiet=quiet) as report,
    ):
        end = answer_file(source, output, chosen, report)
    if as_json:
        print_json({"output": output, **asdict(end)})
    if end.failed:
        raise Phi3OVError(f"{end.failed} of {end.total} lines failed; {output} says why ('error').")


AnswerFile = Callable[[Path, Path, "GenerationOptions", "ReportProgress"], "BatchProgress"]
"""Answers the lines of an input into an output that is locked."""


def _on_this_machine(
    loading: LoadingOptions, engine: EngineName, limits: RequestLimits
) -> AnswerFile:
    def answer_file(
        source: Path, output: Path, options: GenerationOptions, report: ReportProgress
    ) -> BatchProgress:
        from ..batch.file import answer_lines
        from ..loading import load_model

        with load_model(
            loading.model, engine=engine, limits=limits, **loading.to_arguments()
        ) as model:
            return answer_lines(model, source, output, options, report)

    return answer_file


def _on_ray(
    loading: LoadingOptions, limits: RequestLimits, *, address: str, actors: int | None
) -> AnswerFile:
    def answer_file(
        source: Path, output: Path, options: GenerationOptions, report: ReportProgress
    ) -> BatchProgress:
        from ..integrations.ray.actors import LoadOptions
        from ..integrations.ray.job import RayCluster, answer_lines_on_ray

        return answer_lines_on_ray(
            loading.model,
            source,
            output,
            options,
            report,
            cluster=RayCluster(address=address, actors=actors, cores=loading.threads),
            load=LoadOptions(limits=limits, **loading.to_arguments()),
        )

    return answer_file


def _require_unset(name: str, value: object) -> None:
    """Refuse an option that has no effect without ``--ray``."""
    if value is not None:
        raise OptionError(f"{name} {value} has no effect without --ray.")


def _require_files(source: Path, target: Path) -> None:
    """Check that the files exist, before the model is loaded."""
    if not source.is_file():
        raise OptionError(f"{source} is not a file.")
    if target.exists() and target.samefile(source):
        raise OptionError(f"{target} is the input; choose another output.")
