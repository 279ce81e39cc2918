"""The finished answer, `Reply`, with its `Usage` and `Timings`.

``stream.py`` holds the answer while it is being generated.
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
    """Token counts of an answer.

    Attributes:
        prompt_tokens: Tokens of the whole prompt, history included.
        cached_tokens: Prompt tokens that the engine found in its prefix cache; with speculation
            this is a lower bound (docs/how-it-works.md, "Cached tokens").
        completion_tokens: Tokens that the model generated, including the stop token.
        accepted_tokens: Generated tokens that `PromptLookup` or a `DraftModel` proposed and the
            model accepted, which saves a forward pass for each.
        checked_tokens: Draft tokens that forward passes checked, accepted or not. Adaptive
            speculation checks one per pass while more would not pay.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    accepted_tokens: int = 0
    checked_tokens: int = 0

    @property
    def tokens_per_pass(self) -> float:
        """Tokens per forward pass; 1.0 without speculation, 0.0 without tokens."""
        passes = self.completion_tokens - self.accepted_tokens
        return self.completion_tokens / passes if passes else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Durations of an answer in seconds, measured from the request.

    Attributes:
        first_token_seconds: Time to first token, including time in the queue.
        total_seconds: Time to the last token.
        tokens_per_second: Decode rate: tokens after the first over the time after the first;
            0.0 with fewer than two tokens.
        queue_seconds: Time in the queue, until the request had a place among those that run.
    """

    first_token_seconds: float
    total_seconds: float
    tokens_per_second: float
    queue_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadTimings:
    """Durations of loading a model, in seconds.

    Attributes:
        read_seconds: Reading the manifest and choosing the device.
        compile_seconds: Reading the IR and compiling it for the device. Checksums and tokenizer
            are read in parallel.
        verify_seconds: Waiting for checksums and tokenizer after compilation.
        warm_up_seconds: Generating the first tokens, which repacks weights; 0.0 without warm-up.
    """

    read_seconds: float = 0.0
    compile_seconds: float = 0.0
    verify_seconds: float = 0.0
    warm_up_seconds: float = 0.0

    @property
    def total_seconds(self) -> float:
        """The sum of all durations."""
        return self.read_seconds + self.compile_seconds + self.verify_seconds + self.warm_up_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply(Generic[Parsed]):
    """One finished answer; ``str(reply)`` is its text.

    Attributes:
        text: The answer, without control tokens and without the stop string.
        token_ids: The generated ids, without the stop token.
        prompt_ids: The ids of the whole prompt. An incomplete answer continues from
            ``(*reply.prompt_ids, *reply.token_ids)`` (`Phi3Model.stream_ids`).
        finish_reason: ``"stop"`` (a stop token or a stop string ended it); or the answer is
            incomplete: ``"length"`` (``max_new_tokens`` was reached), ``"cancelled"`` or
            ``"timeout"`` (``timeout_seconds`` were over).
        stopped_by: The control token or the stop string that ended the answer; None otherwise.
        usage: Token counts.
        timings: Durations.
        max_new_tokens: The limit in force; ``on_overflow="clamp"`` may have lowered it.
        dropped_turns: Number of oldest turns that ``on_overflow="drop_oldest"`` dropped.
        seed: The seed of the sampling; None for greedy decoding.
        tool_calls: The tool calls of the answer; see `Tool`.
        reasoning: Reasoning text that precedes the answer of a reasoning model; empty for other
            models. It is not part of ``text``, and a chat does not keep it in its history.
        logprobs: With ``logprobs=True``: natural logarithm of the model's probability of each of
            ``token_ids``, before temperature, penalties, filters and grammar. None otherwise.
        top_logprobs: With ``top_logprobs=n``: for each of ``token_ids`` the n most likely ids at
            its position with their log-probabilities, most likely first. None otherwise.
        parsed: With ``json_schema``: the value of the answer, as a dictionary (or another JSON
            type that the schema allows) or as an instance of the given class. With ``regex`` and
            ``choices``: the text. Type checkers infer the class: ``json_schema=City`` gives a
            ``Reply[City]``. None for an answer that was cut off (see ``finish_reason``), because
            its value is incomplete.
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
    """Log-probabilities of the tokens of a given text; see `Phi3Model.score`.

    Attributes:
        token_ids: The scored tokens.
        logprobs: Natural logarithm of each token's probability given all tokens before it.
        is_greedy: Whether each token is the most likely one at its position.
        likeliest: The most likely token at each position, with its log-probability.

    Example:
        >>> scores = TokenScores(token_ids=(5, 6), logprobs=(-0.5, -1.0), is_greedy=(True, False))
        >>> scores.total_logprob
        -1.5
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    is_greedy: tuple[bool, ...]
    likeliest: tuple[tuple[int, float], ...] = ()

    @property
    def total_logprob(self) -> float:
        """The sum of ``logprobs``: natural logarithm of the probability of the whole text."""
        return math.fsum(self.logprobs)


class Meter:
    """Counts the tokens read of an answer; the engine records when each chunk arrived."""

    def __init__(
        self, asked_at: float, put_at: Sequence[float], checked: Sequence[int] = ()
    ) -> None:
        """Measure from ``asked_at``; the engine appends to both lists per forward pass.

        Args:
            asked_at: Time of the request.
            put_at: Time at which each forward pass ended.
            checked: Number of draft tokens that each forward pass checked.
        """
        self.completion_tokens = 0
        self.passes = 0
        self._asked_at = asked_at
        self._put_at = put_at
        self._checked = checked

    def usage(self, *, prompt_tokens: int, cached_tokens: int) -> Usage:
        """Return the token counts of the answer so far."""
        return Usage(
            prompt_tokens=prompt_tokens,
            cached_tokens=cached_tokens,
            completion_tokens=self.completion_tokens,
            accepted_tokens=self.completion_tokens - self.passes,
            checked_tokens=sum(self._checked[: self.passes]),
        )

    def timings(self, began_at: float | None) -> Timings:
        """Return the durations of the answer so far.

        Args:
            began_at: Time at which the request left the queue; None if it has not.
        """
        times = self._put_at[: self.passes] or (time.perf_counter(),)
        left_queue = times[0] if began_at is None else min(began_at, times[0])
        after_first, seconds = self.completion_tokens - 1, times[-1] - times[0]
        return Timings(
            first_token_seconds=times[0] - self._asked_at,
            total_seconds=times[-1] - self._asked_at,
            tokens_per_second=after_first / seconds if after_first > 0 and seconds > 0 else 0.0,
            queue_seconds=left_queue - self._asked_at,
        )
