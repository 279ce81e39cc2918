"""Texts of single tokens: `TokenTexts`, for log-probabilities."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from .chat_tokenizer import ChatTokenizer


class TokenTexts:
    """Decodes single tokens, for log-probabilities."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        """Decode with ``tokenizer``."""
        self._tokenizer = tokenizer
        # Decoded alone, a token may lose its leading space; after another token it does not.
        self._anchor = tokenizer.encode_text("a")[-1:]
        self._anchor_text = tokenizer.decode(self._anchor)

    def __call__(self, token_id: int) -> str:
        """Return the token's text; an incomplete character becomes U+FFFD."""
        if token_id in self._tokenizer.control_tokens:
            return self._tokenizer.control_tokens[token_id]
        return self._tokenizer.decode([*self._anchor, token_id])[len(self._anchor_text) :]

    def count_thoughts(self, token_ids: Sequence[int]) -> int:
        """Return how many tokens of an answer are thoughts, their closing tag included.

        0 for a model without thoughts, and where the chat format itself closes them before the
        answer; all tokens if the tag has not come.
        """
        if self._tokenizer.thought_tags is None:
            return 0
        closing = self._tokenizer.thought_tags[1]
        if closing in self._tokenizer.format.extension.answer_start:
            return 0

        def is_closed(count: int) -> bool:
            text = self._tokenizer.decode(token_ids[:count], skip_special_tokens=False)
            return closing in text

        return bisect_left(range(len(token_ids)), 1, key=is_closed)
