"""Converts classes to JSON schemas, and JSON values to instances of the classes.

This module traverses dataclasses, TypedDicts and NamedTuples itself, because msgspec supports
neither unions of them nor ``InitVar``. msgspec converts their fields: dates, Decimal, UUID, and
the bounds of ``Annotated[..., msgspec.Meta(...)]``. `pydantic_types` reads a class that contains
types of pydantic.
"""

from __future__ import annotations

import dataclasses
import enum
import re
import types
import typing
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal, NotRequired, Required, Union, get_args, get_origin
from uuid import UUID

from ..errors import OptionError
from ..plain_json import plain_json
from ..validation import is_integer

_SIMPLE: dict[Any, dict[str, Any]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    type(None): {"type": "null"},
    None: {"type": "null"},
}
_CONVERTED: dict[Any, dict[str, Any]] = {
    date: {"type": "string", "format": "date"},
    time: {"type": "string", "format": "time"},
    datetime: {"type": "string", "format": "date-time"},
    timedelta: {"type": "string", "format": "duration"},
    UUID: {"type": "string", "format": "uuid"},
    Decimal: {"type": "number"},
}
"""Types that msgspec converts from a string or a number."""
_BOUNDS = {
    "ge": "minimum",
    "gt": "exclusiveMinimum",
    "le": "maximum",
    "lt": "exclusiveMaximum",
    "multiple_of": "multipleOf",
    "pattern": "pattern",  # phi3ov matches it against the whole text
}
_LENGTHS = {"string": "Length", "array": "Items", "object": "Properties"}
_UNIONS = (Union, types.UnionType)
_ARRAYS = (list, tuple, set, frozenset)

Schema = dict[str, Any]


def read_class(cls: type) -> tuple[Schema, Callable[[Any], Any]]:
    """Return the JSON schema of a class, and a function that builds an instance from a value.

    Fields may be ``str``, ``int``, ``float``, ``bool``, ``None``, ``Literal``, ``Enum``, dates and
    times, ``UUID``, ``Decimal``, ``list``, ``tuple``, ``set``, ``dict`` with ``str`` keys, unions,
    ``Any``, ``Annotated`` with `msgspec.Meta`, dataclasses, TypedDicts and NamedTuples. Fields
    that ``__init__`` does not accept are left out; an ``InitVar`` is included.

    Raises:
        OptionError: A field has another type, a type that cannot be resolved, or a constant that
            JSON cannot represent.
    """
    definitions = _Definitions()
    root = definitions.schema(cls, cls.__name__)
    return {**root, "$defs": definitions.schemas}, lambda value: build_value(cls, value)


def is_structure(kind: Any) -> bool:
    """Whether ``kind`` is a dataclass, a TypedDict or a NamedTuple."""
    return isinstance(kind, type) and (
        dataclasses.is_dataclass(kind) or typing.is_typeddict(kind) or _is_named_tuple(kind)
    )


