"""Turns a function into a command: options from dataclasses, exit codes from exceptions."""

from __future__ import annotations

import functools
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_type_hints

import typer
from typer.core import TyperCommand
from typer.models import ArgumentInfo

from ..errors import Phi3OVError
from .printing import write_line


class CommandEnded(BaseException):
    """Carries a command's exit code to `phi3ov.cli.main`.

    typer does not catch it and turn it into `SystemExit`.
    """

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


class Command(TyperCommand):
    """A command of ``phi3ov`` that raises `CommandEnded` and whose help ends with an example."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command on a parsed command line."""
        debug = bool(ctx.find_root().params.get("debug"))
        try:
            exit_code = _run(functools.partial(super().invoke, ctx), debug=debug)
        except typer.BadParameter as error:
            error.ctx = ctx  # so that the message shows this command's usage
            raise
        raise CommandEnded(exit_code)

    def restore_argument_help(self, function: Callable[..., None]) -> None:
        """Set the help of positional arguments again.

        click 8.5 has its own help for them, and resets the help that typer before 0.26 has set.
        """
        for parameter in self.params:
            for note in getattr(function.__annotations__[parameter.name], "__metadata__", ()):
                if isinstance(note, ArgumentInfo):
                    parameter.help = note.help

    def format_arguments(self, ctx: Any, formatter: Any) -> None:
        """Write nothing: typer lists the arguments, and click 8.5 would list them again."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - typer's signature
        """Write the example on one line for copying; typer would wrap and indent it."""
        formatter.write(f"\n{self.epilog}\n")


def _run(call: Callable[[], object], *, debug: bool) -> int:
    """Run a command and return its exit code; an error becomes one line on stderr.

    Raises:
        typer.BadParameter: The options contradict each other.
    """
    try:
        call()
        sys.stdout.flush()
    except (typer.BadParameter, typer.Exit):
        raise
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Python flushes stdout once more at its end, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:  # noqa: BLE001 - print a sentence, not a traceback
        if debug:
            traceback.print_exc()
        if isinstance(error, Phi3OVError | OSError):
            write_line(f"phi3ov: {error}", stream=sys.stderr)
            return 1
        message = f"unexpected {type(error).__name__}: {error}. See more: phi3ov --debug ..."
        write_line(f"phi3ov: {message}", stream=sys.stderr)
        return 3
    return 0


def expand_options(function: Callable[..., None]) -> Callable[..., None]:
    """Return a function with one parameter for each field of a dataclass parameter.

    typer reads options from a signature. A command declares ``loading: LoadingOptions``; typer
    sees one option for each field, and the command receives the dataclass.

    Args:
        function: The command; every parameter has a type.
    """
    parameters: list[inspect.Parameter] = []
    groups: dict[str, type] = {}
    hints = get_type_hints(function, include_extras=True)
    for parameter in inspect.signature(function).parameters.values():
        kind = hints[parameter.name]
        if is_dataclass(kind) and isinstance(kind, type):
            groups[parameter.name] = kind
            parameters += _parameters_of(kind)
        else:
            parameters.append(
                parameter.replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY)
            )

    @functools.wraps(function)
    def call(**values: Any) -> None:
        made = {
            name: kind(**{field.name: values.pop(field.name) for field in fields(kind)})
            for name, kind in groups.items()
        }
        function(**values, **made)

    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def _parameters_of(kind: type) -> list[inspect.Parameter]:
    """Return a parameter for each field of a dataclass."""
    hints = get_type_hints(kind, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(kind)
    ]
