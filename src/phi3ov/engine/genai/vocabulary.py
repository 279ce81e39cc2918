"""The vocabulary as bytes, in the form that openvino-genai's grammars need.

genai reads the texts of tokens from the detokenizer beside the model, which is made for display:
it writes control tokens as text, bytes of a byte-fallback vocabulary (Llama's, so Phi-3's) as
``<0x0A>``, and spaces as ``▁``. A grammar over such texts would allow answers that look different
when they are shown. So this module builds another detokenizer for genai: each token is the bytes
that `phi3ov.prompt.ChatTokenizer` shows for it, and a control token is empty.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import openvino
import openvino_genai

from ...prompt.tokenizer_files import is_control, read_eos_token, read_stop_ids

_OPERATION_SETS = {
    "VocabDecoder": "extension",
    "FuzeRagged": "extension",
    "StringTensorPack": "opset15",
}


def grammar_tokenizer(folder: Path, *, drafted: bool = False) -> Any:
    """Return genai's tokenizer for the artifact in ``folder``, usable for grammars only.

    It is built in memory, because a container may have no writable folder.

    Args:
        folder: The artifact's folder.
        drafted: Whether there is a draft model. genai then compares the two models' own
            tokenizers, and phi3ov refuses grammars, so this returns the artifact's own tokenizer.
    """
    if drafted:
        return openvino_genai.Tokenizer(str(folder))
    xml, weights = _detokenizer(token_bytes(_read_definition(folder), ending=_ending(folder)))
    stop_ids = read_stop_ids(folder) or [0]
    return openvino_genai.Tokenizer(
        _unused_tokenizer(eos_id=stop_ids[0]), _tensor(b"\0"), xml, _tensor(weights)
    )


def _tensor(data: bytes) -> openvino.Tensor:
    return openvino.Tensor(np.frombuffer(data, np.uint8).copy())


def _unused_tokenizer(*, eos_id: int) -> str:
    """Return the XML of an IR that passes strings through unchanged.

    genai requires a tokenizer model and reads the end token from it, although prompts are passed
    as ids.
    """
    parameter = _layer(0, "Parameter", 'shape="?" element_type="string"', [], [("STRING", 1)])
    result = _layer(1, "Result", "", [("STRING", 1)], [])
    return (
        f'<?xml version="1.0"?><net name="tokenizer" version="11"><layers>{parameter}{result}'
        '</layers><edges><edge from-layer="0" from-port="0" to-layer="1" to-port="0"/></edges>'
        f'<rt_info><eos_token_id value="{eos_id}"/></rt_info></net>'
    )


def loses_first_space(folder: Path) -> bool:
    """Whether decoding drops a space at the beginning of an answer, as in Llama's vocabularies.

    A grammar must then require that space.
    """
    content = (folder / "tokenizer.json").read_bytes()
    decoder = msgspec.json.decode(content, type=_DecoderOnly).decoder or {}
    steps = decoder.get("decoders", [decoder])
    return any(step.get("type") == "Strip" and step.get("start", 0) > 0 for step in steps)


class _DecoderOnly(msgspec.Struct):
    """A ``tokenizer.json`` of which the vocabulary is skipped, not built."""

    decoder: dict[str, Any] | None = None


def _read_definition(folder: Path) -> dict[str, Any]:
    definition: dict[str, Any] = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    return definition


def _ending(folder: Path) -> set[int | str]:
    """Return ids and texts of the tokens that end an answer, from the folder's files."""
    eos_token = read_eos_token(folder)
    return {*read_stop_ids(folder), *(() if eos_token is None else (eos_token,))}


def token_bytes(definition: dict[str, Any], *, ending: Collection[int | str] = ()) -> list[bytes]:
    """Return the bytes of each id of a ``tokenizer.json``; empty for control tokens.

    Args:
        definition: The file's content.
        ending: Ids and texts of tokens that end an answer; always control tokens.
    """
    vocabulary: dict[str, int] = definition["model"]["vocab"]
    added = {token["id"]: token for token in definition.get("added_tokens", [])}
    texts = [b""] * (max([*vocabulary.values(), *added]) + 1)
    fallback = bool(definition["model"].get("byte_fallback"))
    for text, token_id in vocabulary.items():
        byte = re.fullmatch(r"<0x([0-9A-F]{2})>", text) if fallback else None
        if byte is not None:
            texts[token_id] = bytes([int(byte[1], 16)])
        elif fallback:
            texts[token_id] = text.replace("▁", " ").encode()
        else:  # a whole token at a time: one letter at a time takes longer than reading the file
            with suppress(UnicodeEncodeError):
                texts[token_id] = text.translate(_BYTES_OF_LETTERS).encode("latin-1")
    for token_id, token in added.items():
        control = is_control(token, ending)
        texts[token_id] = b"" if control else token["content"].encode()
    return texts


