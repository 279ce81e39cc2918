"""``phi3ov verify``: an exported folder compared with its checksums."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..artifact import Artifact
from ..errors import ArtifactError
from .printing import print_json

if TYPE_CHECKING:
    from . import Commands

EXAMPLE = "phi3ov verify phi3-int4"


def add(commands: Commands) -> None:
    """Declare the command and its arguments."""
    parser = commands.add_parser("verify", help="compare an exported folder with its checksums")
    parser.add_argument("model", help="an exported folder")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    artifact = Artifact.open(options.model)
    files = len(artifact.manifest.files)
    problems: tuple[str, ...] = ()
    try:
        artifact.verify()
    except ArtifactError as error:
        problems = error.problems or (str(error),)
        raise
    finally:
        if options.json:
            print_json({"path": artifact.path, "files": files, "problems": problems})
    if not options.json:
        print(f"{artifact.path}: all {files} files are as they were exported")
