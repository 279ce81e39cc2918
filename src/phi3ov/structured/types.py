"""Dataclasses as JSON schemas, and JSON values as their instances."""

from __future__ import annotations

import dataclasses
import enum
import re
import types
import typing
from typing import Any, Literal, Union, get_args, get_origin

from ..errors import OptionError
from ..plain_json import plain_json
from ..validation import is_integer

_SIMPLE: tuple[tuple[Any, str], ...] = (
    (str, "string"),
    (int, "integer"),
    (float, "number"),
    (bool, "boolean"),
    (type(None), "null"),
    (None, "null"),
)


def dataclass_schema(cls: type) -> dict[str, Any]:
    """Return the JSON schema of a dataclass.

    Fields may be ``str``, ``int``, ``float``, ``bool``, ``None``, ``Literal``, ``Enum``,
    ``list``, ``tuple``, ``dict`` with ``str`` keys, unions, ``Any`` and dataclasses. Those that
    ``__init__`` does not take are left out; an ``InitVar``, which it takes, is not.

    Raises:
        OptionError: A field has another type, one that cannot be found, or a value that JSON
            cannot hold.
    """
    definitions = _Definitions()
    root = definitions.schema(cls, cls.__name__)
    return {**root, "$defs": definitions.schemas}


class _Definitions:
    """The schemas of all dataclasses that one of them needs, each under a name of its own."""

    def __init__(self) -> None:
        self.schemas: dict[str, Any] = {}
        self._names: dict[type, str] = {}

    def schema(self, kind: Any, where: str) -> dict[str, Any]:
        if kind is Any:
            return {}
        for simple, name in _SIMPLE:
            if kind is simple:
                return {"type": name}
        if isinstance(kind, type) and issubclass(kind, enum.Enum):
            return {"enum": [_json_constant(member.value, where) for member in kind]}
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            return self._object(kind)
        return self._generic(kind, where)

    def _generic(self, kind: Any, where: str) -> dict[str, Any]:
        origin, arguments = get_origin(kind), get_args(kind)
        if origin is Literal:
            return {"enum": [_json_constant(one, where) for one in arguments]}
        if origin in (Union, types.UnionType):
            return {"anyOf": [self.schema(one, where) for one in arguments]}
        if origin is list and arguments:
            return {"type": "array", "items": self.schema(arguments[0], where)}
        if origin is tuple and arguments[1:] == (Ellipsis,):
            return {"type": "array", "items": self.schema(arguments[0], where)}
        if origin is tuple and arguments and Ellipsis not in arguments:
            return {"type": "array", "prefixItems": [self.schema(one, where) for one in arguments]}
        if origin is dict and arguments and arguments[0] is str:
            return {"type": "object", "additionalProperties": self.schema(arguments[1], where)}
        raise OptionError(
            f"json_schema: {where} is of type {kind!r}, which has no JSON form. Use str, int, "
            "float, bool, None, Literal, Enum, list[...], tuple[...], dict[str, ...], a union or a "
            "dataclass."
        )

    def _object(self, cls: type) -> dict[str, Any]:
        name = self._names.get(cls)
        if name is None:
            name = re.sub(r"\W", "_", cls.__qualname__)
            name = name if name not in self.schemas else f"{name}.{len(self.schemas)}"
            self._names[cls] = name
            self.schemas[name] = {}  # its place, and an end to recursion
            properties = {
                field: self.schema(kind, f"{cls.__name__}.{field}")
                for field, kind in _arguments(cls).items()
            }
            self.schemas[name] = {
                "type": "object",
                "properties": properties,
                "required": list(properties),
                "additionalProperties": False,
            }
        return {"$ref": f"#/$defs/{name}"}


def _json_constant(value: Any, where: str) -> Any:
    """Return ``value`` if JSON gives it back as it is, of the same type."""
    try:
        copy = plain_json(value)
    except ValueError:
        copy = Ellipsis
    if type(copy) is not type(value) or copy != value:
        raise OptionError(
            f"json_schema: {where} may be {value!r:.80}, which JSON cannot hold. Use text, "
            "numbers, True, False or None."
        )
    return copy


def _arguments(cls: type) -> dict[str, Any]:
    """Return name and type of what the ``__init__`` of a dataclass takes."""
    try:
        hints = typing.get_type_hints(cls)
    except Exception as error:  # an annotation may be any expression
        raise OptionError(
            f"json_schema={cls.__name__}: the types of its fields cannot be found: {error}. "
            "Define it, and what it names, at the top of a module."
        ) from error
    taken = {one.name for one in dataclasses.fields(cls) if one.init}
    arguments = {}
    for name, kind in hints.items():
        if isinstance(kind, dataclasses.InitVar):
            arguments[name] = kind.type
        elif name in taken:
            arguments[name] = kind
    return arguments


def build_value(kind: Any, value: Any) -> Any:
    """Return ``value``, which fits the schema of ``kind``, as an instance of it.

    Raises:
        ValueError: It does not fit after all.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _build_first(arguments, value)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind(value)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _build_instance(kind, value)
    if origin in (list, tuple):
        if not isinstance(value, list):
            raise ValueError(f"{value!r} is no list")
        alike = origin is list or Ellipsis in arguments
        kinds = arguments[:1] * len(value) if alike else arguments
        return origin(build_value(one, item) for one, item in zip(kinds, value, strict=True))
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{value!r} is no mapping")
        return {name: build_value(arguments[1], one) for name, one in value.items()}
    return _build_simple(kind, value)


def _build_instance(cls: Any, value: Any) -> Any:
    """Return an instance of a dataclass, its simple fields first.

    They tell the members of a union apart before anything is built that may be a union itself:
    otherwise each level of a nested union would be tried again for each of those above it.
    """
    kinds = _arguments(cls)
    if not isinstance(value, dict) or value.keys() != kinds.keys():
        raise ValueError(f"{value!r} is no {cls.__name__}")
    built = {}
    for name in sorted(kinds, key=lambda name: _is_nested(kinds[name])):
        built[name] = build_value(kinds[name], value[name])
    return cls(**built)


def _is_nested(kind: Any) -> bool:
    return dataclasses.is_dataclass(kind) or get_origin(kind) not in (None, Literal)


def _build_first(kinds: tuple[Any, ...], value: Any) -> Any:
    refused: Exception | None = None
    for kind in kinds:
        try:
            return build_value(kind, value)
        except (ValueError, TypeError) as error:
            refused = error
    raise ValueError(f"{value!r} is of none of the types {kinds}") from refused


def _build_simple(kind: Any, value: Any) -> Any:
    if kind is float and is_integer(value):
        return float(value)
    if get_origin(kind) is Literal:
        if any(value == one and type(value) is type(one) for one in get_args(kind)):
            return value
        raise ValueError(f"{value!r} is none of {get_args(kind)}")
    if kind is not Any and type(value) is not (type(None) if kind is None else kind):
        raise ValueError(f"{value!r} is no {kind}")
    return value
