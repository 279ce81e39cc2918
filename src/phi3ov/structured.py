"""Structured answers: which texts an answer may be, and what a finished one means.

`AnswerShape` is made from ``json_schema``, ``regex`` or ``choices`` of `GenerationOptions`. It
holds the grammar that the engine enforces, and turns the text of a finished answer into its
value. The grammars are ``grammar.py`` and ``json_grammar.py``, dataclasses ``answer_types.py``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .answer_types import build_value, dataclass_schema
from .errors import OptionError
from .grammar import alternatives, literal, regex_grammar, rules
from .json_grammar import json_grammar

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
    if json_schema is not None:
        return _json_shape(json_schema)
    if regex is not None:
        return AnswerShape(rules(regex_grammar(regex)), str)
    if choices is not None:
        return AnswerShape(rules(_choices_grammar(choices)), str)
    return None


def _json_shape(json_schema: Any) -> AnswerShape:
    if isinstance(json_schema, type):
        schema, parse = _class_schema(json_schema)
        return AnswerShape(json_grammar(schema), parse)
    if not isinstance(json_schema, dict):
        raise OptionError(
            f"json_schema={json_schema!r} must be a dictionary, a dataclass or a pydantic model."
        )
    return AnswerShape(json_grammar(json_schema), json.loads)


def _class_schema(cls: type[Any]) -> tuple[Any, Callable[[str], Any]]:
    """Return a class's schema and what makes an instance of a text."""
    model: Any = cls
    if hasattr(model, "model_json_schema") and hasattr(model, "model_validate_json"):  # pydantic's
        return model.model_json_schema(), model.model_validate_json
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
        return json.loads(json.dumps(json_schema, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise OptionError(f"json_schema is nothing that JSON can hold: {error}.") from error


def _choices_grammar(choices: Sequence[str]) -> str:
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
    return alternatives(literal(one) for one in choices)
