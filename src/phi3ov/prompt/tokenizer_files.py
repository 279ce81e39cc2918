"""Reads a folder's tokenizer files: ``tokenizer.json``, control tokens, stop ids."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ..errors import UnsupportedModelError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


_SENTENCE_TOKENS = frozenset({"<s>", "</s>", "<unk>", "<pad>"})
"""SentencePiece's own tokens, which some files do not mark as special."""


def is_control(token: Mapping[str, Any], ending: Collection[int | str] = ()) -> bool:
    """Whether an added token of a ``tokenizer.json`` is a control token rather than text.

    Control tokens are those that the file marks as special, every ``<|...|>`` (Phi-4-mini's tool
    tokens are not marked), SentencePiece's own, and those that end an answer. All others, such as
    ``<think>`` or ``<SQL>``, are ordinary text with a single id: in prompts, in answers and in
    grammars.

    Args:
        token: The token's entry in the file.
        ending: Ids and texts of tokens that end an answer.

    Example:
        >>> is_control({"id": 7, "content": "<think>", "special": False})
        False
        >>> is_control({"id": 7, "content": "<|tool|>", "special": False})
        True
    """
    text = token["content"]
    return bool(
        token["special"]
        or text in _SENTENCE_TOKENS
        or re.fullmatch(r"<\|.+\|>", text)
        or text in ending
        or token["id"] in ending
    )


def parse_definition(tokenizer_json: str) -> dict[str, Any]:
    """Parse a ``tokenizer.json``; adds an empty list of added tokens if the file has none.

    Raises:
        UnsupportedModelError: The content is not a JSON object.
    """
    try:
        definition = json.loads(tokenizer_json)
        found = dict(definition) | {"added_tokens": list(definition.get("added_tokens", []))}
        return restore_released(found)
    except (ValueError, TypeError, AttributeError) as error:
        raise UnsupportedModelError(f"tokenizer.json cannot be read: {error!r}.") from error


def restore_released(definition: Mapping[str, Any]) -> dict[str, Any]:
    """Undo a tool's changes to a Llama-like tokenizer: restore the normalizer of the release.

    Phi-3's released normalizer prepends "▁" to every piece of text between control tokens.
    transformers 5 reads a folder without config.json as a Llama tokenizer, and saves it with a
    Metaspace pre-tokenizer. That one marks only the first piece of a prompt, or no piece that
    begins with a space. The model was never trained on the resulting ids.

    Args:
        definition: A ``tokenizer.json``.

    Returns:
        ``definition`` itself, or a copy with the released normalizer.
    """
    pre_tokenizer, model = definition.get("pre_tokenizer"), definition.get("model")
    if not isinstance(pre_tokenizer, Mapping) or not isinstance(model, Mapping):
        return dict(definition)
    rewritten = (
        pre_tokenizer.get("type") == "Metaspace"
        and pre_tokenizer.get("prepend_scheme") in ("first", "always")
        and pre_tokenizer.get("split") is False
        and definition.get("normalizer") is None
        and model.get("byte_fallback")
    )
    if not rewritten:
        return dict(definition)
    mark = pre_tokenizer.get("replacement", "▁")
    normalizers = [
        {"type": "Prepend", "prepend": mark},
        {"type": "Replace", "pattern": {"String": " "}, "content": mark},
    ]
    return {
        **definition,
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
    }


def make_tokenizer(definition: Mapping[str, Any]) -> Tokenizer:
    """Create the tokenizer that a ``tokenizer.json`` defines.

    Raises:
        UnsupportedModelError: The definition is not a valid tokenizer.
    """
    from tokenizers import Tokenizer

    try:
        # json takes seven times as long, a tenth of what reading a tokenizer takes
        return Tokenizer.from_buffer(msgspec.json.encode(definition))
    except Exception as error:  # tokenizers raises bare Exception
        raise UnsupportedModelError(
            f"tokenizer.json does not define a tokenizer: {error}."
        ) from error


def read_stop_ids(folder: Path) -> list[int]:
    """Return all stop ids of ``generation_config.json`` and ``config.json``."""
    found: list[int] = []
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        value: Any = None
        if path.is_file():
            value = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
        found += [value] if isinstance(value, int) else list(value or [])
    return sorted(set(found))


def read_eos_token(folder: Path) -> str | None:
    """Return the end-of-text token of ``tokenizer_config.json``; None if it has none."""
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return None
    token: Any = json.loads(path.read_text(encoding="utf-8")).get("eos_token")
    return token.get("content") if isinstance(token, dict) else token


def byte_values(definition: Mapping[str, Any]) -> dict[int, int]:
    """Return the byte of each byte token, by id; empty without byte fallback."""
    model = definition.get("model", {})
    if not model.get("byte_fallback"):
        return {}
    return {
        token_id: int(found[1], 16)
        for text, token_id in model["vocab"].items()
        if (found := re.fullmatch(r"<0x([0-9A-F]{2})>", text))
    }
