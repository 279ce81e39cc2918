"""Files that an artifact keeps beside the model: configs, tokenizer, and OpenVINO's tokenizer pair.

They are gathered first, which takes seconds, so errors in them show before the long work.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import shutil
from importlib import metadata
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ..errors import ExportError
from ..prompt.formats import ChatFormat, recognize_format
from ..prompt.tokenizer_files import parse_definition
from .checkpoint import TRAVELLING_FILES, Checkpoint

TOKENIZER_PAIR = ("openvino_tokenizer.xml", "openvino_detokenizer.xml")

_PATH_FIELDS = frozenset(
    {"_name_or_path", "name_or_path", "special_tokens_map_file", "tokenizer_file", "vocab_file"}
)
"""JSON fields in which transformers records the folder that a file was loaded from."""

_LOGGER = logging.getLogger("phi3ov")


def gather_files(checkpoint: Checkpoint, folder: Path) -> None:
    """Copy the checkpoint's configs and tokenizer files into an existing folder.

    config.json is written in Phi-3's layout. A tokenizer.json that a tool has rewritten is
    restored to the family's release. Local paths are removed.

    Raises:
        UnsupportedModelError: tokenizer.json cannot be read.
    """
    for name in TRAVELLING_FILES:
        if (checkpoint.path / name).is_file():
            shutil.copyfile(checkpoint.path / name, folder / name)
            _remove_local_paths(folder / name)
    if checkpoint.llama:
        _write_json(folder / "config.json", checkpoint.phi3_values())
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    definition = parse_definition(text)
    if definition.get("pre_tokenizer") != json.loads(text).get("pre_tokenizer"):
        _LOGGER.warning(
            "%s: tokenizer.json was rewritten by a tool (Metaspace). The artifact gets the "
            "normalizer with which the family was released, so that its ids are those that the "
            "model has learned.",
            checkpoint.path,
        )
        _write_json(folder / "tokenizer.json", definition)


def _write_json(file: Path, values: Any) -> None:
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    file.write_text(text, encoding="utf-8", newline="\n")


def _remove_local_paths(file: Path) -> None:
    """Remove local paths from a JSON file, because an artifact may be published."""
    if file.suffix != ".json":
        return
    with contextlib.suppress(ValueError, RecursionError):  # another check reports a broken file
        values = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            return
        kept = {
            name: value
            for name, value in values.items()
            if not (name in _PATH_FIELDS and isinstance(value, str) and _is_absolute(value))
        }
        if kept != values:
            _write_json(file, kept)


def _is_absolute(path: str) -> bool:
    return PurePosixPath(path).is_absolute() or PureWindowsPath(path).is_absolute()


def load_tokenizer(folder: Path, source: str) -> Any:
    """Load the gathered tokenizer files with transformers.

    Args:
        folder: The folder with the files.
        source: The checkpoint's name in error messages.

    Raises:
        ExportError: transformers cannot read it, or it has no chat template.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise ExportError(
            f"transformers cannot read the tokenizer of {source}: {type(error).__name__}: {error}"
        ) from error
    if not tokenizer.chat_template:
        raise ExportError(f"{source} has no chat template, so no chat format is known.")
    return tokenizer


def recognize_chat_format(tokenizer: Any) -> ChatFormat:
    """Return the chat format that a tokenizer's template writes.

    Raises:
        UnsupportedModelError: phi3ov does not know it.
    """
    return recognize_format(
        lambda messages: str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ),
        template=str(tokenizer.chat_template),
    )


def convert_tokenizer_pair(tokenizer: Any, folder: Path) -> str | None:
    """Write OpenVINO's tokenizer and detokenizer, for other programs that use the folder.

    Args:
        tokenizer: transformers' tokenizer.
        folder: Where to write.

    Returns:
        None on success. If openvino-tokenizers cannot convert this tokenizer, a note that says
        what is missing, why, and which programs need it. phi3ov itself needs the two files only
        together with a draft model.
    """
    try:
        _convert(tokenizer, folder)
    except Exception as error:  # noqa: BLE001 - openvino-tokenizers raises many kinds
        for name in TOKENIZER_PAIR:
            for part in (name, name.replace(".xml", ".bin")):
                (folder / part).unlink(missing_ok=True)
        reason = " ".join(str(error).split()) or "no reason given"
        note = (
            f"{' and '.join(TOKENIZER_PAIR)} are missing: openvino-tokenizers "
            f"{metadata.version('openvino-tokenizers')} with openvino "
            f"{metadata.version('openvino')} cannot convert this tokenizer "
            f"({type(error).__name__}: {reason}). phi3ov does not need them, except with a draft "
            "model; openvino-genai on its own and OpenVINO Model Server do."
        )
        _LOGGER.warning("%s", note)
        return note
    return None


def _convert(tokenizer: Any, folder: Path) -> None:
    import openvino
    from openvino_tokenizers import convert_tokenizer

    exporter = importlib.import_module("optimum.exporters.openvino.convert")
    tokenizer.padding_side = tokenizer.truncation_side = "left"
    pair = convert_tokenizer(tokenizer, with_detokenizer=True)
    with contextlib.suppress(Exception):  # a convenience for openvino-genai, which has another way
        exporter.set_simplified_chat_template(pair[0], None)
    for model, name in zip(pair, TOKENIZER_PAIR, strict=True):
        openvino.save_model(model, folder / name)
    text = "Hello, world! 1 2\n<|end|>"
    compiled = openvino.Core().compile_model(pair[0], "CPU")
    found = compiled([text])["input_ids"][0].tolist()
    expected = tokenizer(text).input_ids
    if found != expected:
        raise ValueError(f"it encodes {text!r} as {found} instead of {expected}")
