"""Exported folders that phi3ov did not make, such as OpenVINO's own int4 repositories.

They have no manifest. The weights are read from the IR and the chat format from the folder's own
template. The folder's source, its recipe and later changes to its files stay unknown.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree.ElementTree import ParseError

from ..errors import ArtifactError, Phi3OVError, UnsupportedModelError
from ..family import Phi3Config
from ..prompt.formats import ChatFormat, recognize_format
from .ir import WeightLayer, read_weights

UNKNOWN = "unknown"
_NEEDED = ("openvino_model.xml", "openvino_model.bin", "config.json", "tokenizer.json")


def describe_layers(folder: Path) -> tuple[WeightLayer, ...]:
    """Return the weights of the IR in ``folder``.

    Raises:
        ArtifactError: Files are missing or damaged, or the IR holds no weights that phi3ov
            recognizes.
        UnsupportedModelError: ``config.json`` describes a model that phi3ov does not support.
    """
    missing = tuple(f"{name}: missing" for name in _NEEDED if not (folder / name).is_file())
    if missing:
        raise ArtifactError(f"{folder} is not a complete OpenVINO export:", problems=missing)
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
            raise ArtifactError(f"{folder} has no chat template, so no chat format is known.")
        return recognize_format(
            lambda messages: str(
                tokenizer.apply_chat_template(messages, add_generation_prompt=True)
            )
        )
    except Phi3OVError:
        raise
    except Exception as error:  # raised by genai, usually RuntimeError
        raise ArtifactError(
            f"{folder}: openvino-genai cannot use its tokenizer or chat template: {error}"
        ) from error
