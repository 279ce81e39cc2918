"""``phi3ov reference``: the small reference checkpoint, built offline."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import add_json
from .printing import print_json

if TYPE_CHECKING:
    from . import Commands

EXAMPLE = "phi3ov reference checkpoints/reference"


def add(commands: Commands) -> None:
    """Declare the command and its arguments."""
    parser = commands.add_parser("reference", help="build the small reference checkpoint, offline")
    parser.add_argument("output", type=Path, help="the folder to make")
    parser.add_argument("--overwrite", action="store_true", help="replace a reference checkpoint")
    add_json(parser, "the path")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    from ..reference import build_reference

    folder = build_reference(options.output, overwrite=options.overwrite)
    if options.json:
        print_json({"path": folder})
    else:
        print(folder)
