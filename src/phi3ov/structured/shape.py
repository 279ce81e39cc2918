"""Structured answers: which texts an answer may be, and what a finished one means.

`AnswerShape` is made from ``json_schema``, ``regex`` or ``choices`` of `GenerationOptions`. It
holds the grammar that the engine enforces, and turns the text of a finished answer into its
value. The grammars are ``grammar.py`` and ``json_grammar.py``, dataclasses ``answer_types.py``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..errors import OptionError
from ..plain_json import plain_json
from .ebnf import alternatives, literal, rules
from .json_schema import json_grammar
from .regex import regex_grammar
from .types import build_value, dataclass_schema

MOST_CHOICES = 1000
"""The most choices: each costs the matcher some time."""
MOST_CHOICE_CHARACTERS = 100_000
"""The most characters that all choices may have together."""


@dataclass(frozen=True, slots=True)
class AnswerShape:
    """What an answer must look like.

    Attributes:
        grammar: Rules in EBNF, the first of which, ``answer``, is every text that is allowed.
        parse: Returns the value of such a text.
    """

    grammar: str
    parse: Callable[[str], Any]


def answer_shape(*, json_schema: Any, regex: str | None, choices: Any) -> AnswerShape | None:
    """Return the shape that the options ask for; None if they ask for none.

    Raises:
        OptionError: More than one is given, or one that no grammar can follow.
    """
    given = {"json_schema": json_schema, "regex": regex, "choices": choices}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise OptionError(f"{names[1]} contradicts {names[0]}: an answer has one shape. Leave one.")
    if isinstance(json_schema, type):
        return _class_shape(json_schema)
    if json_schema is not None:
        if not isinstance(json_schema, dict):
            raise OptionError(
                f"json_schema={json_schema!r:.200} must be a dictionary, a dataclass or a pydantic "
                "model."
            )
        return _schema_shape(json.dumps(json_schema))
    if regex is not None:
        if not isinstance(regex, str):
            raise OptionError(f"regex={regex!r:.200} must be a string.")
        return _regex_shape(regex)
    if choices is not None:
        return _choices_shape(_checked_choices(choices))
    return None


# The same shape is asked for again and again: twice in a turn, in every turn of a chat, for every
# line of a batch. The last few are kept; a schema is known by its text, for the order counts.
_remembered = lru_cache(maxsize=16)


@_remembered
def _regex_shape(regex: str) -> AnswerShape:
    return AnswerShape(rules(regex_grammar(regex)[0]), str)


@_remembered
def _choices_shape(choices: tuple[str, ...]) -> AnswerShape:
    return AnswerShape(rules(alternatives(literal(one) for one in choices)), str)


@_remembered
def _schema_shape(text: str) -> AnswerShape:
    return AnswerShape(json_grammar(json.loads(text)), json.loads)


@_remembered
def _class_shape(cls: type[Any]) -> AnswerShape:
    schema, parse = _class_schema(cls)
    return AnswerShape(json_grammar(copy_schema(schema)), parse)


def _class_schema(cls: type[Any]) -> tuple[Any, Callable[[str], Any]]:
    """Return a class's schema and what makes an instance of a text."""
    model: Any = cls
    if hasattr(model, "model_json_schema") and hasattr(model, "model_validate_json"):  # pydantic's
        try:
            return model.model_json_schema(), model.model_validate_json
        except Exception as error:  # pydantic's own, and whatever its users' hooks raise
            raise OptionError(
                f"json_schema={cls.__name__}: pydantic makes no schema of it: {error}"
            ) from error
    if dataclasses.is_dataclass(cls):
        return dataclass_schema(model), lambda text: build_value(model, json.loads(text))
    raise OptionError(
        f"json_schema={cls.__name__} is neither a dataclass nor a pydantic model; give one of "
        "these, or a dictionary."
    )


def copy_schema(json_schema: Any) -> Any:
    """Return a schema that its caller cannot change any more.

    Raises:
        OptionError: It holds what JSON cannot.
    """
    if not isinstance(json_schema, dict):
        return json_schema
    try:
        return plain_json(json_schema)
    except ValueError as error:
        raise OptionError(f"json_schema is nothing that JSON can hold: {error}.") from error


def _checked_choices(choices: Any) -> tuple[str, ...]:
    if isinstance(choices, str) or not isinstance(choices, tuple | list):
        raise OptionError(f"choices={choices!r} must be a tuple of strings.")
    if not choices or not all(isinstance(one, str) and one for one in choices):
        raise OptionError(f"choices={choices!r} must hold non-empty strings, one at least.")
    if len(choices) > MOST_CHOICES or sum(map(len, choices)) > MOST_CHOICE_CHARACTERS:
        raise OptionError(
            f"choices has {len(choices)} members of {sum(map(len, choices))} characters; at most "
            f"{MOST_CHOICES} of {MOST_CHOICE_CHARACTERS}."
        )
    if any("\ud800" <= one <= "\udfff" for choice in choices for one in choice):
        raise OptionError("choices holds a lone surrogate, which no text has.")
    return tuple(choices)
