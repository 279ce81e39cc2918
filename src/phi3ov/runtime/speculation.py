"""Speculative decoding: sources of draft tokens.

Each forward pass reads all weights, for one token or for six. So a cheap method proposes the next
tokens, the model verifies them in one pass, and keeps those that it would have generated itself:
greedy text stays the same. ``docs/speculative.md`` measures when this is faster.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import OptionError
from ..validation import is_integer


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptLookup:
    """Prompt lookup decoding: propose the continuation of an earlier match of the last tokens.

    It searches prompt and answer and needs no second model. It is faster if the answer repeats the
    prompt: summaries, edits, code, quotations.

    Attributes:
        candidate_tokens: Number of draft tokens per forward pass, at least 1.
        ngram_tokens: Longest n-gram of last tokens to search for, at least 1; shorter ones are
            tried if it is not found.

    Raises:
        OptionError: A number is out of range.

    Example:
        >>> PromptLookup(candidate_tokens=8).ngram_tokens
        3
    """

    candidate_tokens: int = 5
    ngram_tokens: int = 3

    def __post_init__(self) -> None:
        _require_count("candidate_tokens", self.candidate_tokens)
        _require_count("ngram_tokens", self.ngram_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftModel:
    """Speculative decoding with a draft model: a smaller model with the same tokenizer.

    Attributes:
        path: The draft model's exported folder.
        candidate_tokens: Number of draft tokens per forward pass, at least 1.

    Raises:
        OptionError: The number is out of range.

    Example:
        >>> DraftModel(path="models/small").candidate_tokens
        4
    """

    path: str | Path
    candidate_tokens: int = 4

    def __post_init__(self) -> None:
        _require_count("candidate_tokens", self.candidate_tokens)


Speculation = PromptLookup | DraftModel
"""Source of draft tokens for speculative decoding."""


def _require_count(name: str, value: object) -> None:
    if not is_integer(value) or not 1 <= value <= 64:
        raise OptionError(f"{name}={value!r} must be an integer of 1 to 64.")
