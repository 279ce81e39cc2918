"""Generation options of a request: `GenerationOptions`, validated plain values.

`Sampling` is the part that an engine needs to choose tokens: one frozen value that is passed
unchanged from here to the engine. A new sampling option is a field of `Sampling`, a key of
`Options`, and an entry in ``engine/sampling.py`` for the engines that support it. ``reply.py``
holds the answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from typing import Any, Literal, TypedDict, get_args

from ..errors import OptionError
from ..prompt.tool_choice import ToolChoice, read_tool_choice
from ..structured.shape import AnswerShape, Validation, answer_shape, copy_schema
from ..validation import is_number, require_integer

OverflowPolicy = Literal["raise", "clamp", "drop_oldest"]
"""Policy when prompt and answer do not fit the context; see `GenerationOptions`."""

TimeoutPolicy = Literal["drop", "keep"]
"""Whether a turn that ran out of time enters the history; see `GenerationOptions`."""

QueuePolicy = Literal["raise", "wait"]
"""Policy when the queue is full; see `GenerationOptions`."""


MOST_CANDIDATES = 64
"""Maximum number of candidates per request."""
LEAST_ABOVE_ZERO = 1e-30
"""Smallest non-zero magnitude accepted; anything smaller underflows to 0 in float32."""
MOST_SEED = 2**32 - 1
MOST_TOP_LOGPROBS = 20
"""Maximum of `GenerationOptions.top_logprobs`."""


JsonSchema = dict[str, Any] | type[Any]
"""A JSON schema, or a class that has one: dataclass, TypedDict, NamedTuple, pydantic model."""


class OptionsBesideSchema(TypedDict, total=False):
    """All fields of `GenerationOptions` except ``json_schema``, which types `Reply.parsed`."""

    max_new_tokens: int
    max_reasoning_tokens: int | None
    stop: Sequence[str]
    temperature: float
    top_p: float
    top_k: int | None
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float] | None
    seed: int | None
    candidates: int
    logprobs: bool
    top_logprobs: int
    skip_special_tokens: bool
    tool_choice: ToolChoice | None
    regex: str | None
    choices: Sequence[str] | None
    validate: Validation
    on_overflow: OverflowPolicy
    timeout_seconds: float | None
    on_timeout: TimeoutPolicy
    on_full_queue: QueuePolicy


class Options(OptionsBesideSchema, total=False):
    """The fields of `GenerationOptions`, each optional: the changes for one call."""

    json_schema: JsonSchema | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Sampling parameters; the defaults are greedy decoding.

    `GenerationOptions` inherits and documents these fields.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = field(default=None, hash=False)
    seed: int | None = None

    def __post_init__(self) -> None:
        _require_number("temperature", self.temperature, least=0.0, most=100.0)
        _require_number("top_p", self.top_p, above=0.0, most=1.0)
        _require_number("min_p", self.min_p, least=0.0, below=1.0)
        _require_number("repetition_penalty", self.repetition_penalty, above=0.0, most=100.0)
        _require_number("presence_penalty", self.presence_penalty, least=-2.0, most=2.0)
        _require_number("frequency_penalty", self.frequency_penalty, least=-2.0, most=2.0)
        if self.top_k is not None:
            require_integer("top_k", self.top_k, least=1, most=2**31 - 1)
        if self.seed is not None:
            require_integer("seed", self.seed, least=0, most=MOST_SEED)
        object.__setattr__(self, "logit_bias", _read_logit_bias(self.logit_bias))

    @property
    def greedy(self) -> bool:
        """Whether decoding is greedy: always the most likely token."""
        return self.temperature == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions(Sampling):
    """How an answer is generated; the defaults are greedy decoding of up to 1024 tokens.

    Attributes:
        max_new_tokens: Maximum number of generated tokens, including the stop token; at least 1.
        max_reasoning_tokens: Maximum number of tokens of a reasoning model's thoughts, including
            the opening tag; less than ``max_new_tokens``. At the limit phi3ov writes the closing
            tag and the model continues with its answer; 0 means no thoughts, None no limit.
        stop: Strings that end the answer. They may span tokens and are never shown, not even
            in part.
        temperature: 0 chooses the most likely token each time (greedy). Above 0 the next token
            is sampled from the distribution, sharpened (below 1) or flattened (above 1).
            At most 100, and above 0 at least 1e-30.
        top_p: Sample only from the smallest set of most likely tokens whose probabilities add up
            to this, in (0, 1]; needs a temperature above 0.
        top_k: Sample only from this many most likely tokens; None for all of them; needs a
            temperature above 0.
        min_p: Sample only from tokens with at least this fraction of the highest probability,
            in [0, 1); 0.0 is off; needs a temperature above 0.
        repetition_penalty: Divides the score of tokens that prompt or answer already hold
            (multiplies it where it is negative); 1.0 is off, must be above 0.
        presence_penalty: Moves the score of tokens that the answer already holds towards zero
            by this much, -2 to 2; 0.0 is off. This is openvino-genai's rule: a negative score
            rises, where other libraries would lower it further.
        frequency_penalty: The same, multiplied by the token's count in the answer.
        logit_bias: Token ids, and the bias added to their scores before penalties and
            temperature: -100 to 100. -100 in effect bans a token, 100 in effect forces it. Ids may
            be decimal strings, as in JSON. Needs ``engine="paged"``.
        seed: Seed of the sampling, for repeatable answers, 0 to 2**32 - 1; needs a temperature
            above 0. None draws a new seed, which the reply records.
        candidates: Number of answers to sample, with the seeds ``seed``, ``seed + 1`` and so on.
            More than one needs a temperature above 0. The first is the reply and is streamed; all
            are in `Reply.candidates`.
        logprobs: Report the log-probability of each token (`Reply.logprobs`); needs
            ``engine="worker"`` or ``"paged"``.
        top_logprobs: Number of most likely tokens to report beside each token, up to 20
            (`Reply.top_logprobs`); needs ``logprobs=True`` and ``engine="paged"``.
        skip_special_tokens: Whether to leave special tokens of the vocabulary out of the text.
            Tokens that end an answer or enclose a tool call are always left out.
        tool_choice: Whether the answer calls a tool, if tools are given: ``"auto"`` (the
            default) lets the model decide, ``"required"`` makes it call at least one, ``{"name":
            "get_weather"}`` makes it call that tool, and ``"none"`` ends the answer where a call
            would begin. Calls are guided: a grammar enforces their syntax and the tool's schema,
            with ``engine="pipeline"`` or ``"worker"``; the other engines accept ``"auto"``,
            unguided, and ``"none"``.
        json_schema: The answer is JSON that fits this schema: a dictionary, or a dataclass,
            TypedDict, NamedTuple or pydantic model. `Reply.parsed` is its value, or an instance
            of the class. Needs ``engine="pipeline"`` or ``"worker"``, as do the next two. A
            reasoning model's thoughts come before it and are free.
        regex: The answer matches this regular expression from its beginning to its end.
        choices: The answer is one of these strings.
        validate: ``"grammar"`` refuses a ``json_schema`` with a keyword that cannot be enforced
            during generation. ``"after"`` enforces as much as possible and validates the finished
            answer with the class, or with jsonschema (``pip install jsonschema``) for a
            dictionary; an answer that does not fit raises a `GenerationError`.
        on_overflow: When prompt and ``max_new_tokens`` exceed the context: ``"raise"`` a
            `ContextLengthError`, ``"clamp"`` ``max_new_tokens`` to what fits, or
            ``"drop_oldest"`` turns (whole turns, never the system prompt). The reply says
            what was done (`Reply.max_new_tokens`, `Reply.dropped_turns`).
        timeout_seconds: Time limit of the answer, including time in the queue; None for no
            limit. When the time is over, the reply holds the partial answer, possibly empty, with
            the finish reason ``"timeout"``.
        on_timeout: ``"drop"`` a turn that ran out of time, so that the history stays as it was,
            or ``"keep"`` it with the partial answer; needs ``timeout_seconds``.
        on_full_queue: When the queue is full (see `RequestLimits`): ``"raise"`` a
            `QueueFullError`, or ``"wait"`` for a place.

    Raises:
        OptionError: A value is out of range, or contradicts another.

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
    max_reasoning_tokens: int | None = None
    stop: Sequence[str] = ()
    candidates: int = 1
    logprobs: bool = False
    top_logprobs: int = 0
    skip_special_tokens: bool = True
    tool_choice: ToolChoice | None = field(default=None, hash=False)
    json_schema: JsonSchema | None = field(default=None, hash=False)
    regex: str | None = None
    choices: Sequence[str] | None = None
    validate: Validation = "grammar"
    on_overflow: OverflowPolicy = "raise"
    timeout_seconds: float | None = None
    on_timeout: TimeoutPolicy = "drop"
    on_full_queue: QueuePolicy = "raise"

    def __post_init__(self) -> None:
        Sampling.__post_init__(self)  # super() does not work in a class with slots=True
        if isinstance(self.stop, str):
            raise OptionError(
                f"stop={self.stop!r} is a string; give a tuple: stop=({self.stop!r},)",
                option="stop",
            )
        if not isinstance(self.stop, Sequence):
            raise OptionError(f"stop={self.stop!r} must be a tuple of strings.", option="stop")
        object.__setattr__(self, "stop", tuple(self.stop))
        require_integer("max_new_tokens", self.max_new_tokens, least=1)
        self._check_reasoning_tokens()
        if any(not isinstance(text, str) or not text for text in self.stop):
            raise OptionError(
                f"stop={self.stop!r} must hold non-empty strings only.", option="stop"
            )
        require_integer("candidates", self.candidates, least=1, most=MOST_CANDIDATES)
        require_integer("top_logprobs", self.top_logprobs, least=0, most=MOST_TOP_LOGPROBS)
        if self.top_logprobs and not self.logprobs:
            raise OptionError(
                f"top_logprobs={self.top_logprobs} has no effect without logprobs. Set "
                "logprobs=True, or leave top_logprobs out.",
                option="top_logprobs",
            )
        for name in ("logprobs", "skip_special_tokens"):
            if not isinstance(getattr(self, name), bool):
                raise OptionError(
                    f"{name}={getattr(self, name)!r} must be True or False.", option=name
                )
        for name, choices in _POLICIES.items():
            if getattr(self, name) not in choices:
                listed = " or ".join((", ".join(map(repr, choices[:-1])), repr(choices[-1])))
                raise OptionError(f"{name}={getattr(self, name)!r} is not {listed}.", option=name)
        if self.timeout_seconds is not None:
            _require_number("timeout_seconds", self.timeout_seconds, above=0.0, most=1e6)
        elif self.on_timeout != "drop":
            raise OptionError(
                f"on_timeout={self.on_timeout!r} has no effect without timeout_seconds. Set "
                "timeout_seconds, or leave on_timeout out.",
                option="on_timeout",
            )
        if self.greedy:
            self._refuse_sampling_options()
        if self.tool_choice is not None:
            object.__setattr__(self, "tool_choice", read_tool_choice(self.tool_choice))
        self._check_shape()

    def _check_reasoning_tokens(self) -> None:
        most = self.max_reasoning_tokens
        if most is None:
            return
        require_integer("max_reasoning_tokens", most, least=0)
        if most >= self.max_new_tokens:
            raise OptionError(
                f"max_reasoning_tokens={most} leaves nothing of "
                f"max_new_tokens={self.max_new_tokens} for the answer. Set it lower, or "
                "max_new_tokens higher.",
                option="max_reasoning_tokens",
            )

    def _check_shape(self) -> None:
        object.__setattr__(self, "json_schema", copy_schema(self.json_schema))
        if isinstance(self.choices, Sequence) and not isinstance(self.choices, str):
            object.__setattr__(self, "choices", tuple(self.choices))
        if self.shape() is not None and self.stop:
            raise OptionError(
                f"stop={self.stop!r} contradicts json_schema, regex and choices: it would cut the "
                "answer off within. Leave stop out.",
                option="stop",
            )

    @property
    def sampling(self) -> Sampling:
        """The sampling parameters of these options, for the engine."""
        return Sampling(**{each.name: getattr(self, each.name) for each in fields(Sampling)})

    def shape(self) -> AnswerShape | None:
        """Return the answer shape of ``json_schema``, ``regex`` or ``choices``; None without."""
        return answer_shape(
            json_schema=self.json_schema,
            regex=self.regex,
            choices=self.choices,
            validate=self.validate,
        )

    def _refuse_sampling_options(self) -> None:
        for name, neutral in _SAMPLING_ONLY.items():
            value = getattr(self, name)
            if value != neutral:
                raise OptionError(
                    f"{name}={value} has no effect at temperature=0.0 (greedy decoding). "
                    f"Set a temperature above 0, or leave {name} out.",
                    option=name,
                )

    def changed(self, changes: Options) -> GenerationOptions:
        """Return a copy of these options with ``changes`` applied.

        Raises:
            OptionError: A name is not an option, or a value is not allowed.
        """
        for name in changes:
            if name not in OPTION_NAMES:
                raise OptionError(
                    f"{name!r} is not an option.{_suggest(name)} Options: "
                    f"{', '.join(sorted(OPTION_NAMES))}.",
                    option=name,
                )
        return replace(self, **changes)


