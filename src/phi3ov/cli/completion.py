"""``phi3ov completion``: the script that lets a shell complete the command."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..errors import MissingDependencyError

if TYPE_CHECKING:
    from . import Commands

EXAMPLE = "phi3ov completion bash > ~/.local/share/bash-completion/completions/phi3ov"


def add(commands: Commands) -> None:
    """Declare the command and its arguments."""
    parser = commands.add_parser("completion", help="print the script for a shell's completion")
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="the shell")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    from . import build_parser

    try:
        import shtab
    except ImportError as error:
        raise MissingDependencyError(
            "shtab", purpose="Shell completion", command='pip install "phi3ov[completion]"'
        ) from error
    print(shtab.complete(build_parser(), options.shell))
