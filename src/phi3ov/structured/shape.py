"""Structured answers: the allowed texts, and the value of a finished answer.

`AnswerShape` is made from ``json_schema``, ``regex`` or ``choices`` of `GenerationOptions`. It
holds the grammar that the engine enforces, and parses the text of a finished answer into its
value. ``json_schema.py`` compiles schemas, ``regex.py`` compiles patterns, ``types.py`` reads
classes, and ``pydantic_types.py`` reads classes of pydantic.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

from ..errors import OptionError
from ..plain_json import plain_json
from .ebnf import alternatives, literal, rules
from .json_schema import json_grammar
from .pydantic_types import read_pydantic
from .regex import regex_grammar
from .schema_check import schema_check
from .types import is_structure, packages_in, read_class

MOST_CHOICES = 1000
"""Maximum number of choices: each costs the matcher time."""
MOST_CHOICE_CHARACTERS = 100_000
"""Maximum number of characters of all choices together."""


@dataclass(frozen=True, slots=True)
class AnswerShape:
    """The allowed texts of an answer, and their values.

    Attributes:
        grammar: Rules in EBNF; the first, ``answer``, matches every allowed text.
        parse: Returns the value of an allowed text.
    """

    grammar: str
    parse: Callable[[str], Any]


Validation = Literal["grammar", "after"]
"""Whether a grammar must enforce the whole schema, or a check of the finished answer may help."""


def answer_shape(
    *, json_schema: Any, regex: str | None, choices: Any, validate: Validation = "grammar"
) -> AnswerShape | None:
    """Return the shape that the options describe; None if they describe none.

    Args:
        json_schema: A schema as a dictionary, or a class.
        regex: A pattern.
        choices: The allowed texts.
        validate: ``"grammar"`` refuses a schema with a keyword that no grammar can enforce.
            ``"after"`` enforces as much as possible, and the shape's ``parse`` checks the rest.

    Raises:
        OptionError: More than one of the three is given, or no grammar can enforce it.
        MissingDependencyError: ``validate="after"`` with a dictionary needs jsonschema.
    """
    if validate not in get_args(Validation):
        raise OptionError(f"validate={validate!r} is not 'grammar' or 'after'.", option="validate")
    if validate == "after" and json_schema is None:
        raise OptionError(
            "validate='after' has no effect without json_schema. Set json_schema, or leave "
            "validate out.",
            option="validate",
        )
    given = {"json_schema": json_schema, "regex": regex, "choices": choices}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise OptionError(
            f"{names[1]} contradicts {names[0]}: an answer has one shape. Drop one.",
            option=names[1],
        )
    if isinstance(json_schema, type):
        return _class_shape(json_schema, validate)
    if json_schema is not None:
        if not isinstance(json_schema, dict):
            raise OptionError(
                f"json_schema={json_schema!r:.200} must be a dictionary, a dataclass, a "
                "TypedDict, a NamedTuple or a pydantic model.",
                option="json_schema",
            )
        return _schema_shape(json.dumps(json_schema), validate)
    if regex is not None:
        if not isinstance(regex, str):
            raise OptionError(f"regex={regex!r:.200} must be a string.", option="regex")
        return _regex_shape(regex)
    if choices is not None:
        return _choices_shape(_checked_choices(choices))
    return None


# The same shape is needed often: twice in a turn, in every turn of a chat, for every line of a
# batch. A few are cached. A schema's key is its JSON text, because the order of properties counts.
_remembered = lru_cache(maxsize=16)


@_remembered
def _regex_shape(regex: str) -> AnswerShape:
    return AnswerShape(rules(regex_grammar(regex).expression), str)


@_remembered
def _choices_shape(choices: tuple[str, ...]) -> AnswerShape:
    return AnswerShape(rules(alternatives(literal(choice) for choice in choices)), str)


@_remembered
def _schema_shape(text: str, validate: Validation) -> AnswerShape:
    schema = json.loads(text)
    if validate == "grammar":
        return AnswerShape(_grammar(schema, validate), json.loads)
    check = schema_check(schema)
    return AnswerShape(_grammar(schema, validate), lambda answer: check(json.loads(answer)))


@_remembered
def _class_shape(cls: type[Any], validate: Validation) -> AnswerShape:
    schema, parse = _read_class(cls)
    return AnswerShape(_grammar(copy_schema(schema), validate), parse)


def _grammar(schema: Any, validate: Validation) -> str:
    try:
        return json_grammar(schema, lenient=validate == "after")
    except OptionError as error:
        if validate == "grammar" and _has_grammar(schema):
            raise OptionError(
                f"{error} Or give validate='after' to have the finished answer checked.",
                option=error.option,
            ) from error
        raise


def _has_grammar(schema: Any) -> bool:
    """Whether a schema compiles once the keywords that cannot be enforced are removed."""
    try:
        json_grammar(schema, lenient=True)
    except OptionError:
        return False
    return True


def _read_class(cls: type[Any]) -> tuple[Any, Callable[[str], Any]]:
    """Return a class's schema, and a function that parses a text into an instance."""
    packages = packages_in(cls)
    if packages & {"pydantic", "pydantic_core", "annotated_types"}:
        if "msgspec" in packages:
            raise OptionError(
                f"json_schema={cls.__name__} has bounds of msgspec.Meta beside pydantic, which "
                "would ignore them. Use pydantic.Field for all.",
                option="json_schema",
            )
        return read_pydantic(cls)
    model: Any = cls
    if hasattr(model, "model_json_schema") and hasattr(model, "model_validate_json"):
        return model.model_json_schema(), model.model_validate_json  # has pydantic's methods
    if is_structure(cls):
        schema, build = read_class(cls)
        return schema, lambda text: build(json.loads(text))
    raise OptionError(
        f"json_schema={cls.__name__} is neither a dataclass, a TypedDict, a NamedTuple nor a "
        "pydantic model; give one of these, or a dictionary.",
        option="json_schema",
    )


def copy_schema(json_schema: Any) -> Any:
    """Return a copy of a schema, so that later changes by the caller have no effect.

    Raises:
        OptionError: The schema holds a value that JSON cannot represent.
    """
    if not isinstance(json_schema, dict):
        return json_schema
    try:
        return plain_json(json_schema)
    except ValueError as error:
        raise OptionError(
            f"json_schema is nothing that JSON can hold: {error}.", option="json_schema"
        ) from error


def _checked_choices(choices: Any) -> tuple[str, ...]:
    if isinstance(choices, str) or not isinstance(choices, tuple | list):
        raise OptionError(f"choices={choices!r} must be a tuple of strings.", option="choices")
    if not choices or not all(isinstance(choice, str) and choice for choice in choices):
        raise OptionError(
            f"choices={choices!r} must hold one string or more, none of them empty.",
            option="choices",
        )
    if len(choices) > MOST_CHOICES or sum(map(len, choices)) > MOST_CHOICE_CHARACTERS:
        raise OptionError(
            f"choices has {len(choices)} members of {sum(map(len, choices))} characters; at most "
            f"{MOST_CHOICES} of {MOST_CHOICE_CHARACTERS}.",
            option="choices",
        )
    if any("\ud800" <= character <= "\udfff" for choice in choices for character in choice):
        raise OptionError("choices holds a lone surrogate, which no text has.", option="choices")
    return tuple(choices)
