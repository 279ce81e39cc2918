"""What comes back: the finished answer, `Reply`, with its `Usage` and `Timings`.

The answer while it is being made is ``stream.py``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal

from typing_extensions import TypeVar

from ..prompt.tools import ToolCall

Parsed = TypeVar("Parsed", default=Any)
"""Type of `Reply.parsed`: the class given as ``json_schema``."""

FinishReason = Literal["stop", "length", "cancelled", "timeout"]
"""Why an answer ended: by itself, at its token limit, cancelled, or at its time limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """How many tokens an answer took.

    Attributes:
        prompt_tokens: Tokens of the whole prompt, history included.
        cached_tokens: How many of those the engine did not read again; with speculation this is a
            lower bound (docs/how-it-works.md, "Cached tokens").
        completion_tokens: Tokens that the model produced, a stop token included.
        accepted_tokens: How many of those were proposed by `PromptLookup` or a `DraftModel` and
            needed no pass over the weights of their own.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    accepted_tokens: int = 0

    @property
    def tokens_per_pass(self) -> float:
        """Tokens per pass over the weights; 1.0 without speculation, 0.0 without tokens."""
        passes = self.completion_tokens - self.accepted_tokens
        return self.completion_tokens / passes if passes else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """How long an answer took, in seconds from the moment it was asked for.

    Attributes:
        first_token_seconds: Until the first token; waiting for other requests is part of it.
        total_seconds: Until the last token.
        tokens_per_second: Rate of decoding: tokens after the first over the time after it;
            0.0 with fewer than two tokens.
    """

    first_token_seconds: float
    total_seconds: float
    tokens_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadTimings:
    """How long a model took to load, in seconds.

    Attributes:
        read_seconds: Manifest, tokenizer and choice of the device.
        compile_seconds: The engine: reading the IR and compiling it for the device.
        verify_seconds: Waiting for the checksums after that; they run at the same time.
        warm_up_seconds: The first tokens, for which weights are repacked; 0.0 without warm-up.
    """

    read_seconds: float = 0.0
    compile_seconds: float = 0.0
    verify_seconds: float = 0.0
    warm_up_seconds: float = 0.0

    @property
    def total_seconds(self) -> float:
        """The sum."""
        return self.read_seconds + self.compile_seconds + self.verify_seconds + self.warm_up_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply(Generic[Parsed]):
    """One finished answer; ``str(reply)`` is its text.

    Attributes:
        text: The answer, without control tokens and without the stop string.
        token_ids: The ids that the model produced, without the stop token.
        prompt_ids: The ids of the whole prompt. An incomplete answer continues from
            ``(*reply.prompt_ids, *reply.token_ids)`` (`Phi3Model.stream_ids`).
        finish_reason: ``"stop"`` (the model or a stop string ended it); or the answer is
            incomplete: ``"length"`` (``max_new_tokens`` was reached), ``"cancelled"`` or
            ``"timeout"`` (``timeout_seconds`` were over).
        stopped_by: The control token or the stop string that ended it; None otherwise.
        usage: Token counts.
        timings: Durations.
        max_new_tokens: The limit in force; ``on_overflow="clamp"`` may have lowered it.
        dropped_turns: How many of the oldest turns ``on_overflow="drop_oldest"`` left out.
        seed: The seed that the tokens were drawn with; None for greedy decoding.
        tool_calls: The calls that the model asked for; see `Tool`.
        reasoning: What a reasoning model thought before the answer; empty for other models. It is
            not part of ``text``, and a chat leaves it out of its history.
        logprobs: With ``logprobs=True``: for each of ``token_ids`` the natural logarithm of
            the probability that the model gave it, before temperature, penalties, filters
            and grammar. None otherwise.
        top_logprobs: With ``top_logprobs=n``: for each of ``token_ids`` the n likeliest ids in
            its place, each with its log-probability, the likeliest first. None otherwise.
        parsed: With ``json_schema``: the value of the answer, as a dictionary (or what else
            the schema allows) or as an instance of the class that was given. With ``regex``
            and ``choices``: the text. Type checkers know the class: ``json_schema=City`` gives a
            ``Reply[City]``. None where the answer was cut off, which
            ``finish_reason`` says, because then the value is incomplete.
        candidates: With ``candidates=n``: all n answers in the order of their seeds, this one
            first. Empty otherwise.
    """

    text: str
    token_ids: tuple[int, ...]
    prompt_ids: tuple[int, ...] = field(default=(), repr=False)
    finish_reason: FinishReason
    stopped_by: str | None
    usage: Usage
    timings: Timings
    max_new_tokens: int
    dropped_turns: int = 0
    seed: int | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    reasoning: str = ""
    logprobs: tuple[float, ...] | None = None
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] | None = None
    parsed: Parsed | None = None
    candidates: tuple[Reply[Parsed], ...] = ()

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenScores:
    """How likely a model finds the tokens of a given text; see `Phi3Model.score`.

    Attributes:
        token_ids: The tokens that were scored.
        logprobs: For each of them the natural logarithm of its probability after all tokens
            before it.
        is_greedy: For each of them, whether it is the likeliest token in its place.

    Example:
        >>> scores = TokenScores(token_ids=(5, 6), logprobs=(-0.5, -1.0), is_greedy=(True, False))
        >>> scores.total_logprob
        -1.5
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    is_greedy: tuple[bool, ...]

    @property
    def total_logprob(self) -> float:
        """The natural logarithm of the probability of all these tokens together."""
        return math.fsum(self.logprobs)


class Meter:
    """Counts what has been read of an answer; when it came, the engine's side has noted."""

    def __init__(self, asked_at: float, put_at: Sequence[float]) -> None:
        """Measure from ``asked_at``; ``put_at`` grows by one with each pass of the engine."""
        self.completion_tokens = 0
        self.passes = 0
        self._asked_at = asked_at
        self._put_at = put_at

    def usage(self, *, prompt_tokens: int, cached_tokens: int) -> Usage:
        """Return what the answer took so far."""
        return Usage(
            prompt_tokens=prompt_tokens,
            cached_tokens=cached_tokens,
            completion_tokens=self.completion_tokens,
            accepted_tokens=self.completion_tokens - self.passes,
        )

    def timings(self) -> Timings:
        """Return the durations of the answer so far."""
        times = self._put_at[: self.passes] or (time.perf_counter(),)
        after_first, seconds = self.completion_tokens - 1, times[-1] - times[0]
        return Timings(
            first_token_seconds=times[0] - self._asked_at,
            total_seconds=times[-1] - self._asked_at,
            tokens_per_second=after_first / seconds if after_first > 0 and seconds > 0 else 0.0,
        )
