"""Options that several commands take, each declared in one place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import OptionError
from ..runtime.config import RuntimeConfig

if TYPE_CHECKING:
    from ..answer.options import GenerationOptions

_LOADING = "Model and device"
_ANSWER = "Answer"


def json_option(what: str) -> Any:
    """Return the declaration of ``--json``, which prints one JSON value: ``what``."""
    return typer.Option("--json", help=f"print JSON: {what}")


def engine_option() -> Any:
    """Return the declaration of ``--engine``; each command has its own default."""
    return typer.Option(help="what answers", rich_help_panel=_LOADING)


Quiet = Annotated[bool, typer.Option("--quiet", help="print no progress")]
ModelFolder = Annotated[str, typer.Argument(help="an exported folder")]


@dataclass(frozen=True, kw_only=True)
class LoadingOptions:
    """The model and where it runs."""

    model: ModelFolder
    device: Annotated[
        list[str] | None,
        typer.Option(
            help="OpenVINO device; repeat for preferences",
            show_default="GPU, then CPU",
            rich_help_panel=_LOADING,
        ),
    ] = None
    context_tokens: Annotated[
        int | None,
        typer.Option(
            help="tokens of prompt and answer together",
            show_default="the model's original context",
            rich_help_panel=_LOADING,
        ),
    ] = None
    threads: Annotated[
        int | None,
        typer.Option(
            help="CPU threads", show_default="OpenVINO's choice", rich_help_panel=_LOADING
        ),
    ] = None

    def to_arguments(self) -> dict[str, Any]:
        """Return the keywords of `phi3ov.load_model`."""
        return {
            "device": tuple(self.device or ("GPU", "CPU")),
            "config": RuntimeConfig(threads=self.threads),
            "context_tokens": self.context_tokens,
        }


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """The fields of `GenerationOptions` that a command takes, by the same names."""

    max_new_tokens: Annotated[
        int, typer.Option(help="tokens of the longest answer", rich_help_panel=_ANSWER)
    ] = 1024
    temperature: Annotated[
        float,
        typer.Option(
            help="0 takes the likeliest token each time, above 0 samples", rich_help_panel=_ANSWER
        ),
    ] = 0.0

    def to_generation_options(self, **more: Any) -> GenerationOptions:
        """Return the options of an answer; ``more`` are further fields.

        Raises:
            OptionError: A value is not allowed.
        """
        from ..answer.options import GenerationOptions

        chosen = {field.name: getattr(self, field.name) for field in fields(self)}
        given = {name: value for name, value in chosen.items() if value is not None}
        return GenerationOptions(**given, **more)


def require_one_of(name: str, value: str | None, choices: Mapping[str, object]) -> None:
    """Refuse a value that is not among ``choices``, which may grow while the program runs.

    Raises:
        typer.BadParameter: It is not.
    """
    if value is not None and value not in choices:
        listed = ", ".join(map(repr, choices))
        raise typer.BadParameter(f"{value!r} is not one of {listed}.", param_hint=f"'{name}'")


def refuse_together(**given: object) -> None:
    """Refuse options that exclude each other.

    Args:
        **given: Options by their Python names; None and False are options that were not given.

    Raises:
        typer.BadParameter: More than one was given.
    """
    names = [f"--{name.replace('_', '-')}" for name, value in given.items() if value]
    if len(names) > 1:
        raise typer.BadParameter(f"{' and '.join(names)} exclude each other.")


def gigabytes_to_bytes(name: str, gigabytes: float | None) -> int | None:
    """Return a size of 10^9 bytes each in bytes; None stays None.

    Raises:
        OptionError: It is not a finite number above 0.
    """
    if gigabytes is None:
        return None
    if not math.isfinite(gigabytes) or gigabytes <= 0:
        raise OptionError(f"{name}={gigabytes} must be a number of GB above 0.")
    return int(gigabytes * 1e9)