OPTION_NAMES = frozenset(each.name for each in fields(GenerationOptions))

_FOREIGN_NAMES = {
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "max_length": "max_new_tokens",
    "n_predict": "max_new_tokens",
    "num_predict": "max_new_tokens",
    "n": "candidates",
    "num_return_sequences": "candidates",
    "best_of": "candidates",
    "response_format": "json_schema",
    "guided_json": "json_schema",
    "guided_regex": "regex",
    "guided_choice": "choices",
    "stop_strings": "stop",
    "stop_sequences": "stop",
    "do_sample": "temperature (above 0 draws tokens at random, 0 is greedy)",
    "temp": "temperature",
    "repeat_penalty": "repetition_penalty",
    "reasoning_budget": "max_reasoning_tokens",
    "thinking_budget": "max_reasoning_tokens",
    "thinking_token_budget": "max_reasoning_tokens",
    "random_seed": "seed",
    "rng_seed": "seed",
    "timeout": "timeout_seconds",
    "stream": "the method stream()",
    "system": "a system message",
    "adapter": "load_model(adapter=...), which is for all answers of a loaded model",
    "lora_request": "load_model(adapter=...), which is for all answers of a loaded model",
}
"""Names of the same options in openai, transformers, vLLM, llama.cpp and Ollama."""


