"""More than one token per pass over the weights: where the candidates come from.

Each pass of a decoder reads all weights, for one token or for six. So a cheap method proposes
the next tokens, the model reads them in one pass, and those that it would have produced itself
are kept: greedy text stays the same. When that pays is measured in ``docs/speculative.md``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import OptionError
from ..validation import is_integer


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptLookup:
    """Propose what followed the last tokens where they occurred before, in prompt or answer.

    It costs no second model, and pays where the answer repeats the prompt: summaries, edits,
    code, quotations.

    Attributes:
        candidate_tokens: Tokens that are proposed for each pass, at least 1.
        ngram_tokens: How many of the last tokens to look for; fewer if not found, at least 1.

    Raises:
        OptionError: A number is out of its range.

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
    """Let a smaller model with the same tokenizer propose the next tokens.

    Attributes:
        path: An exported folder.
        candidate_tokens: Tokens that it proposes for each pass, at least 1.

    Raises:
        OptionError: The number is out of its range.

    Example:
        >>> DraftModel(path="models/small").candidate_tokens
        4
    """

    path: str | Path
    candidate_tokens: int = 4

    def __post_init__(self) -> None:
        _require_count("candidate_tokens", self.candidate_tokens)


Speculation = PromptLookup | DraftModel
"""Where candidates for several tokens per pass come from."""


def _require_count(name: str, value: object) -> None:
    if not is_integer(value) or not 1 <= value <= 64:
        raise OptionError(f"{name}={value!r} must be an integer of 1 to 64.")
