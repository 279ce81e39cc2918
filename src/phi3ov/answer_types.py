"""Dataclasses as JSON schemas, and JSON values as their instances."""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from typing import Any, Literal, Union, get_args, get_origin

from .errors import OptionError

_SIMPLE: dict[Any, str] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    type(None): "null",
    None: "null",
}


def dataclass_schema(cls: type) -> dict[str, Any]:
    """Return the JSON schema of a dataclass.

    Fields may be ``str``, ``int``, ``float``, ``bool``, ``None``, ``Literal``, ``Enum``,
    ``list``, ``tuple``, ``dict`` with ``str`` keys, unions, ``Any`` and dataclasses.

    Raises:
        OptionError: A field has another type, or one that cannot be found.
    """
    definitions: dict[str, Any] = {}
    root = _schema(cls, cls.__name__, definitions)
    return {**root, "$defs": definitions}


def _schema(kind: Any, where: str, definitions: dict[str, Any]) -> dict[str, Any]:
    if kind is Any:
        return {}
    if kind in _SIMPLE:
        return {"type": _SIMPLE[kind]}
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return {"enum": [member.value for member in kind]}
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _object_schema(kind, definitions)
    return _generic_schema(kind, where, definitions)


def _generic_schema(kind: Any, where: str, definitions: dict[str, Any]) -> dict[str, Any]:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return {"enum": list(arguments)}
    parts = [_schema(one, where, definitions) for one in arguments if one is not Ellipsis]
    if origin in (Union, types.UnionType):
        return {"anyOf": parts}
    if origin is list or (origin is tuple and arguments[1:] == (Ellipsis,)):
        return {"type": "array", "items": parts[0]}
    if origin is tuple:
        return {"type": "array", "prefixItems": parts}
    if origin is dict and arguments[0] is str:
        return {"type": "object", "additionalProperties": parts[1]}
    raise OptionError(
        f"json_schema: {where} is of type {kind!r}, which has no JSON form. Use str, int, float, "
        "bool, None, Literal, Enum, list[...], tuple[...], dict[str, ...], a union or a dataclass."
    )


def _object_schema(cls: type, definitions: dict[str, Any]) -> dict[str, Any]:
    name = f"{cls.__module__}.{cls.__qualname__}"
    if name not in definitions:
        definitions[name] = {}  # its place, and an end to recursion
        hints = _hints(cls)
        properties = {
            field.name: _schema(hints[field.name], f"{cls.__name__}.{field.name}", definitions)
            for field in dataclasses.fields(cls)
            if field.init
        }
        definitions[name] = {
            "type": "object",
            "properties": properties,
            "required": list(properties),
        }
    return {"$ref": f"#/$defs/{name}"}


def _hints(cls: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls)
    except (NameError, TypeError) as error:
        raise OptionError(
            f"json_schema={cls.__name__}: the types of its fields cannot be found: {error}. "
            "Define it, and what it names, at the top of a module."
        ) from error


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
        if not isinstance(value, dict):
            raise ValueError(f"{value!r} is no {kind.__name__}")
        hints = _hints(kind)
        return kind(**{name: build_value(hints[name], one) for name, one in value.items()})
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


def _build_first(kinds: tuple[Any, ...], value: Any) -> Any:
    for kind in kinds:
        try:
            return build_value(kind, value)
        except (ValueError, TypeError):
            continue
    raise ValueError(f"{value!r} is of none of the types {kinds}")


def _build_simple(kind: Any, value: Any) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if get_origin(kind) is Literal:
        if any(value == one and type(value) is type(one) for one in get_args(kind)):
            return value
        raise ValueError(f"{value!r} is none of {get_args(kind)}")
    if kind is not Any and type(value) is not (type(None) if kind is None else kind):
        raise ValueError(f"{value!r} is no {kind}")
    return value