def _suggest(name: str) -> str:
    """Return " Did you mean …?" for a misspelt name or another library's name, else ""."""
    foreign = _FOREIGN_NAMES.get(name)
    near = [foreign] if foreign else get_close_matches(name, OPTION_NAMES, n=1, cutoff=0.6)
    return f" Did you mean {near[0]}?" if near else ""


_POLICIES: dict[str, tuple[str, ...]] = {
    "on_overflow": get_args(OverflowPolicy),
    "on_timeout": get_args(TimeoutPolicy),
    "on_full_queue": get_args(QueuePolicy),
}


_SAMPLING_ONLY = {"top_p": 1.0, "top_k": None, "min_p": 0.0, "seed": None, "candidates": 1}
"""Options that need a temperature above 0, with the value that switches each off."""


def _read_logit_bias(bias: object) -> dict[int, float] | None:
    """Return a validated copy with integer ids; None for no bias."""
    if bias is None:
        return None
    if not isinstance(bias, Mapping):
        raise OptionError(
            f"logit_bias={bias!r} must be a mapping of token ids to numbers, such as "
            "{29889: -5}.",
            option="logit_bias",
        )
    read: dict[int, float] = {}
    for token, value in bias.items():
        token_id = int(token) if isinstance(token, str) and token.isdecimal() else token
        if not isinstance(token_id, int) or isinstance(token_id, bool) or token_id < 0:
            raise OptionError(
                f"logit_bias={bias!r}: {token!r} must be a token id, 0 or more.",
                option="logit_bias",
            )
        if token_id in read:
            raise OptionError(
                f"logit_bias={bias!r} names the token {token_id} twice.", option="logit_bias"
            )
        if not is_number(value) or not -100 <= value <= 100:
            raise OptionError(
                f"logit_bias={bias!r}: {value!r} of the token {token_id} must be a number from "
                "-100 to 100.",
                option="logit_bias",
            )
        read[token_id] = float(value)
    return read or None


def _require_number(
    name: str,
    value: object,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
    below: float = math.inf,
) -> None:
    if not is_number(value) or not (least <= value <= most and above < value < below):
        low = f"above {above}" if above > -math.inf else f"at least {least}"
        high = f"below {below}" if below < math.inf else f"at most {most}"
        raise OptionError(f"{name}={value!r} must be a number {low} and {high}.", option=name)
    if 0 < abs(value) < LEAST_ABOVE_ZERO:
        zero = "" if above >= 0 else "0, or "
        raise OptionError(
            f"{name}={value!r} is too near to 0 for engines, which calculate in 32 bits. Give "
            f"{zero}at least {LEAST_ABOVE_ZERO}.",
            option=name,
        )