def _byte_letters() -> dict[int, int]:
    """Return, by code point, the byte of each letter of byte-level vocabularies (GPT-2's table).

    A letter without a byte leads to a code point that has no byte either.
    """
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    no_byte = 0x100
    letters = {256 + index: byte for index, byte in enumerate(hidden)}
    return letters | dict.fromkeys(hidden, no_byte) | {byte: byte for byte in shown}


_BYTES_OF_LETTERS = _byte_letters()


def _detokenizer(texts: Sequence[bytes]) -> tuple[str, bytes]:
    """Return an IR that looks up ``texts`` by id, as XML and weights."""
    ends = np.cumsum([len(text) for text in texts], dtype=np.int32)
    begins = np.concatenate([np.zeros(1, np.int32), ends[:-1]])
    skipped = np.zeros(1, np.int32)
    chars = np.frombuffer(b"".join(texts), dtype=np.uint8)
    layers, offset = [_layer(0, "Parameter", 'shape="?,?" element_type="i64"', [], [("I64", 2)])], 0
    convert = _layer(1, "Convert", 'destination_type="i32"', [("I64", 2)], [("I32", 2)])
    layers.append(convert)
    constants = (begins, ends, chars, skipped)
    for number, array in enumerate(constants, start=2):
        kind = "u8" if array.dtype == np.uint8 else "i32"
        data = f'element_type="{kind}" shape="{array.size}" offset="{offset}" size="{array.nbytes}"'
        layers.append(_layer(number, "Const", data, [], [(kind.upper(), -array.size)]))
        offset += array.nbytes
    inputs = [("I32", 2), *(("U8" if a.dtype == np.uint8 else "I32", -a.size) for a in constants)]
    ragged = [("I32", 1)] * 4
    string = [("I32", 1), ("I32", 1), ("U8", 1)]
    layers += [
        _layer(6, "VocabDecoder", 'skip_tokens=""', inputs, [*ragged, ("U8", 1)]),
        _layer(7, "FuzeRagged", "", ragged, [("I32", 1)] * 2),
        _layer(8, "StringTensorPack", "", string, [("STRING", 1)]),
        _layer(9, "Result", "", [("STRING", 1)], []),
    ]
    edges = [(0, 0, 1, 0), (1, 1, 6, 0), *((2 + i, 0, 6, 1 + i) for i in range(4))]
    edges += [*((6, 5 + i, 7, i) for i in range(4)), (7, 4, 8, 0), (7, 5, 8, 1), (6, 9, 8, 2)]
    edges.append((8, 3, 9, 0))
    joined = "".join(
        f'<edge from-layer="{a}" from-port="{b}" to-layer="{c}" to-port="{d}"/>'
        for a, b, c, d in edges
    )
    xml = (
        f'<?xml version="1.0"?><net name="detokenizer" version="11"><layers>{"".join(layers)}'
        f"</layers><edges>{joined}</edges></net>"
    )
    return xml, b"".join(array.tobytes() for array in constants)


def _layer(
    number: int,
    kind: str,
    data: str,
    inputs: list[tuple[str, int]],
    outputs: list[tuple[str, int]],
) -> str:
    """Return the XML of a layer.

    A port is its precision and its rank, or the negated size of its only dimension.
    """

    def ports(some: list[tuple[str, int]], start: int) -> str:
        return "".join(
            f'<port id="{start + index}" precision="{precision}">'
            + (f"<dim>{-rank}</dim>" if rank < 0 else "<dim>-1</dim>" * rank)
            + "</port>"
            for index, (precision, rank) in enumerate(some)
        )

    version = _OPERATION_SETS.get(kind, "opset1")
    return (
        f'<layer id="{number}" name="{kind}_{number}" type="{kind}" version="{version}">'
        + (f"<data {data}/>" if data else "")
        + (f"<input>{ports(inputs, 0)}</input>" if inputs else "")
        + (f"<output>{ports(outputs, len(inputs))}</output>" if outputs else "")
        + "</layer>"
    )
