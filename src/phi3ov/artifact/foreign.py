"""Exported folders that phi3ov did not make, such as OpenVINO's own int4 repositories.

They have no manifest. The weights are read from the IR and the chat format from the folder's own
template. The recipe and the versions of the tools are what the IR says of them, where it does.
The folder's source and later changes to its files stay unknown.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from xml.etree.ElementTree import ParseError

from ..errors import ArtifactError, Phi3OVError, UnsupportedModelError
from ..family import Phi3Config
from ..prompt.formats import ChatFormat, recognize_format
from .download import is_hub_id
from .ir import WeightLayer, chooses_factors, find_unknown_types, is_router, read_weights

UNKNOWN = "unknown"
_NEEDED = ("openvino_model.xml", "openvino_model.bin", "config.json", "tokenizer.json")


def describe_layers(folder: Path) -> tuple[WeightLayer, ...]:
    """Return the weights of the IR in ``folder``.

    Raises:
        ArtifactError: Files are missing or damaged, or the IR holds no weights that phi3ov
            recognizes.
        UnsupportedModelError: ``config.json`` describes a model that phi3ov does not support.
    """
    missing = [name for name in _NEEDED if not (folder / name).is_file()]
    if missing:
        raise ArtifactError(
            f"{folder} is not a complete OpenVINO export. {_way_to_files(folder, missing)}",
            problems=tuple(f"{name}: missing" for name in missing),
        )
    name = "config.json"
    try:
        Phi3Config.read(folder / name)
        name = "openvino_model.xml"
        layers = read_weights(folder / name)
    except UnsupportedModelError:
        raise
    except (OSError, ValueError, KeyError, RecursionError, ParseError) as error:
        raise ArtifactError(f"{folder}: {name} cannot be read: {error!r}.") from error
    if not layers:
        raise ArtifactError(f"{folder}: openvino_model.xml holds no weights of a language model.")
    return layers


def render_format(folder: Path) -> ChatFormat:
    """Return the chat format that the folder's own template writes, rendered by openvino-genai.

    Raises:
        UnsupportedModelError: phi3ov does not know this chat format.
        ArtifactError: There is no template, or tokenizer or template cannot be read.
    """
    import openvino_genai

    try:
        tokenizer = openvino_genai.Tokenizer(str(folder))
        if not tokenizer.chat_template:
            raise ArtifactError(
                f"{folder} has no chat template, so no chat format is known. A draft model needs "
                "none: DraftModel(path=...). For a model that chats: "
                f"{_way_to_files(folder, ['chat_template.jinja', 'tokenizer_config.json'])}"
            )
        return recognize_format(
            lambda messages: str(
                tokenizer.apply_chat_template(messages, add_generation_prompt=True)
            ),
            template=str(tokenizer.chat_template),
        )
    except Phi3OVError:
        raise
    except Exception as error:  # raised by genai, usually RuntimeError
        raise ArtifactError(
            f"{folder}: openvino-genai cannot use its tokenizer or chat template: {error}"
        ) from error


def describe_limits(folder: Path) -> tuple[str, ...]:
    """Return what keeps the folder from being all that its model is, a sentence each.

    Raises:
        UnsupportedModelError: ``config.json`` describes a model that phi3ov does not support.
    """
    limits = []
    model_xml = folder / "openvino_model.xml"
    config = Phi3Config.read(folder / "config.json")
    if config.has_longrope and not chooses_factors(model_xml):
        border = config.original_max_position_embeddings
        limits.append(
            f"It holds one set of LongRoPE factors (exporters before mid-2026 wrote no other): "
            f"its answers are right up to {border} tokens, and a larger context_tokens is refused. "
            "Export the checkpoint again for longer contexts."
        )
    if unknown := find_unknown_types(model_xml):
        named = ", ".join(f"{number} in {kind}" for kind, number in sorted(unknown.items()))
        limits.append(
            f"phi3ov does not know the type of some weights ({named}): the sizes and bits per "
            "weight that it reports leave them out."
        )
    rounded = {
        layer.precision
        for layer in read_weights(model_xml)
        if is_router(layer.name) and layer.precision.startswith("int")
    }
    if rounded:
        limits.append(
            f"Its routers are compressed ({', '.join(sorted(rounded))}), so some tokens go to "
            "other experts than in the original. phi3ov's exports keep routers in float32."
        )
    return tuple(limits)


def _way_to_files(folder: Path, names: Sequence[str]) -> str:
    """Return how to get files that are the same in the original model."""
    shared = [name for name in names if not name.startswith("openvino_")]
    if not shared:
        return "Download or export it again."
    return (
        "Get what is missing from the original model: "
        f"hf download {_original_model(folder)} {' '.join(shared)} --local-dir {folder}"
    )


def _original_model(folder: Path) -> str:
    """Return the hub id that ``config.json`` names as the model's origin, else a placeholder."""
    try:
        name = json.loads((folder / "config.json").read_text(encoding="utf-8"))["_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "OWNER/MODEL"
    return name if is_hub_id(name) else "OWNER/MODEL"
