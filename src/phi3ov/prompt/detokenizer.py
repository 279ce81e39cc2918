"""Streaming detokenizer: decodes ids as they arrive, and handles control tokens and stop strings.

`ReplyStream` feeds `AnswerText` one id at a time. `AnswerText` composes small steps: it removes
stop ids and control tokens, `Detokenizer` decodes the rest without splitting a character,
``thoughts.py`` and ``call_parser.py`` extract thoughts and calls, and `StopStrings` holds back
text that may still become a stop string.
"""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING, Protocol

from .call_parser import CallText, parse_tool_calls
from .text_tokenizer import BYTE_BY_BYTE
from .thoughts import ThoughtSplitter
from .tools import ToolCall

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from tokenizers.decoders import DecodeStream


class TokenDecoder(Protocol):
    """Tokenizer interface that decoding an answer needs."""

    control_tokens: dict[int, str]
    """Text of every control token, by id."""
    stop_tokens: dict[int, str]
    """Text of the control tokens that end an answer, by id."""
    byte_values: dict[int, int]
    """Byte of each byte token, by id (byte fallback); empty for byte-level vocabularies."""

    @property
    def thought_tags(self) -> tuple[str, str] | None:
        """Tags around the reasoning text before an answer; None for other models."""
        ...

    @property
    def tool_call_ids(self) -> tuple[int, int] | None:
        """Ids before and after a tool call; None for a model without tools."""
        ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of ``token_ids``."""
        ...

    def decode_piece(self, token_ids: Sequence[int], *, first: bool) -> str:
        """Return the text of ids of a byte fallback vocabulary without byte tokens."""
        ...

    def decode_bytes(self, token_ids: Sequence[int], *, first: bool) -> bytes:
        """Return the UTF-8 bytes of ids of a byte fallback vocabulary."""
        ...

    def decode_stream(self) -> DecodeStream:
        """Return a new incremental decoder."""
        ...

    def step(self, stream: DecodeStream, token_ids: list[int]) -> str:
        """Feed ``token_ids`` to ``stream``; return the text that became certain."""
        ...


class Detokenizer:
    """Incremental decoder of a growing list of ids; joined pieces equal ``decode(all ids)``.

    A character appears as soon as its last byte has arrived; at most three bytes are held back.
    """

    def __init__(self, decoder: TokenDecoder) -> None:
        self._decoder = decoder
        self._stream = decoder.decode_stream()
        self._token_ids: list[int] = []
        self._emitted = 0
        self._bytes = codecs.getincrementaldecoder("utf-8")(BYTE_BY_BYTE)

    def add(self, token_id: int) -> str:
        """Add one id; return the text that is now certain, often empty."""
        if self._decoder.byte_values:
            return self._add_to_fallback(token_id)
        self._token_ids.append(token_id)
        piece = self._decoder.step(self._stream, [token_id])
        self._emitted += len(piece)
        return piece

    def finish(self) -> str:
        """Return the text that was held back; an unfinished character becomes U+FFFD."""
        if self._decoder.byte_values:
            return self._bytes.decode(b"", final=True)
        rest = self._decoder.decode(self._token_ids, skip_special_tokens=False)[self._emitted :]
        self._emitted += len(rest)
        return rest

    def _add_to_fallback(self, token_id: int) -> str:
        """Add an id of a byte fallback vocabulary, which spells rare characters byte by byte.

        The text of every other token in such a vocabulary does not depend on its neighbours.
        """
        first, self._token_ids = not self._token_ids, [token_id]
        if token_id in self._decoder.byte_values:
            return self._bytes.decode(self._decoder.decode_bytes([token_id], first=first))
        unfinished = self._bytes.decode(b"", final=True)
        return unfinished + self._decoder.decode_piece([token_id], first=first)


class StopStrings:
    """Passes text on up to the first stop string, and never shows a part of it."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None

    def add(self, text: str) -> str:
        """Add text; return the text that can be shown now."""
        if not self._stops or self.found is not None:
            return "" if self.found is not None else text
        self._held += text
        hits = [(self._held.find(stop), stop) for stop in self._stops]
        hits = [(start, stop) for start, stop in hits if start >= 0]
        if hits:
            # Choose the stop string that is complete first, so that piece boundaries do not matter.
            start, self.found = min(hits, key=lambda hit: (hit[0] + len(hit[1]), hit[0]))
            shown, self._held = self._held[:start], ""
            return shown
        keep = self._longest_beginning()
        shown, self._held = (
            self._held[: len(self._held) - keep],
            self._held[len(self._held) - keep :],
        )
        return shown

    def finish(self) -> str:
        """Return the text that was held back for a stop string that did not follow."""
        rest, self._held = self._held, ""
        return rest

    def _longest_beginning(self) -> int:
        """Length of the longest suffix of the held text that is a prefix of a stop string."""
        longest = min(len(self._held), max(len(stop) for stop in self._stops) - 1)
        for length in range(longest, 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0


class AnswerText:
    """The text of one answer, fed one token id at a time.

    Attributes:
        token_ids: The ids of the answer so far, without the stop token.
        stops_early: Whether there are stop strings; an engine itself only knows stop tokens.
        stopped_by: The stop token's text or the stop string that ended it; None until then.
        tool_calls: The calls in the answer; complete after `finish`. The ids between tool-call
            tokens give text only if they cannot be parsed as calls.
    """

    def __init__(
        self,
        decoder: TokenDecoder,
        stops: Sequence[str] = (),
        *,
        offered: Collection[str] = (),
        skip_special_tokens: bool = True,
        stop_ids: Collection[int] = (),
        before: Sequence[int] = (),
    ) -> None:
        """Read ids with ``decoder`` until one of its stop tokens or one of ``stops``.

        Args:
            decoder: The tokenizer.
            stops: Strings that end the answer. Calls are not searched for them.
            offered: Names of tools whose calls are also parsed if the model wrote them as
                ordinary text.
            skip_special_tokens: Whether to leave out control tokens. Those that end the answer or
                enclose calls are always left out.
            stop_ids: Control tokens that end this answer, besides the decoder's stop tokens.
            before: Ids that the answer continues. They give no text, but the following ids are
                decoded as their continuation: with a leading space, and within a character.
        """
        self._skips_special = skip_special_tokens
        self._decoder = decoder
        self._detokenizer = Detokenizer(decoder)
        self._offered = tuple(offered)
        self._thoughts = ThoughtSplitter(decoder.thought_tags)
        self._call_text = CallText(offered)
        self._stops = StopStrings(stops)
        self.stops_early: bool = bool(stops)
        self._pieces: list[str] = []
        self._reasoning: list[str] = []
        self._taken_reasoning = 0
        self._call_ids: list[int] | None = None
        self.token_ids: list[int] = []
        self.stopped_by: str | None = None
        self.tool_calls: tuple[ToolCall, ...] = ()
        self._stop_tokens = decoder.stop_tokens | {
            token_id: decoder.control_tokens[token_id] for token_id in stop_ids
        }
        self._begin(before)

    @classmethod
    def of(
        cls,
        decoder: TokenDecoder,
        token_ids: Sequence[int],
        *,
        offered: Collection[str] = (),
        before: Sequence[int] = (),
    ) -> str:
        """Return the text of a whole answer; ``before`` as in the constructor."""
        answer = cls(decoder, offered=offered, before=before)
        for token_id in token_ids:
            answer.add(token_id)
        answer.finish()
        return answer.text

    @property
    def text(self) -> str:
        """The text that may be shown so far."""
        return "".join(self._pieces)

    @property
    def reasoning(self) -> str:
        """The reasoning text so far; empty for other models."""
        return "".join(self._reasoning)

    def take_reasoning(self) -> str:
        """Return the reasoning text since the last call of this method."""
        new = self._reasoning[self._taken_reasoning :]
        self._taken_reasoning = len(self._reasoning)
        return "".join(new)

    def add(self, token_id: int) -> str:
        """Add one id; return the text to show now, often empty."""
        if token_id in self._stop_tokens:
            self.stopped_by = self._stop_tokens[token_id]
            return ""
        self.token_ids.append(token_id)
        if token_id in (self._decoder.tool_call_ids or ()):
            return self._switch_call(token_id)
        if token_id in self._decoder.control_tokens and self._skips_special:
            return ""
        if self._call_ids is not None:
            self._call_ids.append(token_id)
            return ""
        return self._show_text(self._detokenizer.add(token_id))

    def _begin(self, token_ids: Sequence[int]) -> None:
        """Add the ids that the answer continues; they are neither shown nor counted."""
        opening, closing = self._decoder.tool_call_ids or (None, None)
        for token_id in token_ids:
            if token_id == opening and self._call_ids is None:
                self._call_ids = []
            elif token_id == closing:
                self._call_ids = None
            elif token_id in self._decoder.control_tokens:
                continue
            elif self._call_ids is not None:
                self._call_ids.append(token_id)
            else:
                self._thoughts.add(self._detokenizer.add(token_id))

    def finish(self) -> str:
        """Return the text that was held back, at the end of the answer."""
        if self._stops.found is not None:
            return ""
        rest = self._end_call() + self._end_text()
        return rest + self._show(self._stops.finish())

    def _switch_call(self, token_id: int) -> str:
        """Begin or end a tool call at a tool-call token.

        A character that the call interrupts is shown unfinished before the call. The text of a
        call that cannot be parsed then follows it, in the order that the model wrote.
        """
        before, after = self._decoder.tool_call_ids or (None, None)
        if token_id == before and self._call_ids is None:
            self._call_ids = []
            return self._end_text()
        return self._end_call() if token_id == after else ""

    def _end_call(self) -> str:
        """Parse the ids of a tool call; return their text if they are not a call."""
        if self._call_ids is None:
            return ""
        text, self._call_ids = self._decoder.decode(self._call_ids), None
        calls = parse_tool_calls(text)
        if calls is None:
            return self._show(self._stops.add(text))
        self.tool_calls += calls
        return ""

    def _show_text(self, text: str) -> str:
        """Show text of the answer without its thoughts and calls."""
        thoughts, answer = self._thoughts.add(text)
        self._reasoning.append(thoughts)
        return self._show(self._stops.add(self._call_text.add(answer)))

    def _end_text(self) -> str:
        """Show the text that was held back, including an unfinished character."""
        rest = self._detokenizer.finish()
        if rest:
            self._detokenizer = Detokenizer(self._decoder)
        shown = self._show_text(rest)
        thoughts, answer = self._thoughts.finish()
        self._reasoning.append(thoughts)
        shown += self._show(self._stops.add(self._call_text.add(answer)))
        shown += self._show(self._stops.add(self._call_text.finish()))
        self.tool_calls += self._call_text.calls
        self._call_text = CallText(self._offered)
        return shown

    def _show(self, text: str) -> str:
        if self._stops.found is not None:
            self.stopped_by = self._stops.found
        if text:
            self._pieces.append(text)
        return text
