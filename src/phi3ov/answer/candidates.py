"""Several candidates of one request, read as one stream: `CandidateStream`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import GenerationError
from .stream import Piece, ReplyStream

if TYPE_CHECKING:
    from .token_stream import TokenStream


class CandidateStream(ReplyStream[Any]):
    """Streams the first of several candidates; its reply is complete when all have ended.

    `candidates` holds a separate stream for each candidate. A piece of the first candidate that
    is read there is not repeated here.
    """

    def __init__(self, candidates: Sequence[ReplyStream[Any]]) -> None:
        """Read ``candidates``, at least one."""
        self._candidates = tuple(candidates)
        super().__init__()

    @property
    def token_streams(self) -> Sequence[TokenStream]:
        """The engine streams of all candidates."""
        return [tokens for stream in self._candidates for tokens in stream.token_streams]

    @property
    def stops_early(self) -> bool:
        """Whether a stop string may end a candidate; the engine itself only knows stop tokens."""
        return self._candidates[0].stops_early

    @property
    def candidates(self) -> Sequence[ReplyStream[Any]]:
        """The stream of each candidate, in the order of their seeds."""
        return self._candidates

    @property
    def text(self) -> str:
        """The text of the first candidate so far."""
        return self._candidates[0].text

    def cancel(self, *, keep: bool = False) -> None:
        """Stop all candidates; see `ReplyStream.cancel`."""
        if not self.done:
            super().cancel(keep=keep)
            for stream in self._candidates:
                stream.cancel(keep=keep)

    def _advance(self, *, wait: bool) -> Piece | None:
        first, *others = self._candidates
        try:
            if not first.done:
                return first.read(wait=wait)
            for stream in others:
                while not stream.done:
                    if stream.read(wait=wait) is None and not wait and not stream.done:
                        return None
        except GenerationError as error:
            error.partial_text = self.text
            self._fail()
            for stream in self._candidates:
                stream.cancel()
            raise
        replies = tuple(stream.reply for stream in self._candidates)
        self._finish(replace(replies[0], candidates=replies), keep=first.is_kept)
        return Piece(text="")
