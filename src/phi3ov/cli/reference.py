"""``phi3ov reference``: the small reference checkpoint, built offline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import json_option
from .printing import print_json

EXAMPLE = "phi3ov reference checkpoints/reference"


def run(
    output: Annotated[Path, typer.Argument(help="the folder to make")],
    *,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace a reference checkpoint")
    ] = False,
    as_json: Annotated[bool, json_option("the path")] = False,
) -> None:
    """Build the small reference checkpoint, offline."""
    from ..reference import build_reference

    folder = build_reference(output, overwrite=overwrite)
    if as_json:
        print_json({"path": folder})
    else:
        print(folder)
