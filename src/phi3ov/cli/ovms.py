"""``phi3ov ovms``: an exported folder as a model of OpenVINO Model Server."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import Model, Revision, json_option
from .printing import print_json, write_facts

EXAMPLE = "phi3ov ovms phi3-int4 served"


def run(
    model: Model,
    target: Annotated[Path, typer.Argument(help="the server's folder of models")],
    *,
    revision: Revision = None,
    name: Annotated[
        str | None,
        typer.Option(help="the model's name for clients", show_default="the folder's name"),
    ] = None,
    context_tokens: Annotated[
        int | None,
        typer.Option(
            help="tokens of prompt and answer together",
            show_default="the model's original context",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="OpenVINO device of the server")] = "CPU",
    plugin_config: Annotated[
        str | None, typer.Option(help="OpenVINO properties, as a JSON object", show_default="{}")
    ] = None,
    cache_gb: Annotated[int, typer.Option(help="size of the KV cache; 0 lets it grow")] = 0,
    tool_template: Annotated[
        Path | None,
        typer.Option(help="chat template whose tool calls the server reads (Phi-4-mini)"),
    ] = None,
    as_json: Annotated[bool, json_option("what was written")] = False,
) -> None:
    """Write an exported folder as OpenVINO Model Server reads it; weights are linked."""
    from ..integrations.ovms import write_ovms_model

    made = write_ovms_model(
        model,
        target,
        revision=revision,
        name=name,
        context_tokens=context_tokens,
        device=device,
        properties=_read_properties(plugin_config),
        cache_gigabytes=cache_gb,
        tool_template=tool_template,
    )
    if as_json:
        print_json(asdict(made))
        return
    write_facts(
        {
            "model": f"{made.name} in {made.folder}",
            "context": f"{made.context.tokens} tokens",
            "linked": ", ".join(made.linked) or "nothing",
            "copied": ", ".join(made.copied),
            "start": made.command,
        }
    )
    for note in made.notes:
        print(f"- {note}")


def _read_properties(text: str | None) -> dict[str, Any]:
    try:
        properties = json.loads(text or "{}")
    except ValueError as error:
        raise typer.BadParameter(
            f"{text!r} is not JSON: {error}", param_hint="'--plugin-config'"
        ) from error
    if not isinstance(properties, dict):
        raise typer.BadParameter(
            f'{text!r} is not a JSON object, such as \'{{"NUM_STREAMS": "1"}}\'',
            param_hint="'--plugin-config'",
        )
    return properties
