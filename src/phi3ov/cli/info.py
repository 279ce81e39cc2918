"""``phi3ov info``: the content of an exported folder."""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Model, Revision, json_option
from .printing import flatten, print_json, write_facts, write_table

if TYPE_CHECKING:
    from ..artifact.folder import Artifact
    from ..artifact.ir import Precision, WeightLayer
    from ..runtime.settings import Setting

EXAMPLE = "phi3ov info phi3-int4 --json"


def run(
    model: Model,
    *,
    revision: Revision = None,
    device: Annotated[
        str | None, typer.Option(help="also show OpenVINO's settings on this device, with reasons")
    ] = None,
    as_json: Annotated[bool, json_option("all of it")] = False,
) -> None:
    """Show what an exported folder holds."""
    from ..loading import find_artifact

    artifact = find_artifact(model, revision=revision)
    facts = _gather_info(artifact)
    if device is not None:
        facts["settings"] = [asdict(setting) for setting in _choose_settings(artifact, device)]
    if as_json:
        print_json(facts)
        return
    added = facts.pop("chat_extension")
    if added:
        facts["chat_extension"] = {name: repr(value) for name, value in added.items()}
    weights, layers, settings = (facts.pop(name, ()) for name in ("weights", "layers", "settings"))
    write_facts({name.replace("_", " "): flatten(value) for name, value in facts.items()})
    print()
    write_table(
        ("weights", "group", "zero points", "layers", "parameters"),
        [_weight_row(weight) for weight in weights],
        right="group,zero points,layers,parameters",
    )
    if settings:
        print()
        write_table(
            ("setting", "value", "chosen by", "reason"),
            [tuple(map(str, setting.values())) for setting in settings],
        )
    if layers:
        print("\n" + draw_layers(artifact.manifest.layers, sys.stdout.encoding))
        print_extremes(artifact.manifest.layers)


def _weight_row(weight: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    group = str(weight["group_size"] or "row")
    zero_points = "no" if weight["symmetric"] else "yes"
    if weight["precision"] not in ("int4", "int8"):
        group = zero_points = "-"
    layers, parameters = str(weight["layers"]), f"{weight['parameters']:,}"
    return weight["precision"], group, zero_points, layers, parameters


def _choose_settings(artifact: Artifact, device: str) -> tuple[Setting, ...]:
    """Return the settings with which `load_model` would run the model, without loading it."""
    import openvino

    from ..runtime.config import RuntimeConfig
    from ..runtime.devices import choose_device, find_devices
    from ..runtime.huge_pages import plan_huge_pages
    from ..runtime.properties import device_settings
    from ..runtime.tuning import find_record

    choice = choose_device(device, find_devices(device))
    record = find_record(artifact, choice.full_name) if choice.selected == "CPU" else None
    settings = device_settings(
        RuntimeConfig(),
        openvino.Core(),
        choice.selected,
        artifact=artifact,
        tuned=None if record is None else record.for_goal("latency"),
    )
    return (*settings, plan_huge_pages(RuntimeConfig(), choice.selected))


def _gather_info(artifact: Artifact) -> dict[str, Any]:
    from ..prompt.chat_tokenizer import ChatTokenizer

    tokenizer = ChatTokenizer.from_folder(artifact.path, artifact.chat_format)
    manifest = artifact.manifest
    return {
        "source": manifest.source,
        "revision": manifest.revision,
        "commit": manifest.commit,
        "recipe": dict(manifest.recipe),
        "bits_per_weight": round(artifact.bits_per_weight, 3),
        "source_bytes": manifest.source_bytes,
        "artifact_bytes": artifact.size_bytes,
        "chat_format": manifest.chat_format,
        "system_messages": manifest.system_messages,
        "chat_extension": dict(manifest.chat_extension),
        "stop_tokens": {str(token_id): text for token_id, text in tokenizer.stop_tokens.items()},
        "context_tokens": artifact.config.original_max_position_embeddings,
        "most_context_tokens": artifact.config.max_position_embeddings,
        "longrope": _describe_longrope(artifact),
        "experts": _describe_experts(artifact),
        "versions": dict(manifest.versions),
        "notes": list(manifest.notes),
        "weights": [asdict(kind) for kind in manifest.weights],
        "layers": [asdict(layer) for layer in manifest.layers],
    }


def _describe_longrope(artifact: Artifact) -> str:
    config = artifact.config
    if not config.has_longrope:
        return "no"
    if not artifact.has_long_factors:
        return f"one set of factors, right up to {config.original_max_position_embeddings} tokens"
    return (
        f"short factors up to {config.original_max_position_embeddings} context tokens, "
        "long factors above (load_model(context_tokens=...))"
    )


def _describe_experts(artifact: Artifact) -> str:
    config = artifact.config
    if not config.has_experts:
        return "no"
    return f"{config.num_local_experts} per block, {config.num_experts_per_tok} per token"


def print_extremes(layers: Sequence[WeightLayer], count: int = 3) -> None:
    """Print the layers with the largest rounding error, and those where int4 costs most."""
    for title, name, show in (
        ("largest error of the weights", "error", "{:.1%}"),
        ("largest effect of int4 (nats per token)", "int4_effect", "{:.2g}"),
    ):
        figures = [(getattr(layer, name), layer) for layer in layers]
        known = sorted(
            ((figure, layer) for figure, layer in figures if figure is not None),
            key=lambda pair: -pair[0],
        )
        if known:
            print(f"\n{title}:")
        for figure, layer in known[:count]:
            print(f"  {show.format(figure):>8}  {layer.precision:5} {layer.name}")


_BARS: Mapping[Precision, str] = dict(
    zip(("int4", "int8", "fp16", "bf16", "fp32"), "▂▄▆▆█", strict=True)
)
_LETTERS: Mapping[Precision, str] = dict(zip(_BARS, "48ffF", strict=True))
_BLOCK = re.compile(r"layers\.(\d+)\.(?:self_attn|mlp\.experts|mlp)\.(\w+)")


def draw_layers(layers: Sequence[WeightLayer], encoding: str) -> str:
    """Draw the precisions as text: a line per kind of weight, a mark per block.

    Args:
        layers: The weights of a model.
        encoding: Encoding of the output; bars if it has them, otherwise letters.
    """
    try:
        "".join(_BARS.values()).encode(encoding)
        marks = _BARS
    except (UnicodeEncodeError, LookupError):
        marks = _LETTERS
    rows: dict[str, str] = defaultdict(str)

    def place(layer: WeightLayer) -> tuple[int, str]:
        block = _BLOCK.search(layer.name)
        if block:
            return int(block[1]), block[2]
        return -1, layer.name.removesuffix(".weight").rpartition(".")[2]

    for layer in sorted(layers, key=place):
        rows[place(layer)[1]] += marks[layer.precision]
    kinds = {layer.precision for layer in layers}
    legend = ", ".join(f"{marks[kind]} {kind}" for kind in marks if kind in kinds)
    return "\n".join([f"{name:14} {row}" for name, row in rows.items()] + [f"{'':14} {legend}"])
