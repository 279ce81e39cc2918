"""``phi3ov export``: a checkpoint to an exported folder."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import add_json
from .files import read_text
from .printing import gigabytes, print_json

if TYPE_CHECKING:
    from . import Commands

EXAMPLE = "phi3ov export microsoft/Phi-3-mini-4k-instruct phi3-int4 --preset accurate"


def add(commands: Commands) -> None:
    """Declare the command and its arguments."""
    from ..exporter.recipes import PRESETS

    parser = commands.add_parser("export", help="checkpoint to an exported folder")
    parser.add_argument("source", help="a checkpoint folder or a hub id")
    parser.add_argument("output", help="the folder to make")
    parser.add_argument(
        "--precision",
        choices=("int4", "int8", "fp16"),
        default="int4",
        help="of weights (%(default)s)",
    )
    parser.add_argument("--preset", choices=PRESETS, help="int4: a named recipe to start from")
    parser.add_argument(
        "--calibrate", type=Path, action="append", help="accurate: a text file; repeat for more"
    )
    parser.add_argument("--group-size", type=int, help="int4: values per scale (128)")
    parser.add_argument("--ratio", type=float, help="int4: share of int4 parameters (0.6)")
    parser.add_argument("--asymmetric", action="store_true", help="int4: with zero points")
    parser.add_argument(
        "--adjust", action="store_true", help="int4: smaller groups where the size does not divide"
    )
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    parser.add_argument("--overwrite", action="store_true", help="replace an exported folder")
    add_json(parser, "what was made")
    parser.add_argument("--quiet", action="store_true", help="print no progress")
    parser.add_argument("--log", type=Path, help="append what the tools log to this file")
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    from ..exporter.export import export_model
    from ..exporter.recipes import PRESETS, Compression, Int4Compression

    texts = tuple(read_text(path) for path in options.calibrate or ())
    chosen: dict[str, Any] = {
        "texts": texts or None,
        "group_size": options.group_size,
        "ratio": options.ratio,
        "symmetric": False if options.asymmetric else None,
        "on_indivisible": "adjust" if options.adjust else None,
    }
    chosen = {name: value for name, value in chosen.items() if value is not None}
    compression: Compression = options.precision
    if options.precision == "int4":
        start = PRESETS[options.preset]() if options.preset else Int4Compression()
        compression = replace(start, **chosen)
    elif chosen or options.preset:
        names = ", ".join([*chosen, *(["preset"] if options.preset else [])])
        options.parser.error(f"{names} go with --precision int4 only")
    report = export_model(
        options.source,
        options.output,
        compression=compression,
        revision=options.revision,
        overwrite=options.overwrite,
        progress=not options.quiet,
        log=options.log,
    )
    if options.json:
        print_json(
            {
                "path": report.artifact.path,
                "source_bytes": report.source_bytes,
                "artifact_bytes": report.artifact_bytes,
                "bits_per_weight": round(report.artifact.bits_per_weight, 3),
                "recipe": report.artifact.manifest.recipe,
                "weights": [asdict(one) for one in report.weights],
                "phase_seconds": report.phase_seconds,
            }
        )
        return
    print(
        f"{report.artifact.path}: {gigabytes(report.source_bytes)} of weights became "
        f"{gigabytes(report.artifact_bytes)} ({report.artifact.bits_per_weight:.2f} bits per "
        "weight)"
    )
