"""Options are checked when they are made; a reply reads as its text."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, cast

import pytest

from phi3ov.answer.options import GenerationOptions, Options
from phi3ov.answer.reply import Reply, Timings, Usage
from phi3ov.errors import OptionError

REPLY = Reply(
    text="Hello\nyou",
    token_ids=(1, 2),
    finish_reason="stop",
    stopped_by="<|end|>",
    usage=Usage(prompt_tokens=3, cached_tokens=1, completion_tokens=3),
    timings=Timings(first_token_seconds=0.5, total_seconds=1.0, tokens_per_second=4.0),
    max_new_tokens=10,
)


def test_defaults_are_the_seeds() -> None:
    """Without a word: 1024 tokens, greedy, nothing dropped in silence."""
    options = GenerationOptions()
    assert dataclasses.asdict(options) == {
        "max_new_tokens": 1024,
        "max_reasoning_tokens": None,
        "stop": (),
        "temperature": 0.0,
        "top_p": 1.0,
        "top_k": None,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": None,
        "candidates": 1,
        "logit_bias": None,
        "logprobs": False,
        "top_logprobs": 0,
        "skip_special_tokens": True,
        "tool_choice": None,
        "json_schema": None,
        "regex": None,
        "choices": None,
        "validate": "grammar",
        "on_overflow": "raise",
        "timeout_seconds": None,
        "on_timeout": "drop",
        "on_full_queue": "raise",
    }


def test_options_and_generation_options_have_the_same_fields() -> None:
    """A call's changes and the frozen options know the same names."""
    assert set(Options.__annotations__) == {
        field.name for field in dataclasses.fields(GenerationOptions)
    }


SAMPLING: dict[str, Any] = {"temperature": 1.0}
BAD: list[tuple[str, Any, dict[str, Any]]] = [
    *(("max_new_tokens", value, {}) for value in (0, -1, 1.5, "5", None, True, math.nan)),
    *(("stop", value, {}) for value in ("end", ("",), ("a", ""), (5,), (None,), None, 5)),
    *(("temperature", value, {}) for value in (-0.1, math.nan, math.inf, 100.5, "1", None, True)),
    *(("top_p", value, SAMPLING) for value in (0, 0.0, -0.1, 1.1, math.nan, "x", None, True)),
    *(("top_k", value, SAMPLING) for value in (0, -1, 1.5, "4", True)),
    *(("repetition_penalty", value, {}) for value in (0, -1, math.nan, math.inf, "1", None, True)),
    *(("seed", value, SAMPLING) for value in (-1, 1.5, "4", True)),
    *(("min_p", value, SAMPLING) for value in (-0.1, 1.0, 1, math.nan, "x", None, True)),
    *(("presence_penalty", value, {}) for value in (-2.1, 2.1, math.nan, "1", None, True)),
    *(("frequency_penalty", value, {}) for value in (-2.1, 2.1, math.nan, "1", None, True)),
    *(("candidates", value, SAMPLING) for value in (0, -1, 65, 1.0, "2", None, True)),
    *(("logprobs", value, {}) for value in (0, 1, "yes", None)),
    *(("top_logprobs", value, {"logprobs": True}) for value in (-1, 21, 1.0, "2", None, True)),
    ("top_logprobs", 3, {}),
    *(("logit_bias", value, {}) for value in (5, [1], "x", ((1, 2),))),
    *(("logit_bias", {token: 1}, {}) for token in (-1, 1.0, "a", "-1", "", True, None)),
    *(
        ("logit_bias", {5: value}, {})
        for value in (100.5, -101, math.nan, math.inf, "1", None, True)
    ),
    ("logit_bias", {5: 1, "5": 2}, {}),
    *(("on_overflow", value, {}) for value in ("RAISE", "", None, 1)),
    *(("on_timeout", value, {"timeout_seconds": 1}) for value in ("raise", None, True)),
    *(("on_full_queue", value, {}) for value in ("keep", None, True)),
    *(("timeout_seconds", value, {}) for value in (0, -1, math.nan, math.inf, "1", True)),
    *(("temperature", value, {}) for value in (1e-320, 1e-45, 9e-31)),
    *(("top_p", value, SAMPLING) for value in (1e-320, 1e-45)),
    *(("min_p", value, SAMPLING) for value in (1e-320, 1e-45)),
    *(("repetition_penalty", value, {}) for value in (1e-320, 1e-45)),
    *(("presence_penalty", value, {}) for value in (1e-320, -1e-45)),
    ("on_timeout", "keep", {}),
    ("top_p", 0.9, {}),
    ("top_k", 5, {}),
    ("min_p", 0.1, {}),
    ("candidates", 2, {}),
    ("seed", 0, {}),
    ("seed", 7, {"temperature": 0}),
]