def _is_named_tuple(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields")


def packages_in(kind: Any, seen: set[Any] | None = None) -> set[str]:
    """Return the packages of the classes and constraints in a type, such as ``{"msgspec"}``."""
    seen = set() if seen is None else seen
    if get_origin(kind) is Literal or (isinstance(kind, type) and kind in seen):
        return set()
    parts = list(get_args(kind))
    found: set[str] = set()
    if get_origin(kind) is Annotated:
        found |= {_package(type(constraint)) for constraint in kind.__metadata__}
    elif isinstance(kind, type):
        seen.add(kind)
        if hasattr(kind, "__pydantic_core_schema__") or hasattr(
            kind, "__get_pydantic_core_schema__"
        ):
            found.add("pydantic")
        if is_structure(kind):
            parts += _hints(kind).values()
        for field in getattr(kind, "__pydantic_fields__", {}).values():
            parts.append(field.annotation)
            found |= {_package(type(constraint)) for constraint in field.metadata}
    return found.union(*(packages_in(part, seen) for part in parts))


def _package(cls: type) -> str:
    return cls.__module__.partition(".")[0]


class _Definitions:
    """Schemas of all structures that a class needs, each under a unique name."""

    def __init__(self) -> None:
        self.schemas: dict[str, Any] = {}
        self._names: dict[type, str] = {}

    def schema(self, kind: Any, where: str) -> Schema:
        if kind is Any:
            return {}
        simple = [
            found for known, found in (*_SIMPLE.items(), *_CONVERTED.items()) if known is kind
        ]
        if simple:
            return dict(simple[0])
        if isinstance(kind, type) and issubclass(kind, enum.Enum):
            return {"enum": [_json_constant(member.value, where) for member in kind]}
        if is_structure(kind):
            return self._structure(kind)
        if get_origin(kind) is Annotated:
            return _constrained(kind, self.schema(kind.__origin__, where), where)
        return self._generic(kind, where)

    def _generic(self, kind: Any, where: str) -> Schema:
        origin, arguments = get_origin(kind), get_args(kind)
        if origin in (Required, NotRequired):
            return self.schema(arguments[0], where)
        if origin is Literal:
            return {"enum": [_json_constant(value, where) for value in arguments]}
        if origin in _UNIONS:
            return {"anyOf": [self.schema(part, where) for part in arguments]}
        if origin is dict and arguments and arguments[0] is str:
            return {"type": "object", "additionalProperties": self.schema(arguments[1], where)}
        if origin in _ARRAYS and arguments:
            return self._array(origin, arguments, where)
        raise OptionError(
            f"json_schema: {where} is of type {kind!r}, which has no JSON form. Use str, int, "
            "float, bool, None, Literal, Enum, dates, UUID, Decimal, list[...], tuple[...], "
            "set[...], dict[str, ...], a union, a dataclass, a TypedDict or a NamedTuple.",
            option="json_schema",
        )

    def _array(self, origin: Any, arguments: tuple[Any, ...], where: str) -> Schema:
        if origin is tuple and arguments[1:] != (Ellipsis,):
            items = [self.schema(part, where) for part in arguments]
            return {"type": "array", "prefixItems": items}
        unique = {"uniqueItems": True} if origin in (set, frozenset) else {}
        return {"type": "array", "items": self.schema(arguments[0], where), **unique}

    def _structure(self, cls: Any) -> Schema:
        name = self._names.get(cls)
        if name is None:
            name = re.sub(r"\W", "_", cls.__qualname__)
            name = name if name not in self.schemas else f"{name}.{len(self.schemas)}"
            self._names[cls] = name
            self.schemas[name] = {}  # reserves the order and stops recursion
            properties = {
                field: self.schema(kind, f"{cls.__name__}.{field}")
                for field, kind in _arguments(cls).items()
            }
            if _is_named_tuple(cls):
                self.schemas[name] = {"type": "array", "prefixItems": list(properties.values())}
            else:
                self.schemas[name] = {
                    "type": "object",
                    "properties": properties,
                    "required": [field for field in properties if _is_required(cls, field)],
                    "additionalProperties": False,
                }
        return {"$ref": f"#/$defs/{name}"}


def _constrained(kind: Any, schema: Schema, where: str) -> Schema:
    """Return ``schema`` with the constraints of an ``Annotated`` type.

    Raises:
        OptionError: A constraint is not msgspec's, or does not fit the type.
    """
    import msgspec

    for constraint in kind.__metadata__:
        if isinstance(constraint, str) or type(constraint).__name__ == "Doc":
            continue  # annotations for readers
        if not isinstance(constraint, msgspec.Meta):
            raise OptionError(
                f"json_schema: {where} has the annotation {constraint!r:.80}, whose meaning is not "
                "known. Use msgspec.Meta, or a pydantic model.",
                option="json_schema",
            )
    try:
        msgspec.json.schema(_erased(kind))
    except TypeError as error:
        raise OptionError(f"json_schema: {where}: {error}.", option="json_schema") from error
    for meta in (meta for meta in kind.__metadata__ if isinstance(meta, msgspec.Meta)):
        found = {word: getattr(meta, name) for name, word in _BOUNDS.items()}
        if meta.min_length is not None or meta.max_length is not None:
            what = _LENGTHS[schema.get("type", "string")]
            found |= {f"min{what}": meta.min_length, f"max{what}": meta.max_length}
        if meta.tz is False:
            found["timezone"] = "none"  # refused as an unknown keyword: grammars write a zone
        found |= meta.extra_json_schema or {}
        schema = schema | {word: value for word, value in found.items() if value is not None}
    return schema


def _erased(kind: Any) -> Any:
    """Return an ``Annotated`` type in a form that msgspec supports: without its item types."""
    import msgspec

    base = kind.__origin__
    origin = get_origin(base)
    metas = [meta for meta in kind.__metadata__ if isinstance(meta, msgspec.Meta)]
    if origin in (*_ARRAYS, dict):
        base = dict if origin is dict else list
    for meta in metas:
        base = Annotated[base, meta]
    return base


def _is_required(cls: Any, field: str) -> bool:
    """Whether an answer must have a field; all fields of a dataclass are required."""
    if not typing.is_typeddict(cls):
        return True
    origin = get_origin(_hints(cls)[field])
    return origin is Required or (origin is not NotRequired and field in cls.__required_keys__)


def _json_constant(value: Any, where: str) -> Any:
    """Return ``value`` if it survives a round trip through JSON with the same type."""
    try:
        copy = plain_json(value)
    except ValueError:
        copy = Ellipsis
    if type(copy) is not type(value) or copy != value:
        raise OptionError(
            f"json_schema: {where} may be {value!r:.80}, which JSON cannot hold. Use text, "
            "numbers, True, False or None.",
            option="json_schema",
        )
    return copy


def _hints(cls: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls, include_extras=True)
    except Exception as error:  # an annotation may be any expression
        raise OptionError(
            f"json_schema={cls.__name__}: the types of its fields cannot be resolved: {error}. "
            "Define the class and its field types at the top level of a module.",
            option="json_schema",
        ) from error


def _arguments(cls: Any) -> dict[str, Any]:
    """Return names and types of the values that build an instance.

    For a dataclass these are the parameters of ``__init__``.
    """
    hints = _hints(cls)
    if not dataclasses.is_dataclass(cls):
        return hints
    taken = {field.name for field in dataclasses.fields(cls) if field.init}
    return {
        name: kind.type if isinstance(kind, dataclasses.InitVar) else kind
        for name, kind in hints.items()
        if name in taken or isinstance(kind, dataclasses.InitVar)
    }


def build_value(kind: Any, value: Any) -> Any:
    """Return ``value`` as an instance of ``kind``.

    Raises:
        ValueError: ``value`` does not fit ``kind``.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        _convert(_erased(kind), value)  # checks the constraints
        return build_value(kind.__origin__, value)
    if origin in (Required, NotRequired):
        return build_value(arguments[0], value)
    if origin in _UNIONS:
        return _build_first(arguments, value)
    if origin in _ARRAYS:
        return _build_array(origin, arguments, value)
    if origin is dict and isinstance(value, dict):
        return {name: build_value(arguments[1], item) for name, item in value.items()}
    return _build_plain(kind, value)


def _build_array(origin: Any, arguments: tuple[Any, ...], value: Any) -> Any:
    if not isinstance(value, list):
        raise ValueError(f"{value!r} is not a list")  # noqa: TRY004 - as for any wrong value
    alike = origin is not tuple or Ellipsis in arguments
    kinds = arguments[:1] * len(value) if alike else arguments
    return origin(build_value(part, item) for part, item in zip(kinds, value, strict=True))


def _build_plain(kind: Any, value: Any) -> Any:
    if any(kind is known for known in _CONVERTED):
        return _convert(kind, value)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind(value)
    if is_structure(kind):
        return _build_instance(kind, value)
    return _build_simple(kind, value)


def _convert(kind: Any, value: Any) -> Any:
    import msgspec

    return msgspec.convert(value, kind)


def _build_instance(cls: Any, value: Any) -> Any:
    """Return an instance of a structure, building its simple fields first.

    Simple fields distinguish the members of a union before nested unions are built. Otherwise
    each nested union would be tried again for every member of the unions above it.
    """
    kinds = _arguments(cls)
    if _is_named_tuple(cls) and isinstance(value, list):
        value = dict(zip(kinds, value, strict=True))
    required = {name for name in kinds if _is_required(cls, name)}
    if not isinstance(value, dict) or not required <= value.keys() <= kinds.keys():
        raise ValueError(f"{value!r} does not have the fields of {cls.__name__}")
    built = {}
    for name in sorted(value, key=lambda name: _is_nested(kinds[name])):
        built[name] = build_value(kinds[name], value[name])
    return cls(**{name: built[name] for name in value})


def _is_nested(kind: Any) -> bool:
    return is_structure(kind) or get_origin(kind) not in (None, Literal)


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
        if any(value == known and type(value) is type(known) for known in get_args(kind)):
            return value
        raise ValueError(f"{value!r} is not one of {get_args(kind)}")
    if kind is not Any and type(value) is not (type(None) if kind is None else kind):
        raise ValueError(f"{value!r} is not a {kind}")
    return value
