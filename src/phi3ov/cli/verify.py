"""``phi3ov verify``: an exported folder compared with its checksums."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ..artifact.folder import Artifact
from ..errors import Phi3OVError
from .arguments import add_json
from .printing import print_json

if TYPE_CHECKING:
    from . import Commands

EXAMPLE = "phi3ov verify phi3-int4"


def add(commands: Commands) -> None:
    """Declare the command and its arguments."""
    parser = commands.add_parser("verify", help="compare an exported folder with its checksums")
    parser.add_argument("model", help="an exported folder")
    add_json(parser, "what was found, also where that is an error")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    found: dict[str, Any] = {"path": options.model, "files": None, "problems": ()}
    try:
        artifact = Artifact.open(options.model)
        found["files"] = len(artifact.manifest.files)
        artifact.verify()
    except (Phi3OVError, OSError) as error:
        found["problems"] = getattr(error, "problems", ()) or (str(error),)
        if options.json:
            print_json(found)
        raise
    if options.json:
        print_json(found)
    else:
        print(f"{artifact.path}: all {found['files']} files are as they were exported")
