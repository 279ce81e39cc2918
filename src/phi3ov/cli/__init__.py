"""The command ``phi3ov``: options and printing on top of the library.

Each command is a module of this package, named in ``COMMANDS``. typer reads the options from the
signature of its function ``run`` and the help from the docstring; ``EXAMPLE`` ends the help. To
add a command, write such a module and add its name to ``COMMANDS``.

Results go to stdout, everything else to stderr. Exit codes: 0 success, 1 an error of the library
or the system (one line), 2 wrong usage, 3 an unexpected error, which is a defect, 130 Ctrl-C, 141
the reader of the pipe has closed it. ``--debug`` adds tracebacks and keeps the codes.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.main import get_command

from .. import __version__
from .command import Command, CommandEnded, expand_options
from .printing import shows_style

COMMANDS = (
    "export",
    "chat",
    "serve",
    "batch",
    "info",
    "verify",
    "ovms",
    "quality",
    "tune",
    "doctor",
    "devices",
    "reference",
)
"""The commands in the order of the help, each a module of this package."""

_HELP_NAMES = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
        arguments: The command line without the program's name; None for ``sys.argv``.

    Raises:
        SystemExit: The command line asks for help, or is wrong (exit code 2).
    """
    _open_missing_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):  # an answer may contain what stdout cannot encode
        sys.stdout.reconfigure(errors="replace")
    command = build_command()
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        command.main(given, prog_name="phi3ov")
    except CommandEnded as end:
        return end.exit_code
    return 0


def build_command() -> Any:
    """Return typer's parser of the whole command line.

    Help and usage errors have frames and colours if both output streams are terminals that support
    them, and are plain text otherwise.
    """
    fancy = shows_style(sys.stdout) and shows_style(sys.stderr)
    app = typer.Typer(
        help="Export Phi-3 checkpoints to OpenVINO and chat with them, locally.",
        epilog="Example: phi3ov chat phi3-int4",
        no_args_is_help=True,
        context_settings=_HELP_NAMES,
        rich_markup_mode="rich" if fancy else None,
    )
    app.callback()(_set_up)
    functions: dict[str, Callable[..., None]] = {}
    for name in COMMANDS:
        module = import_module(f".{name}", __name__)
        functions[name] = expand_options(module.run)
        epilog = f"Example: {module.EXAMPLE}"
        app.command(name, cls=Command, epilog=epilog, context_settings=_HELP_NAMES)(functions[name])
    group: Any = get_command(app)
    for name, function in functions.items():
        group.commands[name].restore_argument_help(function)
    return group


def _print_version(asked: bool) -> None:  # noqa: FBT001 - typer's callback
    if asked:
        print(f"phi3ov {__version__}")
        raise typer.Exit


def _set_up(
    *,
    version: Annotated[  # noqa: ARG001 - the callback has printed it
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="print the version"),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="log everything and show tracebacks")
    ] = False,
) -> None:
    if debug:
        logging.basicConfig(level=logging.DEBUG)


def _open_missing_streams() -> None:
    """Replace streams that Python could not open (as under ``pythonw``) by the null device."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115
