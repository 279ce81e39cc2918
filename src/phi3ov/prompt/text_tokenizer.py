"""Tokenizer of a ``tokenizer.json`` that never encodes ordinary text as a control token.

`TextTokenizer` holds the file's tokenizer with control tokens as ordinary text, which encodes
everything but raw prompts, and decodes. The first raw prompt makes another one, which honours
control tokens. ``chat_tokenizer.py`` encodes messages and the control tokens around them.
"""

from __future__ import annotations

import codecs
from collections.abc import Collection, Sequence
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

from ..errors import PromptError
from .messages import require_text
from .tokenizer_files import byte_values, is_control, make_tokenizer, parse_definition

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.decoders import DecodeStream

RUST_WHITE_SPACE = (
    "".join(map(chr, [*range(0x09, 0x0E), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B)]))
    + "\u2028\u2029\u202f\u205f\u3000"
)
"""Unicode's White_Space property, which the tokenizers library strips beside a control token
with lstrip or rstrip. Python's ``str.strip`` also strips U+001C to U+001F."""

BYTE_BY_BYTE = "phi3ov.byte_by_byte"
"""Codec error handler that replaces every byte of an invalid sequence by one U+FFFD."""


def _replace_each(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error(BYTE_BY_BYTE, _replace_each)


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the ids of ``text``.

    ``Tokenizer.encode`` holds the interpreter's lock for as long as it works, a quarter of a second
    for 131 072 tokens, and an event loop stands still meanwhile; ``encode_batch_fast`` releases it.
    """
    (encoding,) = tokenizer.encode_batch_fast([text], add_special_tokens=False)
    ids: list[int] = encoding.ids
    return ids


class TextTokenizer:
    """A checkpoint's tokenizer: text to ids without control tokens, and ids to text.

    Attributes:
        control_tokens: Text of every control token, by id.
        byte_values: Byte of each byte token, by id (byte fallback vocabularies).
        control: Entry in the file of every control token, by text.
    """

    def __init__(
        self,
        tokenizer_json: str,
        *,
        ending: Collection[int | str] = (),
        words: Collection[str] = (),
    ) -> None:
        """Read a ``tokenizer.json``.

        Args:
            tokenizer_json: The file's content.
            ending: Ids and texts of tokens that end an answer; always control tokens.
            words: Texts of added tokens that are always ordinary text.

        Raises:
            UnsupportedModelError: The file cannot be read.
        """
        definition = parse_definition(tokenizer_json)
        definition |= {"truncation": None, "padding": None}  # some fine-tunes set them
        added = {token["content"]: token for token in definition.get("added_tokens", [])}
        for text in words:
            if text in added:
                added[text]["special"] = False
        self.control: dict[str, dict[str, Any]] = {
            text: token for text, token in added.items() if is_control(token, ending)
        }
        self.control_tokens: dict[int, str] = {
            token["id"]: text for text, token in self.control.items()
        }
        self._special_in_file = {text: bool(token["special"]) for text, token in added.items()}
        for token in self.control.values():
            token["special"] = True
        self._plain = make_tokenizer(definition)  # decoding does not look at "special"
        self._plain.encode_special_tokens = True
        self.byte_values: dict[int, int] = byte_values(definition)
        self._byte_ids = {byte: token_id for token_id, byte in self.byte_values.items()}

    def last_token(self) -> tuple[int, str]:
        """Return the largest id and its token's text."""
        vocabulary: dict[str, int] = self._plain.get_vocab(with_added_tokens=True)
        text = max(vocabulary, key=vocabulary.__getitem__)
        return vocabulary[text], text

    def encode_raw(self, prompt: str) -> list[int]:
        """Encode ``prompt``, honouring its control tokens. Never use this for user text.

        Raises:
            PromptError: The prompt holds a lone surrogate.
        """
        require_text("prompt", prompt)
        return _encode(self._raw, prompt)

    @cached_property
    def _raw(self) -> Tokenizer:
        """The tokenizer that honours control tokens."""
        definition = parse_definition(self._plain.to_str())
        for token in definition["added_tokens"]:
            token["special"] = self._special_in_file[token["content"]]
        return make_tokenizer(definition)

    def encode_text(self, text: str) -> list[int]:
        """Return the ids of ``text`` as ordinary text.

        Raises:
            PromptError: The vocabulary encodes the text to a control token all the same.
        """
        ids = _encode(self._plain, text)
        if not self.control_tokens.keys().isdisjoint(ids):
            wrong = next(token_id for token_id in ids if token_id in self.control_tokens)
            raise PromptError(
                f"The text {text[:60]!r} encodes to the control token "
                f"{self.control_tokens[wrong]!r} although it was encoded as plain text."
            )
        return ids

    def encode_continuation(self, text: str) -> list[int]:
        """Return the ids of ``text`` that continues other text.

        Llama's normalizer puts a space before every text; one that continues has none.

        Raises:
            PromptError: As for `encode_text`.
        """
        if not self.byte_values:
            return self.encode_text(text)
        line_break = self.encode_text("\n")  # a byte token, which merges with nothing
        return self.encode_text("\n" + text)[len(line_break) :]

    def encode_segments(self, segments: Sequence[int | str]) -> list[int]:
        """Encode segments: control ids stay, adjacent texts are joined and encoded.

        Raises:
            PromptError: As for `encode_text`.
        """
        ids: list[int] = []
        run = ""
        for segment in [*segments, None]:
            if isinstance(segment, str):
                run += segment
                continue
            if ids and self._flag(ids[-1], "rstrip"):
                run = run.lstrip(RUST_WHITE_SPACE)
            if segment is not None and self._flag(segment, "lstrip"):
                run = run.rstrip(RUST_WHITE_SPACE)
            ids += self.encode_text(run) if run else []
            ids += [] if segment is None else [segment]
            run = ""
        return ids

    @property
    def byte_tokens(self) -> frozenset[int]:
        """Ids of byte tokens; empty for byte-level vocabularies."""
        return frozenset(self.byte_values)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of ``token_ids``.

        In a byte fallback vocabulary each invalid byte becomes one U+FFFD, and valid characters
        beside it stay. (The tokenizers library replaces every byte of a run that holds an invalid
        one, so no character could be shown before its run ends.)

        Args:
            token_ids: The ids.
            skip_special_tokens: Whether to leave out control tokens instead of writing their
                names.
        """
        if skip_special_tokens:
            token_ids = [each for each in token_ids if each not in self.control_tokens]
        if not self.byte_values:
            return self._decode(token_ids)
        text, first = "", True
        for is_bytes, run in groupby(token_ids, self.byte_values.__contains__):
            ids = list(run)
            if is_bytes:
                text += self.decode_bytes(ids, first=first).decode(errors=BYTE_BY_BYTE)
            else:
                text += self.decode_piece(ids, first=first)
            first = False
        return text

    def decode_piece(self, token_ids: Sequence[int], *, first: bool) -> str:
        """Return the text of ids of a byte fallback vocabulary without byte tokens.

        Args:
            token_ids: The ids.
            first: Whether the ids begin the text. Llama's decoder then drops a leading space.
        """
        if first:
            return self._decode(token_ids)
        return self._decode([self._byte_ids[ord("a")], *token_ids])[1:]

    def decode_bytes(self, token_ids: Sequence[int], *, first: bool) -> bytes:
        """Return the UTF-8 bytes of ids; ``first`` as in `decode_piece`."""
        found = bytes(self.byte_values[token_id] for token_id in token_ids)
        if first and found.startswith(b" ") and not self._decode([self._byte_ids[ord(" ")]]):
            return found[1:]
        return found

    def _decode(self, token_ids: Sequence[int]) -> str:
        text: str = self._plain.decode(list(token_ids), skip_special_tokens=False)
        return text

    def decode_stream(self) -> DecodeStream:
        """Return a new incremental decoder for `step`."""
        from tokenizers.decoders import DecodeStream

        return DecodeStream(skip_special_tokens=False)

    def step(self, stream: DecodeStream, token_ids: list[int]) -> str:
        """Feed ``token_ids`` to ``stream``; return the text that became certain."""
        return stream.step(self._plain, token_ids) or ""

    def token_text(self, token_id: int) -> str | None:
        """Return a token's text in the file; None for an unknown id."""
        text: str | None = self._plain.id_to_token(token_id)
        return text

    def _flag(self, token_id: int, name: Literal["lstrip", "rstrip"]) -> bool:
        text = self.control_tokens.get(token_id)
        return text is not None and bool(self.control[text][name])
