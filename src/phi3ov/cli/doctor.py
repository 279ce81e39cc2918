"""``phi3ov doctor``: whether every device and engine of this machine answers rightly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer

from ..errors import GenerationError
from .options import Model, Quiet, Revision, json_option
from .printing import print_json

if TYPE_CHECKING:
    from ..engine.protocol import EngineName

EXAMPLE = "phi3ov doctor phi3-int4"


def run(
    model: Model,
    *,
    revision: Revision = None,
    device: Annotated[
        list[str] | None,
        typer.Option(help="a device to ask; may be given several times", show_default="all"),
    ] = None,
    engine: Annotated[
        list[str] | None,  # typer takes no list of choices; diagnose() checks the names
        typer.Option(help="an engine to ask; may be given several times", show_default="all"),
    ] = None,
    answer_tokens: Annotated[int, typer.Option(help="tokens of each answer")] = 48,
    tolerance: Annotated[
        float, typer.Option(help="nats by which the exact model may prefer another token")
    ] = 2.0,
    as_json: Annotated[bool, json_option("the diagnosis")] = False,
    quiet: Quiet = False,
) -> None:
    """Ask every device and engine the same, and compare with the CPU in exact arithmetic."""
    from ..machine.doctor import diagnose

    diagnosis = diagnose(
        model,
        revision=revision,
        devices=device or None,
        engines=cast("list[EngineName]", engine) or None,
        answer_tokens=answer_tokens,
        tolerance_nats=tolerance,
        progress=not quiet,
    )
    if as_json:
        print_json(diagnosis.to_dict())
    else:
        print(diagnosis)
    if diagnosis.wrong:
        named = ", ".join(f"{found.device} with {found.engine}" for found in diagnosis.wrong)
        raise GenerationError(f"Wrong answers: {named}. Choose another device or engine.")
