"""Relaxes a schema to what a grammar can enforce, for answers that are checked when finished."""

from __future__ import annotations

from typing import Any

from ..errors import OptionError
from .json_values import FORMATS
from .keywords import ANNOTATIONS, KEYWORDS, read_range, read_types, read_unique
from .regex import regex_grammar

_DEEPEST = 64
"""Maximum nesting depth; deeper parts stay unchanged, and the compiler refuses them."""


def relaxed(schema: Any, depth: int = 0) -> Any:
    """Return a schema whose keywords can all be enforced.

    It keeps as much of ``schema`` as a grammar can enforce. Malformed parts stay unchanged.

    Example:
        >>> relaxed({"type": "array", "items": {"type": "string"}, "uniqueItems": True})
        {'type': 'array', 'items': {'type': 'string'}}
    """
    if not isinstance(schema, dict) or depth > _DEEPEST:
        return schema
    about = {word: value for word, value in schema.items() if word in ANNOTATIONS}
    for place in ("$defs", "definitions"):
        if isinstance(about.get(place), dict):
            about[place] = {name: relaxed(part, depth + 1) for name, part in about[place].items()}
    for keyword in ("$ref", "const", "enum"):
        if keyword in schema:
            kept = {keyword, "type"} if keyword != "$ref" else {keyword}
            return about | {word: value for word, value in schema.items() if word in kept}
    for keyword in ("anyOf", "oneOf", "allOf"):
        members = schema.get(keyword)
        if isinstance(members, list):
            members = members[:1] if keyword == "allOf" else members
            return about | {"anyOf": [relaxed(member, depth + 1) for member in members]}
    if "type" not in schema and not any(words & schema.keys() for words in KEYWORDS.values()):
        return about
    return about | _relaxed_type(schema, depth)


def _relaxed_type(schema: dict[str, Any], depth: int) -> dict[str, Any]:
    """Relax a schema that has a type, or keywords of a type."""
    try:
        types = read_types(schema, "schema")
    except OptionError:
        return schema  # malformed
    known = {"type"}.union(*(KEYWORDS[name] for name in types))
    kept = {word: value for word, value in schema.items() if word in known}
    _relax_text(kept)
    _drop_refused(kept, "uniqueItems", lambda: read_unique(kept, "schema"))
    if {"integer", "number"} & set(types):
        _drop_refused(kept, "multipleOf", lambda: read_range(kept, "schema", whole=False))
    if isinstance(kept.get("prefixItems"), list):
        kept.pop("items", None)
        kept["prefixItems"] = [relaxed(part, depth + 1) for part in kept["prefixItems"]]
    for keyword in ("items", "additionalProperties"):
        if keyword in kept:
            kept[keyword] = relaxed(kept[keyword], depth + 1)
    properties, required = kept.get("properties", {}), kept.get("required")
    if isinstance(properties, dict) and isinstance(required, list):
        names = [name for name in required if isinstance(name, str)]
        properties = properties | {name: {} for name in names if name not in properties}
    if isinstance(properties, dict) and properties:
        kept["properties"] = {name: relaxed(part, depth + 1) for name, part in properties.items()}
    return kept


def _relax_text(kept: dict[str, Any]) -> None:
    """Keep only the first of pattern, format and lengths that can be enforced."""
    if isinstance(kept.get("format"), str) and kept["format"] not in FORMATS:
        del kept["format"]
    if "pattern" in kept:
        _drop_refused(kept, "pattern", lambda: regex_grammar(kept["pattern"]))
    if "pattern" in kept or "format" in kept:
        for word in ("minLength", "maxLength", *(("format",) if "pattern" in kept else ())):
            kept.pop(word, None)


def _drop_refused(kept: dict[str, Any], keyword: str, read: Any) -> None:
    if keyword in kept:
        try:
            read()
        except OptionError:
            del kept[keyword]
