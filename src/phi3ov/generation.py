"""What a request asks for and what comes back: plain values.

`GenerationOptions` is what a caller may choose, and `Reply` is the finished answer with its
`Usage` and `Timings`. The answer while it is being made is ``stream.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Literal, TypedDict

from .errors import OptionError
from .tools import ToolCall

FinishReason = Literal["stop", "length", "cancelled"]
"""Why an answer ended: by itself, at its token limit, or because somebody cancelled it."""

OverflowPolicy = Literal["raise", "clamp", "drop_oldest"]
"""What to do when prompt and answer do not fit the context; see `GenerationOptions`."""


class Options(TypedDict, total=False):
    """The fields of `GenerationOptions`, each optional: the changes for one call."""

    max_new_tokens: int
    stop: tuple[str, ...]
    temperature: float
    top_p: float
    top_k: int | None
    repetition_penalty: float
    seed: int | None
    on_overflow: OverflowPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions:
    """How an answer is generated; the defaults are greedy decoding of up to 1024 tokens.

    Attributes:
        max_new_tokens: The most tokens an answer may have, the stop token included; at least 1.
        stop: Strings that end the answer. They may span tokens and are never shown, not even
            in part.
        temperature: 0 takes the likeliest token each time (greedy). Above 0 the next token is
            drawn at random from the distribution sharpened (below 1) or flattened (above 1).
        top_p: Draw only from the likeliest tokens that together reach this probability,
            in (0, 1]; needs a temperature above 0.
        top_k: Draw only from this many likeliest tokens; None for all of them; needs a
            temperature above 0.
        repetition_penalty: Divides the score of tokens that prompt or answer already hold;
            1.0 is off, must be above 0.
        seed: Makes the drawing repeatable, 0 to 2**32 - 1; needs a temperature above 0. None
            draws a new seed, which the reply records.
        on_overflow: When prompt and ``max_new_tokens`` exceed the context: ``"raise"`` a
            `ContextLengthError`, ``"clamp"`` ``max_new_tokens`` to what fits, or
            ``"drop_oldest"`` turns (whole turns, never the system prompt). The reply says
            what was done (`Reply.max_new_tokens`, `Reply.dropped_turns`).

    Raises:
        OptionError: A value is out of its range, or contradicts another.

    Example:
        >>> GenerationOptions(temperature=0.7, seed=1).max_new_tokens
        1024
        >>> GenerationOptions(top_p=0.9)
        Traceback (most recent call last):
            ...
        phi3ov.errors.OptionError: top_p=0.9 has no effect at temperature=0.0 (greedy decoding). \
Set a temperature above 0, or leave top_p out.
    """

    max_new_tokens: int = 1024
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None
    repetition_penalty: float = 1.0
    seed: int | None = None
    on_overflow: OverflowPolicy = "raise"

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            raise OptionError(
                f"stop={self.stop!r} is a string; give a tuple: stop=({self.stop!r},)"
            )
        if not isinstance(self.stop, tuple | list):
            raise OptionError(f"stop={self.stop!r} must be a tuple of strings.")
        object.__setattr__(self, "stop", tuple(self.stop))
        _require_integer("max_new_tokens", self.max_new_tokens, least=1)
        if any(not isinstance(text, str) or not text for text in self.stop):
            raise OptionError(f"stop={self.stop!r} must hold non-empty strings only.")
        _require_number("temperature", self.temperature, least=0.0, most=100.0)
        _require_number("top_p", self.top_p, above=0.0, most=1.0)
        _require_number("repetition_penalty", self.repetition_penalty, above=0.0, most=100.0)
        if self.top_k is not None:
            _require_integer("top_k", self.top_k, least=1, most=2**31 - 1)
        if self.seed is not None:
            _require_integer("seed", self.seed, least=0, most=2**32 - 1)
        if self.on_overflow not in ("raise", "clamp", "drop_oldest"):
            raise OptionError(
                f"on_overflow={self.on_overflow!r} is not 'raise', 'clamp' or 'drop_oldest'."
            )
        if self.temperature == 0:
            self._refuse_sampling_options()

    def _refuse_sampling_options(self) -> None:
        for name, neutral in (("top_p", 1.0), ("top_k", None), ("seed", None)):
            value = getattr(self, name)
            if value != neutral:
                raise OptionError(
                    f"{name}={value} has no effect at temperature=0.0 (greedy decoding). "
                    f"Set a temperature above 0, or leave {name} out."
                )

    def changed(self, changes: Options) -> GenerationOptions:
        """Return these options with the ``changes`` of one call.

        Raises:
            OptionError: A name is not an option, or a value is not allowed.
        """
        known = {field.name for field in fields(self)}
        for name in changes:
            if name not in known:
                raise OptionError(
                    f"{name!r} is not an option. Options: {', '.join(sorted(known))}."
                )
        return replace(self, **changes)


def _require_integer(name: str, value: object, *, least: int, most: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise OptionError(f"{name}={value!r} must be an integer of at least {least}.")
    if most is not None and value > most:
        raise OptionError(f"{name}={value!r} must be at most {most}.")


def _require_number(
    name: str, value: object, *, least: float = -math.inf, above: float = -math.inf, most: float
) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (least <= value <= most and value > above):  # type: ignore[operator]
        low = f"above {above}" if above > -math.inf else f"at least {least}"
        raise OptionError(f"{name}={value!r} must be a number {low} and at most {most}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """How many tokens an answer took.

    Attributes:
        prompt_tokens: Tokens of the whole prompt, history included.
        cached_tokens: How many of those the engine did not have to read again.
        completion_tokens: Tokens that the model produced, a stop token included.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """How long an answer took, in seconds from the moment it was asked for.

    Attributes:
        first_token_seconds: Until the first token; waiting for other requests is part of it.
        total_seconds: Until the last token.
        tokens_per_second: Rate of decoding: tokens after the first over the time after it;
            0.0 when there was at most one token.
    """

    first_token_seconds: float
    total_seconds: float
    tokens_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One finished answer; ``str(reply)`` is its text.

    Attributes:
        text: The answer, without control tokens and without the stop string.
        token_ids: The ids that the model produced, without the stop token.
        finish_reason: ``"stop"`` (the model or a stop string ended it), ``"length"``
            (``max_new_tokens`` was reached: the answer is incomplete) or ``"cancelled"``.
        stopped_by: The control token or the stop string that ended it; None otherwise.
        usage: Token counts.
        timings: Durations.
        max_new_tokens: The limit in force, which is lower than the one asked for when
            ``on_overflow="clamp"`` had to act.
        dropped_turns: How many of the oldest turns ``on_overflow="drop_oldest"`` left out.
        seed: The seed that the tokens were drawn with; None for greedy decoding.
        tool_calls: The calls that the model asked for; see `Tool`.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stopped_by: str | None
    usage: Usage
    timings: Timings
    max_new_tokens: int
    dropped_turns: int = 0
    seed: int | None = None
    tool_calls: tuple[ToolCall, ...] = ()

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyPlan:
    """What is known of an answer before its first token; `ReplyStream` completes it."""

    prompt_tokens: int
    max_new_tokens: int
    dropped_turns: int = 0
    seed: int | None = None