@pytest.mark.parametrize(("name", "value", "others"), BAD, ids=str)
def test_bad_value_names_field_and_value(name: str, value: object, others: dict[str, Any]) -> None:
    """Every value out of range, of another type or without effect is refused by its name."""
    with pytest.raises(OptionError) as caught:
        GenerationOptions(**{name: value, **others})
    message = str(caught.value)
    assert message.startswith(f"{name}={value!r}")


GOOD: list[dict[str, Any]] = [
    {"max_new_tokens": 1},
    {"temperature": 0},
    {"temperature": 100, "top_p": 1, "top_k": 1, "seed": 0},
    {"temperature": 1e-9, "top_p": 1e-9},
    {"temperature": 1e-30, "top_p": 1e-30, "min_p": 1e-30, "repetition_penalty": 1e-30},
    {"repetition_penalty": 0.1},
    {"presence_penalty": -2, "frequency_penalty": 2.0, "logprobs": True},
    {"temperature": 1.0, "min_p": 0.999, "candidates": 64},
    {"logprobs": True, "top_logprobs": 20},
    {"logit_bias": {0: -100, 7: 100, 9: 0}},
    {"stop": ("a", "b")},
    {"on_overflow": "clamp"},
    {"on_overflow": "drop_oldest"},
    {"timeout_seconds": 1e-9, "on_timeout": "keep"},
    {"on_full_queue": "wait"},
]


@pytest.mark.parametrize("values", GOOD, ids=str)
def test_values_at_the_border_are_allowed(values: dict[str, Any]) -> None:
    """The borders named in the docstring belong to the range, and zero is a value."""
    options = GenerationOptions(**values)
    assert {name: getattr(options, name) for name in values} == values


def test_a_bias_is_a_copy_with_ids_as_integers() -> None:
    """JSON has strings for ids; a bias cannot be changed from outside, and an empty one is none."""
    bias: dict[Any, float] = {"7": -1, 8: 2}
    options = GenerationOptions(logit_bias=bias)
    bias[9] = 3
    assert options.logit_bias == {7: -1.0, 8: 2.0}
    assert options.sampling.logit_bias == options.logit_bias
    assert GenerationOptions(logit_bias={}) == GenerationOptions()
    assert hash(options) == hash(dataclasses.replace(options))


def test_stop_list_becomes_a_tuple() -> None:
    """A list is taken, and cannot be changed from outside any more."""
    stops = ["a"]
    options = GenerationOptions(stop=cast("tuple[str, ...]", stops))
    stops.append("b")
    assert options.stop == ("a",)
    assert hash(options)


def test_changed_keeps_what_is_not_named() -> None:
    """One call's changes leave the other fields and the original alone."""
    options = GenerationOptions(max_new_tokens=5, temperature=1.0)
    changed = options.changed({"seed": 3})
    assert changed == GenerationOptions(max_new_tokens=5, temperature=1.0, seed=3)
    assert options.seed is None


def test_changed_refuses_unknown_names() -> None:
    """A misspelt option is an error that lists the right ones."""
    misspelt = cast("Options", {"max_new_token": 5})
    with pytest.raises(OptionError, match=r"'max_new_token' is not an option.*max_new_tokens"):
        GenerationOptions().changed(misspelt)


def test_changed_checks_the_combination() -> None:
    """A change that contradicts what was there is refused."""
    with pytest.raises(OptionError, match="seed=1 has no effect"):
        GenerationOptions(temperature=1.0, seed=1).changed({"temperature": 0.0})


def test_options_are_frozen() -> None:
    """Nobody changes the options of a running turn."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        GenerationOptions().max_new_tokens = 5  # type: ignore[misc]


def test_reply_reads_as_its_text(capsys: pytest.CaptureFixture[str]) -> None:
    """``str`` and ``print`` give the answer, the repr gives the record."""
    print(REPLY)
    assert capsys.readouterr().out == "Hello\nyou\n"
    assert str(REPLY) == f"{REPLY}" == "Hello\nyou"
    assert "finish_reason='stop'" in repr(REPLY)
