"""Phi-4's and Phi-4-mini's vocabularies, built from OpenAI's public rank files.

Both models extend a public vocabulary (cl100k, o200k) by added tokens, and those with their ids
are in the real ``tokenizer_config.json``. The rank files are not part of this repository:
PHI3OV_RANKS names a folder that holds ``cl100k_base.tiktoken`` and ``o200k_base.tiktoken``, as
the package bpe-openai has them (gzipped). tiktoken's own checksums are compared.

Microsoft's ``tokenizer.json`` of these models is not at hand. What is shown: the public ids
without gaps or overlaps, and the ids of a slow implementation of tiktoken's rule on any text.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from phi3ov.prompt.chat_tokenizer import ChatTokenizer
from phi3ov.prompt.formats import recognize_format
from phi3ov.prompt.messages import Message

from .fakes import render_template
from .test_prompt_attacks import ATTACKS
from .test_real_files import FAMILY, ROWS, Row, conversations

RANKS = Path(os.environ.get("PHI3OV_RANKS", "no-such-folder"))
pytestmark = pytest.mark.skipif(
    not (FAMILY.is_dir() and RANKS.is_dir()),
    reason="no real files in PHI3OV_FAMILY or no rank files in PHI3OV_RANKS",
)
CHECKSUMS = {
    "cl100k_base": "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    "o200k_base": "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
}
"""As in ``tiktoken_ext/openai_public.py``."""
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CONTRACTED = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
PATTERNS = {
    "cl100k_base": _CONTRACTED + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "o200k_base": rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTED}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTED}?|\p{{N}}{{1,3}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
"""How text is cut before merging, as tiktoken publishes it."""
VOCABULARIES = {
    "phi-4-base": "cl100k_base",
    "phi-4-mini": "o200k_base",
    "phi-4-mini-reasoning": "o200k_base",
}
BUILT = [row for row in ROWS if row.folder in VOCABULARIES]
SIZES = {"phi-4-base": 100352, "phi-4-mini": 200029, "phi-4-mini-reasoning": 200029}
"""Ids that the real files name; the models' ``vocab_size`` is 100352 and 200064."""


@functools.cache
def ranks(name: str) -> dict[bytes, int]:
    """Read a rank file and compare its checksum."""
    content = (RANKS / f"{name}.tiktoken").read_bytes()
    assert hashlib.sha256(content).hexdigest() == CHECKSUMS[name]
    pairs = (line.split() for line in content.splitlines())
    return {base64.b64decode(token): int(rank) for token, rank in pairs}


def merge(word: bytes, order: dict[bytes, int], *, below: int | None = None) -> list[bytes]:
    """Merge bytes in the order of ranks, as tiktoken does; optionally only by lower ranks."""
    parts = [word[n : n + 1] for n in range(len(word))]
    while len(parts) > 1:
        pairs = [order.get(a + b) for a, b in pairwise(parts)]
        best = min((rank for rank in pairs if rank is not None), default=None)
        if best is None or (below is not None and best >= below):
            break
        at = pairs.index(best)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


