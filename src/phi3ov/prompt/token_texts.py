"""Texts of single tokens: `TokenTexts`, for log-probabilities."""

from __future__ import annotations

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
