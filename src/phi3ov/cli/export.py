"""``phi3ov export``: a checkpoint to an exported folder."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..exporter.recipes import PRESETS
from .files import read_text
from .options import Quiet, json_option, require_one_of
from .printing import gigabytes, print_json
from .progress import export_progress

if TYPE_CHECKING:
    from ..exporter.export import ExportReport
    from ..exporter.recipes import Compression

EXAMPLE = "phi3ov export microsoft/Phi-3-mini-4k-instruct phi3-int4 --preset accurate"

Precision = Literal["int4", "int8", "fp16"]


def run(
    source: Annotated[str, typer.Argument(help="a checkpoint folder or a hub id")],
    output: Annotated[str, typer.Argument(help="the folder to make")],
    *,
    precision: Annotated[Precision, typer.Option(help="of weights")] = "int4",
    preset: Annotated[
        str | None,
        typer.Option(
            metavar=f"[{'|'.join(PRESETS)}]",
            autocompletion=lambda: list(PRESETS),
            help="int4: a named recipe to start from",
        ),
    ] = None,
    calibrate: Annotated[
        list[Path] | None,
        typer.Option(help="int4: a text file to measure or calibrate on; repeat for more"),
    ] = None,
    group_size: Annotated[
        int | None, typer.Option(help="int4: values per scale", show_default="128")
    ] = None,
    ratio: Annotated[
        float | None, typer.Option(help="int4: share of int4 parameters", show_default="0.6")
    ] = None,
    target_bits: Annotated[
        float | None, typer.Option(help="int4: average bits per weight, instead of --ratio")
    ] = None,
    asymmetric: Annotated[
        bool, typer.Option("--asymmetric", help="int4: with zero points")
    ] = False,
    adjust: Annotated[
        bool,
        typer.Option("--adjust", help="int4: smaller groups where the size does not divide"),
    ] = False,
    revision: Annotated[str | None, typer.Option(help="branch, tag or commit of a hub id")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace an exported folder")
    ] = False,
    as_json: Annotated[bool, json_option("what was made")] = False,
    quiet: Quiet = False,
    log: Annotated[Path | None, typer.Option(help="append what the tools log to this file")] = None,
) -> None:
    """Export a checkpoint to a folder that OpenVINO runs."""
    from ..exporter.export import export_model

    require_one_of("--preset", preset, PRESETS)
    texts = tuple(read_text(path) for path in calibrate or ())
    changes: dict[str, Any] = {
        "texts": texts or None,
        "group_size": group_size,
        "ratio": ratio,
        "target_bits": target_bits,
        "symmetric": False if asymmetric else None,
        "on_indivisible": "adjust" if adjust else None,
    }
    changes = {name: value for name, value in changes.items() if value is not None}
    compression = _choose_recipe(precision, preset, changes)
    with export_progress(quiet=quiet) as progress:
        report = export_model(
            source,
            output,
            compression=compression,
            revision=revision,
            overwrite=overwrite,
            progress=progress,
            log=log,
        )
    if as_json:
        print_json(_describe(report))
        return
    print(
        f"{report.artifact.path}: {gigabytes(report.source_bytes)} of weights became "
        f"{gigabytes(report.artifact_bytes)} ({report.artifact.bits_per_weight:.2f} bits per "
        "weight)"
    )


def _choose_recipe(
    precision: Precision, preset: str | None, changes: dict[str, Any]
) -> Compression:
    from ..exporter.int4 import Int4Compression

    if precision == "int4":
        return replace(PRESETS[preset]() if preset else Int4Compression(), **changes)
    if changes or preset:
        names = ", ".join([*changes, *(["preset"] if preset else [])])
        raise typer.BadParameter(f"{names} go with --precision int4 only")
    return precision


def _describe(report: ExportReport) -> dict[str, Any]:
    return {
        "path": report.artifact.path,
        "source_bytes": report.source_bytes,
        "artifact_bytes": report.artifact_bytes,
        "bits_per_weight": round(report.artifact.bits_per_weight, 3),
        "recipe": report.artifact.manifest.recipe,
        "weights": [asdict(weight) for weight in report.weights],
        "phase_seconds": report.phase_seconds,
        "notes": report.notes,
    }
