"""Derives a tool's JSON schema from a Python function or class, and converts arguments back.

A function becomes a structure with one field per parameter. msgspec makes its schema from the type
hints and converts arguments back. A pydantic model does both itself.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from ..errors import GenerationError, OptionError

_SECTION = re.compile(r"\n[ ]*(\w[\w ]*):[ ]*(?=\n|\Z)")
_ARGUMENT = re.compile(r"^(\w+)(?:[ ]*\([^)]*\))?:[ ]*(.*)$")


def is_pydantic(source: object) -> bool:
    """Whether ``source`` is a pydantic model, without importing pydantic."""
    return isinstance(source, type) and hasattr(source, "model_json_schema")


def describe_signature(source: Callable[..., Any]) -> tuple[str, dict[str, Any]]:
    """Return the description of a function or class, and the JSON schema of its parameters.

    The description is the docstring up to its first section. The section ``Args:`` describes the
    parameters, in Google style. Every parameter needs a type hint.

    Raises:
        OptionError: A parameter has no type hint, has a type that JSON cannot represent, or is
            positional-only, ``*args`` or ``**kwargs``.
    """
    if is_pydantic(source):
        model: Any = source
        try:
            schema = dict(model.model_json_schema())
        except Exception as error:  # pydantic's errors, and those of the class's own hooks
            raise OptionError(
                f"{_name(source)}: pydantic makes no schema of it: {error}", option=_name(source)
            ) from error
        return _summary(inspect.getdoc(source) or ""), _without_titles(schema)
    import msgspec

    try:
        schema = msgspec.json.schema(_structure(source))
    except TypeError as error:
        raise OptionError(
            f"{_name(source)}: JSON has no form for a type hint: {error}. Use str, int, float, "
            "bool, None, Literal, Enum, list, tuple, dict with str keys, unions and dataclasses.",
            option=_name(source),
        ) from error
    definitions = schema["$defs"]
    root = definitions.pop(schema["$ref"].rsplit("/", 1)[1])
    root["additionalProperties"] = False
    documentation = inspect.getdoc(source) or ""
    for name, text in _documented(documentation).items():
        if name in root["properties"]:
            root["properties"][name] = {"description": text, **root["properties"][name]}
    root.pop("title", None)
    return _summary(documentation), root | ({"$defs": definitions} if definitions else {})


def parse_arguments(arguments: Mapping[str, Any], source: Callable[..., Any]) -> Any:
    """Convert arguments to the type hints of a function or class; see `ToolCall.parse`.

    Raises:
        GenerationError: The arguments do not fit the type hints.
        OptionError: ``source`` cannot be a tool; see `describe_signature`.
    """
    if is_pydantic(source):
        model: Any = source
        try:
            return model.model_validate(arguments)
        except ValueError as error:
            raise GenerationError(
                f"arguments={arguments!r:.200} do not fit {_name(source)}: {error}"
            ) from error
    import msgspec

    structure = _structure(source)
    try:
        value = msgspec.convert(arguments, structure)
    except msgspec.ValidationError as error:
        raise GenerationError(
            f"arguments={arguments!r:.200} do not fit {_name(source)}: {error}"
        ) from error
    given = {name: getattr(value, name) for name in structure.__struct_fields__}
    given = {name: each for name, each in given.items() if each is not msgspec.UNSET}
    return source(**given) if isinstance(source, type) else given


@lru_cache(maxsize=64)
def _structure(source: Callable[..., Any]) -> Any:
    """Return a msgspec structure with a field for each parameter."""
    import msgspec

    fields: list[Any] = []
    for name, parameter in _parameters(source).items():
        if parameter.default is inspect.Parameter.empty:
            fields.append((name, parameter.annotation))
        else:  # the function fills in its own default
            fields.append((name, parameter.annotation | msgspec.UnsetType, msgspec.UNSET))
    return msgspec.defstruct(_name(source), fields, kw_only=True, forbid_unknown_fields=True)


def _parameters(source: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    try:
        signature = inspect.signature(source)
        described = source.__init__ if isinstance(source, type) else source  # type: ignore[misc]
        hints = typing.get_type_hints(described, include_extras=True)
    except Exception as error:  # a hint may be any expression
        raise OptionError(
            f"{_name(source)}: its signature or the types that its hints name cannot be found: "
            f"{error}. Give a function whose hints are names of its module.",
            option=_name(source),
        ) from error
    parameters = {}
    for name, parameter in signature.parameters.items():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise OptionError(
                f"{_name(source)}: the parameter {name!r} is {parameter.kind.description}; a model "
                "gives arguments by name. Give a function whose parameters all have one.",
                option=_name(source),
            )
        if name not in hints:
            raise OptionError(
                f"{_name(source)}: the parameter {name!r} has no type hint. Write {name}: str, for "
                "example.",
                option=_name(source),
            )
        parameters[name] = parameter.replace(annotation=hints[name])
    return parameters


def _name(source: Callable[..., Any]) -> str:
    return getattr(source, "__name__", type(source).__name__)


def _summary(documentation: str) -> str:
    """Return a docstring up to its first section, each paragraph on a single line."""
    found = _SECTION.search("\n" + documentation)
    text = documentation if found is None else documentation[: max(found.start() - 1, 0)]
    paragraphs = re.split(r"\n\s*\n", text.strip())
    return "\n".join(" ".join(paragraph.split()) for paragraph in paragraphs if paragraph)


def _documented(documentation: str) -> dict[str, str]:
    """Return the description of each parameter in the section ``Args:``."""
    parts = _SECTION.split("\n" + documentation)
    sections = dict(zip(parts[1::2], parts[2::2], strict=False))
    text = inspect.cleandoc(sections.get("Args") or sections.get("Arguments") or "")
    found: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        begins = _ARGUMENT.match(line)
        if begins:
            name = begins[1]
            found[name] = begins[2]
        elif name:
            found[name] = f"{found[name]} {line.strip()}".strip()
    return found


def _without_titles(schema: Any) -> Any:
    """Remove the titles that pydantic derives from names, because they cost prompt tokens."""
    if isinstance(schema, list):
        return [_without_titles(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: {each: _without_titles(part) for each, part in value.items()}
        if name in ("properties", "$defs") and isinstance(value, dict)
        else _without_titles(value)
        for name, value in schema.items()
        if name != "title" or not isinstance(value, str)
    }
