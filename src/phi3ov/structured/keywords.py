"""Reads and checks the keywords of a JSON schema.

``json_schema.py`` compiles them to a grammar.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from ..errors import OptionError
from ..validation import is_integer, is_number
from .numbers import DIGITS, NumberRange

WAY_OUT = "Leave it out and check the answer yourself."
MOST_REMAINDERS = 1000
"""Largest ``multipleOf``, in units of the last digit: the automaton has a state for each
remainder and digit."""

ANNOTATIONS = {
    "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly",
    "$comment", "$schema", "$id", "$defs", "definitions", "discriminator",
}  # fmt: skip
_BOUNDS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
KEYWORDS: dict[str, set[str]] = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems", "uniqueItems"},
    "string": {"minLength", "maxLength", "pattern", "format"},
    "integer": _BOUNDS | {"multipleOf"},
    "number": _BOUNDS | {"multipleOf"},
    "boolean": set(),
    "null": set(),
}
"""The types, and the keywords that can be enforced for each."""
MOST_UNIQUE = 100
"""Maximum number of constants among which ``uniqueItems`` can be enforced."""


def refusal(where: str, why: str) -> OptionError:
    """Return the error for the schema at ``where``, for the caller to raise."""
    place = where if len(where) <= 200 else f"{where[:100]} ... {where[-90:]}"
    return OptionError(f"json_schema: {place} {why}", option="json_schema")


def read_types(schema: dict[str, Any], where: str) -> list[str]:
    """Return the types that ``schema`` names, or else the type that its keywords imply.

    Raises:
        OptionError: The type is missing or unknown.
    """
    types = schema.get("type")
    if "type" not in schema:
        types = [name for name, words in KEYWORDS.items() if words & schema.keys()][:1]
        if not types:
            raise _unenforced(schema, ANNOTATIONS, where)
    types = [types] if isinstance(types, str) else types
    if not isinstance(types, list) or not types or not all(isinstance(t, str) for t in types):
        raise refusal(where, f"has type={schema.get('type')!r:.80}; give a type's name.")
    unknown = [name for name in types if name not in KEYWORDS]
    if unknown:
        raise refusal(where, f"has type={unknown[0]!r:.80}; types: {', '.join(KEYWORDS)}.")
    return types


def require_enforceable(schema: dict[str, Any], types: list[str], where: str) -> None:
    """Check that every keyword can be enforced for values of ``types``.

    Raises:
        OptionError: A keyword cannot be enforced.
    """
    known = {"type"}.union(*(KEYWORDS[name] for name in types)) | ANNOTATIONS
    if schema.keys() - known:
        raise _unenforced(schema, known, where)


def _unenforced(schema: dict[str, Any], known: set[str], where: str) -> OptionError:
    keyword, kind = min(schema.keys() - known), schema.get("type")
    of_type = "" if kind is None else f" for type={kind!r:.80}"
    return refusal(
        where,
        f"has {keyword!r:.80}, which cannot be enforced{of_type}. {WAY_OUT}",
    )


def require_alone(schema: dict[str, Any], keyword: str, where: str) -> None:
    """Check that ``schema`` has no keyword to enforce other than ``keyword``.

    Raises:
        OptionError: It has another keyword to enforce.
    """
    allowed = {keyword, "type"} if keyword in ("const", "enum") else {keyword}
    others = sorted(schema.keys() - ANNOTATIONS - allowed)
    if others:
        raise refusal(where, f"has {', '.join(others):.80} beside {keyword}: put them inside.")


def read_list(schema: dict[str, Any], keyword: str, where: str) -> list[Any]:
    """Return the list in ``keyword``.

    Raises:
        OptionError: The value is not a list, or the list is empty.
    """
    value = schema[keyword]
    if not isinstance(value, list) or not value:
        raise refusal(where, f"has {keyword}={value!r:.80}, which must be a list of some.")
    return value


def read_constants(schema: dict[str, Any], where: str) -> list[Any]:
    """Return the values of ``const`` or ``enum`` that match the ``type`` beside it.

    Raises:
        OptionError: No value matches.
    """
    values = [schema["const"]] if "const" in schema else read_list(schema, "enum", where)
    if "type" not in schema:
        return values
    types = read_types(schema, where)
    fitting = [value for value in values if any(_is_of_type(value, name) for name in types)]
    if not fitting:
        raise refusal(where, f"has no value of type={schema['type']!r:.80} among {values!r:.80}.")
    return fitting


def _is_of_type(value: Any, kind: str) -> bool:
    if isinstance(value, bool) or value is None:
        return kind == ("null" if value is None else "boolean")
    if kind == "integer":
        return isinstance(value, int | float) and value % 1 == 0
    kinds = {"object": dict, "array": list, "string": str, "number": (int, float)}
    return kind in kinds and isinstance(value, kinds[kind])  # type: ignore[arg-type]


def read_count(schema: dict[str, Any], keyword: str, where: str) -> int | None:
    """Return the value of a keyword that holds a length or a number of items; None without it.

    Raises:
        OptionError: The value is not an integer of at least 0.
    """
    if keyword not in schema:
        return None
    value = schema[keyword]
    if not is_integer(value) or value < 0:
        raise refusal(where, f"has {keyword}={value!r:.80}, which must be an integer of 0 or more.")
    return value


def read_counts(schema: dict[str, Any], what: str, where: str) -> tuple[int, int | None]:
    """Return minimum and maximum of ``"Items"`` or ``"Length"``; None for no maximum.

    Raises:
        OptionError: A value is not an integer of at least 0, or the minimum exceeds the maximum.
    """
    least = read_count(schema, f"min{what}", where) or 0
    most = read_count(schema, f"max{what}", where)
    if most is not None and most < least:
        raise refusal(where, f"has min{what}={least} above max{what}={most}.")
    return least, most


def read_range(schema: dict[str, Any], where: str, *, whole: bool) -> NumberRange | None:
    """Return the numbers that the bounds and ``multipleOf`` allow; None without such keywords.

    Args:
        schema: A schema of type ``number`` or ``integer``.
        where: Location of the schema, for messages.
        whole: Whether it allows integers only.

    Raises:
        OptionError: A bound is not a number, ``multipleOf`` is not above 0, or no number is
            allowed.
    """
    given: dict[str, Decimal] = {}
    for keyword in sorted(KEYWORDS["number"] & schema.keys()):
        value = schema[keyword]
        if not is_number(value) or (keyword == "multipleOf" and value <= 0):
            above = " above 0" if keyword == "multipleOf" else ""
            raise refusal(where, f"has {keyword}={value!r:.80}, which must be a number{above}.")
        given[keyword] = Decimal(str(value))
    if not given and not whole:
        return None
    found = NumberRange.between(
        given.get("minimum"),
        given.get("maximum"),
        above=given.get("exclusiveMinimum"),
        below=given.get("exclusiveMaximum"),
        step=given.get("multipleOf"),
        whole=whole,
    )
    if found.low > found.high:
        raise refusal(where, f"has no number between its bounds, or needs over {DIGITS} digits.")
    if found.step > MOST_REMAINDERS:
        raise refusal(
            where,
            f"has multipleOf={schema['multipleOf']!r:.80}; at most {MOST_REMAINDERS} in units of "
            "its last digit.",
        )
    return found


def read_unique(schema: dict[str, Any], where: str) -> list[Any] | None:
    """Return the distinct constants allowed as items of a ``uniqueItems`` array.

    Returns None if items may repeat.

    Raises:
        OptionError: ``uniqueItems`` is not a boolean, or the items are not simple constants.
    """
    unique = schema.get("uniqueItems", False)
    if not isinstance(unique, bool):
        raise refusal(where, f"has uniqueItems={unique!r:.80}, which must be true or false.")
    if not unique:
        return None
    items = schema.get("items")
    if items == {"type": "boolean"}:
        return [False, True]
    values: list[Any] = []
    if isinstance(items, dict) and items.keys() & {"const", "enum"}:
        require_alone(items, "const" if "const" in items else "enum", where)
        values = read_constants(items, where)
    simple = all(value is None or isinstance(value, str | int | float) for value in values)
    if not values or not simple or len(values) > MOST_UNIQUE or "prefixItems" in schema:
        raise refusal(
            where,
            "has uniqueItems, which can be enforced only for items that are an enum of up to "
            f"{MOST_UNIQUE} texts, numbers, true, false and null. {WAY_OUT}",
        )
    apart: list[Any] = []
    for value in values:  # unlike in Python, true and 1 differ in JSON
        if not any(value == a and isinstance(value, bool) == isinstance(a, bool) for a in apart):
            apart.append(value)
    return apart


def read_properties(schema: dict[str, Any], where: str) -> tuple[dict[str, Any], set[str]]:
    """Return the properties, and the names of the required ones.

    Raises:
        OptionError: An object keyword has a wrong type, or a required property is not declared.
    """
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(properties, dict):
        raise refusal(where, f"has properties={properties!r:.80}, which must map names to schemas.")
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise refusal(where, f"has required={required!r:.80}, which must be a list of names.")
    missing = [name for name in required if name not in properties]
    if missing:
        raise refusal(where, f"requires {missing[0]!r:.80}, which is not in its properties.")
    more = schema.get("additionalProperties", True)
    if not isinstance(more, bool | dict):
        raise refusal(where, f"has additionalProperties={more!r:.80}, which is not a schema.")
    return properties, set(required)


def resolve(root: Any, pointer: Any, where: str) -> Any:
    """Return the schema at a JSON pointer within ``root``, such as ``#/$defs/name``.

    Raises:
        OptionError: The reference is of another kind (an anchor, a document), or its target does
            not exist.
    """
    from urllib.parse import unquote  # a pointer in a reference is part of a URL

    if not isinstance(pointer, str) or not (pointer == "#" or pointer.startswith("#/")):
        raise refusal(
            where,
            f"has $ref={pointer!r:.80}, which is not within the schema: give a pointer such as "
            "#/$defs/name.",
        )
    found = root
    for encoded in pointer.split("/")[1:]:
        step = unquote(encoded).replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and step in map(str, range(len(found))):
            found = found[int(step)]
        elif isinstance(found, dict) and step in found:
            if found is not root and isinstance(found.get("$id"), str):
                raise nested_id(where)
            found = found[step]
        else:
            raise refusal(where, f"has $ref={pointer!r:.80}, and there is nothing.")
    return found


def nested_id(where: str) -> OptionError:
    """Return the error for an ``$id`` below the root, which would rebase references."""
    return refusal(where, "is in a part with an $id, where references mean others. Leave $id out.")


def direct_references(schema: Any) -> set[str]:
    """Return the pointers that apply to the value itself, not to its properties or items."""
    if not isinstance(schema, dict):
        return set()
    found = {schema["$ref"]} if "$ref" in schema else set()
    parts = (part for keyword in ("anyOf", "oneOf", "allOf") for part in schema.get(keyword, ()))
    return found.union(*map(direct_references, parts))


def follow(root: Any, schema: Any, where: str) -> tuple[list[str], Any]:
    """Return the pointers of a chain of references, and the schema at its end.

    Raises:
        OptionError: A pointer has no target, or the references form a cycle.
    """
    pointers: list[str] = []
    while isinstance(schema, dict) and "$ref" in schema:
        require_alone(schema, "$ref", where)
        pointer = schema["$ref"]
        schema = resolve(root, pointer, where)
        if pointer in pointers:
            raise refusal(where, "has no finite value: its references go round in circles.")
        pointers.append(pointer)
    return pointers, schema


def require_tag(schema: Any, name: str) -> Any:
    """Return the schema with the property ``name`` added to the required ones."""
    return schema | {"required": [*schema.get("required", []), name]}


def read_tagged(root: Any, schema: dict[str, Any], where: str) -> tuple[str, list[Any]]:
    """Return the discriminator property of ``oneOf``, and its members.

    Raises:
        OptionError: No discriminator names a property, or its values do not tell the members
            apart. A grammar could then allow an answer that fits two members.
    """
    given = schema.get("discriminator")
    name = given.get("propertyName") if isinstance(given, dict) else None
    if not isinstance(name, str):
        raise refusal(
            where,
            "has oneOf without a discriminator that names a property; a grammar cannot exclude "
            "the others. Use anyOf.",
        )
    seen: list[Any] = []
    branches = read_list(schema, "oneOf", where)
    for index, branch in enumerate(branches):
        place = f"{where}.oneOf[{index}]"
        tags = _tags(root, branch, name, place)
        if not tags or any(tag in seen for tag in tags):
            raise refusal(
                place,
                f"cannot be distinguished from the others by {name!r:.80}: each must be an object "
                "whose property of that name has a unique const or enum. Use anyOf.",
            )
        seen += tags
    return name, branches


def _tags(root: Any, branch: Any, name: str, where: str) -> list[Any]:
    """Return the constant values of a member's property ``name``; empty if they are unknown."""
    _, found = follow(root, branch, where)
    if not isinstance(found, dict) or found.get("type", "object") != "object":
        return []
    if not isinstance(found.get("properties"), dict) or found.keys() & {"const", "enum", "anyOf"}:
        return []
    _, tag = follow(root, found["properties"].get(name), where)
    if not isinstance(tag, dict) or not tag.keys() & {"const", "enum"}:
        return []
    return read_constants(tag, where)
