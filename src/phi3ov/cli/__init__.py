"""The command ``phi3ov``: a thin layer of arguments and printing over the library.

Each command is a module of this package, named in ``COMMANDS``: its ``add(commands)`` declares
the arguments and sets ``run``, a function that takes them parsed; its ``EXAMPLE`` ends the help.

Results go to stdout, everything else to stderr. Exit codes: 0 success, 1 an error that the
library or the system names (one line), 2 wrong usage, 3 an error that neither names, which is a
defect, 130 Ctrl-C, 141 the reader of a pipe has gone. ``--debug`` adds tracebacks, to the same
codes.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, TypeAlias

from .. import __version__
from ..errors import Phi3OVError

COMMANDS = (
    "export",
    "chat",
    "batch",
    "info",
    "verify",
    "quality",
    "devices",
    "reference",
    "completion",
)
"""The commands in the order in which the help lists them, each a module beside this one."""

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""What a command's ``add`` receives; argparse has no public name for it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
        arguments: The command line without the program's name; None takes ``sys.argv``.
    """
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.debug:
        logging.basicConfig(level=logging.DEBUG)
    if isinstance(sys.stdout, io.TextIOWrapper):  # an answer may hold what the terminal cannot show
        sys.stdout.reconfigure(errors="replace")
    run: Callable[[argparse.Namespace], None] = options.run
    try:
        run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Python flushes stdout once more at its end, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:  # noqa: BLE001 - whatever it is, a command ends in a sentence
        if options.debug:
            traceback.print_exc()
        if isinstance(error, Phi3OVError | OSError):
            print(f"phi3ov: {error}", file=sys.stderr)
            return 1
        message = f"unexpected {type(error).__name__}: {error}. See more: phi3ov --debug ..."
        print(f"phi3ov: {message}", file=sys.stderr)
        return 3
    return 0


class _Parser(argparse.ArgumentParser):
    """A parser that shows examples as they are written, and takes options anywhere.

    Python 3.11's takes an optional positional for missing when an option stands before it, as in
    ``chat MODEL --temperature 0.5 MESSAGE``.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **settings)
        self._reading = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, with options and positionals in any order where a command has no commands."""
        if self._reading or self._subparsers is not None:
            return super().parse_known_args(args, namespace)
        self._reading = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._reading = False


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = _Parser(
        prog="phi3ov",
        description="Export Phi-3 checkpoints to OpenVINO and chat with them, locally.",
        epilog="Example: phi3ov export microsoft/Phi-3-mini-4k-instruct phi3-int4\n"
        "         phi3ov chat phi3-int4",
    )
    parser.add_argument("--version", action="version", version=f"phi3ov {__version__}")
    parser.add_argument("--debug", action="store_true", help="log everything and show tracebacks")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = import_module(f".{name}", __name__)
        module.add(commands)
        commands.choices[name].epilog = f"Example: {module.EXAMPLE}"
    return parser
