"""``phi3ov info``: what an exported folder holds."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..artifact.folder import Artifact
from ..artifact.ir import Precision, WeightLayer
from .arguments import add_json
from .printing import bold, flatten

if TYPE_CHECKING:
    from . import Commands

EXAMPLE = "phi3ov info phi3-int4 --json"


def add(commands: Commands) -> None:
    """Declare the command and its arguments."""
    parser = commands.add_parser("info", help="what an exported folder holds")
    parser.add_argument("model", help="an exported folder")
    add_json(parser, "all of it")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    facts = _gather_info(Artifact.open(options.model))
    if options.json:
        print(json.dumps(facts, indent=2))
        return
    weights, layers = facts.pop("weights"), facts.pop("layers")
    for name, value in facts.items():
        print(f"{name.replace('_', ' '):18} {flatten(value)}")
    header = f"{'weights':10} {'group':>6} {'zero points':>12} {'layers':>7} {'parameters':>14}"
    print(f"\n{bold(header)}")
    for one in weights:
        group = one["group_size"] or "row"
        zero_points = "no" if one["symmetric"] else "yes"
        if one["precision"] not in ("int4", "int8"):
            group = zero_points = "-"
        print(
            f"{one['precision']:10} {group!s:>6} {zero_points:>12} {one['layers']:>7} "
            f"{one['parameters']:>14,}"
        )
    if layers:
        print("\n" + draw_layers(Artifact.open(options.model).manifest.layers, sys.stdout.encoding))


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
        "stop_tokens": {str(token_id): text for token_id, text in tokenizer.stop_tokens.items()},
        "context_tokens": artifact.config.original_max_position_embeddings,
        "most_context_tokens": artifact.config.max_position_embeddings,
        "longrope": _describe_longrope(artifact),
        "versions": dict(manifest.versions),
        "weights": [asdict(one) for one in manifest.weights],
        "layers": [asdict(one) for one in manifest.layers],
    }


def _describe_longrope(artifact: Artifact) -> str:
    config = artifact.config
    if not config.has_longrope:
        return "no"
    return (
        f"short factors up to {config.original_max_position_embeddings} context tokens, "
        "long factors above (load_model(context_tokens=...))"
    )


_BARS: Mapping[Precision, str] = dict(
    zip(("int4", "int8", "fp16", "bf16", "fp32"), "▂▄▆▆█", strict=True)
)
_LETTERS: Mapping[Precision, str] = dict(zip(_BARS, "48ffF", strict=True))
_BLOCK = re.compile(r"layers\.(\d+)\.(?:self_attn|mlp)\.(\w+)")


def draw_layers(layers: Sequence[WeightLayer], encoding: str) -> str:
    """Return a picture of the precisions: a line per kind of weight, a mark per block.

    Args:
        layers: The weights of a model.
        encoding: What the picture is for; bars where it has them, else letters.
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
