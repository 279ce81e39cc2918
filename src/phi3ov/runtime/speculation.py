"""Speculative decoding: sources of draft tokens.

Each forward pass reads all weights, for one token or for six. So a cheap method proposes the next
tokens, the model verifies them in one pass, and keeps those that it would have generated itself:
greedy text stays the same. ``docs/speculative.md`` measures when this is faster; the engines
compare it with `candidate_cost`.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import OptionError
from ..validation import is_integer


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptLookup:
    """Prompt lookup decoding: propose the continuation of an earlier match of the last tokens.

    It searches prompt and answer and needs no second model. It is faster if the answer repeats the
    prompt: summaries, edits, code, quotations. With many requests at once (``engine="worker"``) it
    is slower unless nearly all of them do: each pass checks at least one draft token per request.

    Attributes:
        candidate_tokens: Number of draft tokens per forward pass, at least 1.
        ngram_tokens: Longest n-gram of last tokens to search for, at least 1; shorter ones are
            tried if it is not found.
        adaptive: Whether passes check only one draft token while more would be slower. False
            checks ``candidate_tokens`` in each pass.

    Raises:
        OptionError: A number is out of range, or ``adaptive`` is not a bool.

    Example:
        >>> PromptLookup(candidate_tokens=8).ngram_tokens
        3
    """

    candidate_tokens: int = 5
    ngram_tokens: int = 3
    adaptive: bool = True

    def __post_init__(self) -> None:
        _require_count("candidate_tokens", self.candidate_tokens)
        _require_count("ngram_tokens", self.ngram_tokens)
        _require_bool("adaptive", self.adaptive)


@dataclass(frozen=True, slots=True)
class DraftModel:
    """Speculative decoding with a draft model: a smaller model with the same tokenizer.

    It does not need a chat template, and its tokenizer files may differ from the model's. It must
    map each token id of the model to the same token.

    Attributes:
        path: The draft model's exported folder, or the hub id ``owner/name`` of one.
        candidate_tokens: Number of draft tokens per forward pass, at least 1.
        revision: Branch, tag or commit of a hub id; None for the default branch.
        adaptive: Whether passes check only one draft token while more would be slower. False
            checks ``candidate_tokens`` in each pass.

    Raises:
        OptionError: The number is out of range, or ``adaptive`` is not a bool.

    Example:
        >>> DraftModel("OpenVINO/Phi-3-mini-FastDraft-50M-int8-ov").candidate_tokens
        4
    """

    path: str | Path
    candidate_tokens: int = field(default=4, kw_only=True)
    revision: str | None = field(default=None, kw_only=True)
    adaptive: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        _require_count("candidate_tokens", self.candidate_tokens)
        _require_bool("adaptive", self.adaptive)


Speculation = PromptLookup | DraftModel
"""Source of draft tokens for speculative decoding."""


_SMALL_BYTES = 500_000_000
"""Size of weights up to which the fixed cost of a pass exceeds the cost of a draft token."""


def candidate_cost(features: AbstractSet[str], weight_bytes: int) -> float:
    """Return the additional cost of a pass per draft token, relative to a pass over one token.

    Measured on two cores (2026-11, docs/speculative.md): with 8-bit products (VNNI) 0.05 on the
    135M reference and 0.24 on a full-size Phi-3-mini; with AVX2 alone 0.26 and 0.4.

    Args:
        features: The processor's features; see `phi3ov.runtime.processor`.
        weight_bytes: Size of the model's weights.

    Example:
        >>> candidate_cost({"avx2"}, 2_400_000_000)
        0.4
    """
    is_small = weight_bytes <= _SMALL_BYTES
    if features & {"avx512_vnni", "avx_vnni"}:
        return 0.05 if is_small else 0.24
    return 0.26 if is_small else 0.4


def _require_bool(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise OptionError(f"{name}={value!r} must be True or False.", option=name)


def _require_count(name: str, value: object) -> None:
    if not is_integer(value) or not 1 <= value <= 64:
        raise OptionError(f"{name}={value!r} must be an integer of 1 to 64.", option=name)
