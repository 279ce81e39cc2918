"""Options that several commands share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import OptionError
from ..runtime.config import RuntimeConfig
from ..runtime.lora import LoraAdapter

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


def answer_option(help_text: str, *, default: str | bool = True) -> Any:
    """Return the declaration of an option of `AnswerOptions`.

    Args:
        help_text: Text of the help.
        default: Default to show in the help; True shows the value.
    """
    return typer.Option(help=help_text, show_default=default, rich_help_panel=_ANSWER)


def loading_option(help_text: str, *, default: str | bool = True) -> Any:
    """Return the declaration of an option of `LoadingOptions`; see `answer_option`."""
    return typer.Option(help=help_text, show_default=default, rich_help_panel=_LOADING)


Model = Annotated[str, typer.Argument(help="an exported folder, or the hub id of one")]
Revision = Annotated[
    str | None,
    typer.Option(help="branch, tag or commit of a hub id", rich_help_panel=_LOADING),
]


@dataclass(frozen=True, kw_only=True)
class LoadingOptions:
    """The model, and the device and settings that it runs with."""

    model: Model
    revision: Revision = None
    device: Annotated[
        list[str] | None,
        loading_option("OpenVINO device; repeat for preferences", default="GPU, then CPU"),
    ] = None
    context_tokens: Annotated[
        int | None,
        loading_option(
            "tokens of prompt and answer together", default="the model's original context"
        ),
    ] = None
    threads: Annotated[int | None, loading_option("CPU threads", default="OpenVINO's choice")] = (
        None
    )
    adapter: Annotated[Path | None, loading_option("folder of a LoRA adapter")] = None
    cache_dir: Annotated[
        Path | None, loading_option("keep compiled models here; loads faster on a GPU")
    ] = None

    def to_arguments(self) -> dict[str, Any]:
        """Return the keywords of `phi3ov.load_model`."""
        return {
            "revision": self.revision,
            "device": tuple(self.device or ("GPU", "CPU")),
            "config": RuntimeConfig(threads=self.threads, cache_dir=self.cache_dir),
            "context_tokens": self.context_tokens,
            "adapter": None if self.adapter is None else LoraAdapter(path=self.adapter),
        }


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """The fields of `GenerationOptions` that a command offers, under the same names."""

    max_new_tokens: Annotated[int, answer_option("tokens of the longest answer")] = 1024
    max_reasoning_tokens: Annotated[
        int | None, answer_option("tokens of the longest thoughts of a reasoning model")
    ] = None
    temperature: Annotated[
        float, answer_option("0 always takes the most likely token, above 0 samples")
    ] = 0.0
    top_p: Annotated[
        float | None,
        answer_option("sample from the top tokens with this total probability"),
    ] = None
    top_k: Annotated[int | None, answer_option("sample from this many top tokens")] = None
    min_p: Annotated[
        float | None,
        answer_option("leave out tokens below this share of the highest probability"),
    ] = None
    seed: Annotated[int | None, answer_option("sample the same again", default="random")] = None
    repetition_penalty: Annotated[
        float | None, answer_option("above 1 makes tokens of prompt and answer less likely")
    ] = None
    presence_penalty: Annotated[
        float | None, answer_option("above 0 makes tokens of the answer less likely, once each")
    ] = None
    frequency_penalty: Annotated[
        float | None, answer_option("above 0 does so for each time that they occurred")
    ] = None
    stop: Annotated[list[str] | None, answer_option("end before this text; repeat for more")] = None

    def to_generation_options(self, **more: Any) -> GenerationOptions:
        """Return the options of an answer; ``more`` holds additional fields.

        Raises:
            OptionError: A value is not allowed.
        """
        from ..answer.options import GenerationOptions

        chosen = {field.name: getattr(self, field.name) for field in fields(self)}
        given = {name: value for name, value in chosen.items() if value is not None}
        if self.stop is not None:
            given["stop"] = tuple(self.stop)
        return GenerationOptions(**given, **more)


def require_one_of(name: str, value: str | None, choices: Mapping[str, object]) -> None:
    """Check that a value is among ``choices``, which may grow while the program runs.

    Raises:
        typer.BadParameter: It is not among them.
    """
    if value is not None and value not in choices:
        listed = ", ".join(map(repr, choices))
        raise typer.BadParameter(f"{value!r} is not one of {listed}.", param_hint=f"'{name}'")


def refuse_together(**given: object) -> None:
    """Check that at most one of several exclusive options is given.

    Args:
        **given: Options by their Python names; None and False mean that an option is not given.

    Raises:
        typer.BadParameter: More than one is given.
    """
    names = [f"--{name.replace('_', '-')}" for name, value in given.items() if value]
    if len(names) > 1:
        raise typer.BadParameter(f"{' and '.join(names)} exclude each other.")


def gigabytes_to_bytes(name: str, gigabytes: float | None) -> int | None:
    """Convert gigabytes (10^9 bytes) to bytes; None stays None.

    Raises:
        OptionError: The value is not a finite number above 0.
    """
    if gigabytes is None:
        return None
    if not math.isfinite(gigabytes) or gigabytes <= 0:
        raise OptionError(f"{name}={gigabytes} must be a number of GB above 0.", option=name)
    return int(gigabytes * 1e9)
