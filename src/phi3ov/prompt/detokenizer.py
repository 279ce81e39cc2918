"""Token ids to text while they arrive: no split characters, no control tokens, stop strings.

`AnswerText` is what `ReplyStream` feeds one id at a time. It composes small steps: ids that end
the answer or that are control tokens are taken out, `Detokenizer` turns the rest into text that
never splits a character, thoughts and calls are taken out of that (``thoughts.py``,
``call_parser.py``), and `StopStrings` holds back what may still become a stop string.
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
    """What a tokenizer must offer to turn an answer into text."""

    control_tokens: dict[int, str]
    """Every control token: id to text."""
    stop_tokens: dict[int, str]
    """The control tokens that end an answer: id to text."""
    byte_values: dict[int, int]
    """Ids that stand for one byte each, and that byte (byte fallback); empty for byte-level
    vocabularies."""

    @property
    def thought_tags(self) -> tuple[str, str] | None:
        """What stands around the thoughts before an answer; None for a model that has none."""
        ...

    @property
    def tool_call_ids(self) -> tuple[int, int] | None:
        """Ids that stand before and after a tool call; None for a model without tools."""
        ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of ``token_ids`` as a whole."""
        ...

    def decode_piece(self, token_ids: Sequence[int], *, first: bool) -> str:
        """Return the text of ids of a byte fallback vocabulary among which no byte is."""
        ...

    def decode_bytes(self, token_ids: Sequence[int], *, first: bool) -> bytes:
        """Return the bytes that ids of a byte fallback vocabulary stand for."""
        ...

    def decode_stream(self) -> DecodeStream:
        """Return a fresh incremental decoder."""
        ...

    def step(self, stream: DecodeStream, token_ids: list[int]) -> str:
        """Feed ``token_ids`` to ``stream``; return the text that became certain."""
        ...


class Detokenizer:
    """Text of a growing list of ids; the pieces joined equal ``decode(all ids)``.

    A character appears when its last byte does: at most three bytes are held back.
    """

    def __init__(self, decoder: TokenDecoder) -> None:
        self._decoder = decoder
        self._stream = decoder.decode_stream()
        self._token_ids: list[int] = []
        self._emitted = 0
        self._bytes = codecs.getincrementaldecoder("utf-8")(BYTE_BY_BYTE)

    def add(self, token_id: int) -> str:
        """Take one id; return the text that became certain, often empty."""
        if self._decoder.byte_values:
            return self._add_to_fallback(token_id)
        self._token_ids.append(token_id)
        piece = self._decoder.step(self._stream, [token_id])
        self._emitted += len(piece)
        return piece

    def finish(self) -> str:
        """Return what was held back: an unfinished character becomes U+FFFD."""
        if self._decoder.byte_values:
            return self._bytes.decode(b"", final=True)
        rest = self._decoder.decode(self._token_ids, skip_special_tokens=False)[self._emitted :]
        self._emitted += len(rest)
        return rest

    def _add_to_fallback(self, token_id: int) -> str:
        """Take an id of a vocabulary that spells rare characters as one token per byte.

        Every other token of such a vocabulary has a text of its own, whatever stands beside it.
        """
        first, self._token_ids = not self._token_ids, [token_id]
        if token_id in self._decoder.byte_values:
            return self._bytes.decode(self._decoder.decode_bytes([token_id], first=first))
        unfinished = self._bytes.decode(b"", final=True)
        return unfinished + self._decoder.decode_piece([token_id], first=first)


class StopStrings:
    """Text up to the first stop string, no part of which is ever let through."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None

    def add(self, text: str) -> str:
        """Take more text; return what can be shown now."""
        if not self._stops or self.found is not None:
            return "" if self.found is not None else text
        self._held += text
        hits = [(self._held.find(stop), stop) for stop in self._stops]
        hits = [(start, stop) for start, stop in hits if start >= 0]
        if hits:
            # The one that is complete first, so that the pieces' borders make no difference.
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
        """Return what was held back for a stop string that did not come."""
        rest, self._held = self._held, ""
        return rest

    def _longest_beginning(self) -> int:
        """Length of the longest end of the held text that begins one of the stop strings."""
        longest = min(len(self._held), max(len(stop) for stop in self._stops) - 1)
        for length in range(longest, 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0


class AnswerText:
    """The text of one answer, fed one token id at a time.

    Attributes:
        token_ids: The ids of the answer so far, without the stop token.
        stops_early: Whether there are stop strings, for which an engine does not stop by itself.
        stopped_by: The stop token's text or the stop string that ended it; None until then.
        tool_calls: The calls that the answer holds; complete after `finish`. What stands
            between tool-call tokens is not text, unless it cannot be read as calls.
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
            stops: Strings that end the answer. They are not looked for in calls.
            offered: Names of the tools whose calls are also read where the model wrote them as
                ordinary text.
            skip_special_tokens: Whether control tokens give no text. Those that end the answer
                or stand around calls never do.
            stop_ids: Control tokens that end this answer beside the decoder's stop tokens.
            before: Ids that the answer continues. They give no text, but what follows is decoded
                as their continuation: with its leading space, and within a character.
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
        cls, decoder: TokenDecoder, token_ids: Sequence[int], *, offered: Collection[str] = ()
    ) -> str:
        """Return the text of a whole answer."""
        answer = cls(decoder, offered=offered)
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
        """The thoughts before the answer so far; empty for models that have none."""
        return "".join(self._reasoning)

    def take_reasoning(self) -> str:
        """Return the thoughts that came since this was last called."""
        new = self._reasoning[self._taken_reasoning :]
        self._taken_reasoning = len(self._reasoning)
        return "".join(new)

    def add(self, token_id: int) -> str:
        """Take one id; return the text to show for it, often empty."""
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
        """Take the ids that the answer begins with, none of which is shown or counted."""
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
        """Return the text that was held back, once no more ids will come."""
        if self._stops.found is not None:
            return ""
        rest = self._end_call() + self._end_text()
        return rest + self._show(self._stops.finish())

    def _switch_call(self, token_id: int) -> str:
        """Begin or end a tool call where ``token_id`` says so.

        A character that the call interrupts is shown before it, as unfinished as it is: the text
        of a call that cannot be read comes behind it then, as the model wrote it.
        """
        before, after = self._decoder.tool_call_ids or (None, None)
        if token_id == before and self._call_ids is None:
            self._call_ids = []
            return self._end_text()
        return self._end_call() if token_id == after else ""

    def _end_call(self) -> str:
        """Read the ids of a tool call; return their text if they are not one."""
        if self._call_ids is None:
            return ""
        text, self._call_ids = self._decoder.decode(self._call_ids), None
        calls = parse_tool_calls(text)
        if calls is None:
            return self._show(self._stops.add(text))
        self.tool_calls += calls
        return ""

    def _show_text(self, text: str) -> str:
        """Show text of the answer, less the thoughts and calls that it holds."""
        thoughts, answer = self._thoughts.add(text)
        self._reasoning.append(thoughts)
        return self._show(self._stops.add(self._call_text.add(answer)))

    def _end_text(self) -> str:
        """Show what is held back of the text, whole characters or not."""
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