@functools.cache
def definition(folder: str) -> str:
    """Build the ``tokenizer.json``: public ranks, the merges they imply, real added tokens."""
    name = VOCABULARIES[folder]
    order = ranks(name)
    letters = dict(zip(_printable(), sorted(pre_tokenizers.ByteLevel.alphabet()), strict=True))
    spelled = {token: "".join(letters[byte] for byte in token) for token in order}
    merges = []
    for token, rank in order.items():
        if len(token) > 1:
            left, right = merge(token, order, below=rank)
            merges.append((rank, spelled[left], spelled[right]))
    merges.sort()
    model = models.BPE(
        vocab={spelled[token]: rank for token, rank in order.items()},
        merges=[(left, right) for _, left, right in merges],
        ignore_merges=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERNS[name]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    made: dict[str, Any] = json.loads(tokenizer.to_str())
    row = next(each for each in ROWS if each.folder == folder)
    added = row.config["added_tokens_decoder"].items()
    made["added_tokens"] = [{**token, "id": int(token_id)} for token_id, token in added]
    # The library counts on from the vocabulary unless that holds the token: o200k's ids have gaps.
    made["model"]["vocab"] |= {token["content"]: int(token_id) for token_id, token in added}
    return json.dumps(made)


def _printable() -> list[int]:
    """Return the bytes in the order of the characters that byte-level vocabularies write."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    characters = {byte: byte for byte in shown} | {
        byte: 256 + number for number, byte in enumerate(hidden)
    }
    return sorted(characters, key=characters.__getitem__)


@functools.cache
def built(row: Row) -> ChatTokenizer:
    """Return the tokenizer under test, on the whole vocabulary."""
    found = recognize_format(lambda messages: render_template(row.template, messages))
    return ChatTokenizer(definition(row.folder), found, eos_token=row.config["eos_token"])


@pytest.mark.parametrize("row", BUILT, ids=lambda row: row.folder)
def test_real_added_tokens_stand_behind_the_public_ids(row: Row) -> None:
    """No id is used twice, and the last one is that of the real files."""
    public = set(ranks(VOCABULARIES[row.folder]).values())
    assert public == set(range(len(public)))
    added = set(map(int, row.config["added_tokens_decoder"]))
    assert not public & added
    tokenizer = built(row)
    assert tokenizer.last_token()[0] == SIZES[row.folder] - 1 == max(added)
    tokenizer.require_rows({"phi-4-base": 100352}.get(row.folder, 200064))


@pytest.mark.parametrize("row", BUILT, ids=lambda row: row.folder)
def test_ids_are_those_of_tiktokens_rule(row: Row) -> None:
    """On white space, scripts, emoji, numbers and runs of bytes, against the slow rule."""
    regex = pytest.importorskip("regex", reason="transformers brings it")
    name = VOCABULARIES[row.folder]
    order, pattern, tokenizer = ranks(name), regex.compile(PATTERNS[name]), built(row)
    names = [token["content"] for token in row.config["added_tokens_decoder"].values()]
    for messages, _ in conversations(row, 500):
        for text in (message.content for message in messages):
            if any(each in text for each in names):
                continue
            pieces = pattern.findall(text)
            assert "".join(pieces) == text
            expected = [
                order[part]
                for piece in pieces
                for word in [piece.encode()]
                for part in ([word] if word in order else merge(word, order))
            ]
            assert tokenizer.encode_text(text) == expected, ascii(text)
            assert tokenizer.decode(expected) == text


@pytest.mark.export
@pytest.mark.parametrize("row", BUILT, ids=lambda row: row.folder)
def test_conversations_on_the_whole_vocabulary_are_transformers_own(row: Row) -> None:
    """The real template on the whole vocabulary, and no attack makes a control token."""
    transformers = pytest.importorskip("transformers", reason="needs the extra [export]")
    official = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(definition(row.folder)), chat_template=row.template
    )
    tokenizer = built(row)
    for messages, tools in conversations(row, 500):
        if tools or any(each.tool_calls or each.role == "tool" for each in messages):
            continue
        said = [{"role": each.role, "content": each.content} for each in messages]
        expected = official.apply_chat_template(
            said, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        assert tokenizer.encode_prompt(messages) == expected, ascii(messages)

    def shape(content: str) -> list[int]:
        ids = tokenizer.encode_prompt([Message("user", content)])
        return [token_id for token_id in ids if token_id in tokenizer.control_tokens]

    harmless = shape("hello")
    spelled = [token["content"] for token in row.config["added_tokens_decoder"].values()]
    for attack in (*ATTACKS, *spelled):
        assert shape(attack) == harmless, ascii(attack)


def test_published_ids_of_phi_4() -> None:
    """The ids that its generation config names: 100265 ends a message."""
    row = next(each for each in BUILT if each.folder == "phi-4-base")
    tokenizer = built(row)
    assert tokenizer.stop_tokens[100265] == "<|im_end|>"
    assert tokenizer.encode_text("hello world") == [15339, 1917]  # tiktoken's documentation
