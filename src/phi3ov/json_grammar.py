"""JSON schemas to the grammars that openvino-genai enforces: a closed subset, and no guesses.

Whatever a finished answer is, it fits the schema. A keyword that cannot be enforced is refused
by its name; genai's own conversion ignores some in silence. Between tokens there is exactly
the white space that ``json.dumps`` writes, so a model cannot go on with spaces for ever.
Numbers have at most 15 digits, and the members of an object come in the schema's order.
"""

from __future__ import annotations

import json
from typing import Any

from .errors import OptionError
from .grammar import (
    MOST_REPETITIONS,
    alternatives,
    literal,
    regex_grammar,
    repeat,
    rules,
)
from .json_values import (
    ANY_DEPTH,
    CHARACTER,
    FORMATS,
    NUMBER,
    QUOTE,
    STRING,
    integers_between,
    listed,
    spell_in_string,
    value_rules,
)

MOST_SCHEMAS = 1000
"""The most parts that a schema may have."""
_DEEPEST = 32
_MOST_INTEGER = 10**15 - 1

_ANNOTATIONS = {
    "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly",
    "$comment", "$schema", "$id", "$defs", "definitions", "discriminator",
}  # fmt: skip
_KEYWORDS: dict[str, set[str]] = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "string": {"minLength", "maxLength", "pattern", "format"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "number": set(),
    "boolean": set(),
    "null": set(),
}


def json_grammar(schema: Any) -> str:
    """Return the grammar of JSON texts that fit ``schema``; its first rule is ``answer``.

    Raises:
        OptionError: The schema is none, has a keyword that cannot be enforced, no value at
            all, or is too large.
    """
    return _Compiler(schema).compile()


class _Compiler:
    """Turns one schema, with its definitions, into rules."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._rules: dict[str, str] = {}
        self._references: dict[str, str] = {}  # pointer to rule
        self._finite: set[str] = set()  # pointers that have a finite value
        self._count = 0
        self._size = 0

    def compile(self) -> str:
        answer = self._expression(self._root, "schema", 0)
        done = 0
        while done < len(self._references):
            pointer, name = list(self._references.items())[done]
            self._rules[name] = self._expression(self._resolve(pointer, pointer), pointer, 0)
            done += 1
        self._require_finite()
        return rules(answer, self._rules | value_rules())

    def _fail(self, where: str, why: str) -> OptionError:
        return OptionError(f"json_schema: {where} {why}")

    def _rule(self, body: str) -> str:
        name = f"part{len(self._rules)}"
        self._rules[name] = body
        return name

    def _expression(self, schema: Any, where: str, depth: int) -> str:
        self._count += 1
        if self._count > MOST_SCHEMAS or depth > _DEEPEST:
            limit = f"{MOST_SCHEMAS} parts, {_DEEPEST} of them in each other"
            raise self._fail(where, f"makes the schema too large: at most {limit}.")
        if schema is True or (isinstance(schema, dict) and schema.keys() <= _ANNOTATIONS):
            return f"json_value{ANY_DEPTH}"
        if not isinstance(schema, dict):
            raise self._fail(where, f"is {schema!r}, which is no schema that has a value.")
        for keyword in ("$ref", "const", "enum", "anyOf", "oneOf", "allOf"):
            if keyword in schema:
                self._require_alone(schema, keyword, where)
                return self._combined(schema, keyword, where, depth)
        return self._typed(schema, where, depth)

    def _require_alone(self, schema: dict[str, Any], keyword: str, where: str) -> None:
        allowed = {keyword, "type"} if keyword in ("const", "enum") else {keyword}
        others = sorted(schema.keys() - _ANNOTATIONS - allowed)
        if others:
            raise self._fail(where, f"has {', '.join(others)} beside {keyword}: put them inside.")

    def _combined(self, schema: dict[str, Any], keyword: str, where: str, depth: int) -> str:
        value = schema[keyword]
        if keyword == "$ref":
            return self._reference(value, where)
        if keyword == "const":
            return self._constant(value, where)
        if not isinstance(value, list) or not value:
            raise self._fail(where, f"has {keyword}={value!r}, which must be a list of some.")
        if keyword == "enum":
            return alternatives(self._constant(one, where) for one in value)
        if keyword == "oneOf" and "discriminator" not in schema:
            raise self._fail(where, "has oneOf; a grammar cannot exclude the others. Use anyOf.")
        if keyword == "allOf" and len(value) > 1:
            raise self._fail(where, "has allOf of several; write them as one schema.")
        parts = (
            self._expression(one, f"{where}.{keyword}[{index}]", depth + 1)
            for index, one in enumerate(value)
        )
        return alternatives(list(parts))

    def _constant(self, value: Any, where: str) -> str:
        text = json.dumps(value, ensure_ascii=False)
        self._spend(len(text) // 50, where)
        if any("\ud800" <= one <= "\udfff" for one in text):
            raise self._fail(where, "holds a lone surrogate, which no text has.")
        return literal(text)

    def _spend(self, size: int, where: str) -> None:
        self._size += size
        if self._size > MOST_REPETITIONS:
            raise self._fail(where, f"makes more than {MOST_REPETITIONS} repetitions in all.")

    def _reference(self, pointer: Any, where: str) -> str:
        if not isinstance(pointer, str) or not pointer.startswith("#"):
            raise self._fail(where, f"has $ref={pointer!r}, which is not within the schema.")
        if pointer not in self._references:
            name = self._references[pointer] = f"reference{len(self._references)}"
            self._rules[name] = ""  # `compile` writes it: a chain of them needs no stack
            self._resolve(pointer, where)
        return self._references[pointer]

    def _resolve(self, pointer: str, where: str) -> Any:
        found = self._root
        for step in pointer.removeprefix("#").split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")  # noqa: PLW2901
            if not isinstance(found, dict) or step not in found:
                raise self._fail(where, f"has $ref={pointer!r}, and there is nothing.")
            found = found[step]
        return found

    def _typed(self, schema: dict[str, Any], where: str, depth: int) -> str:
        types = schema.get("type")
        if types is None:
            types = [one for one, words in _KEYWORDS.items() if words & schema.keys()][:1]
        types = [types] if isinstance(types, str) else types
        if not isinstance(types, list) or not types or not all(isinstance(t, str) for t in types):
            raise self._fail(where, f"has type={schema.get('type')!r}; give a type's name.")
        unknown = [one for one in types if one not in _KEYWORDS]
        if unknown:
            raise self._fail(where, f"has type={unknown[0]!r}; types: {', '.join(_KEYWORDS)}.")
        known = {"type"}.union(*(_KEYWORDS[one] for one in types)) | _ANNOTATIONS
        extra = sorted(schema.keys() - known)
        if extra:
            raise self._fail(
                where,
                f"has {extra[0]!r}, which cannot be enforced for type={schema.get('type')!r}. "
                "Leave it out and check the answer yourself.",
            )
        makers = {"object": self._object, "array": self._array}
        simple = {"string": self._text, "integer": self._integer}
        parts = []
        for one in types:
            if one in makers:
                parts.append(makers[one](schema, where, depth))
            elif one in simple:
                parts.append(simple[one](schema, where))
            else:
                parts.append(
                    {"number": NUMBER, "null": '"null"', "boolean": '("true" | "false")'}[one]
                )
        return alternatives(parts)

    def _object(self, schema: dict[str, Any], where: str, depth: int) -> str:
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        if not isinstance(properties, dict) or not isinstance(required, list):
            raise self._fail(where, "has properties or required of a wrong type.")
        missing = [name for name in required if name not in properties]
        if missing:
            raise self._fail(where, f"requires {missing[0]!r}, which is not in its properties.")
        more = schema.get("additionalProperties", True)
        if not properties:
            if more is False:
                return literal("{}")
            return self._map(self._expression(more, f"{where}.additionalProperties", depth + 1))
        members = [
            (
                f"{self._constant(name, where)} {literal(': ')} "
                + self._expression(one, f"{where}.{name}", depth + 1),
                name in required,
            )
            for name, one in properties.items()
        ]
        # From the last to the first: what may follow a member, and what may follow nothing.
        after, first = '""', '""'
        for member, needed in reversed(members):
            follows = f"{member} {after}"
            later = f"{literal(', ')} {member}"
            first = follows if needed else alternatives([follows, first])
            after = self._rule(f"{later if needed else repeat(later, 0, 1)} {after}")
            first = self._rule(first)
        return f"{literal('{')} {first} {literal('}')}"

    def _map(self, value: str) -> str:
        member = f"{STRING} {literal(': ')} {value}"
        return f"{literal('{')} {listed(member, 0, None)} {literal('}')}"

    def _array(self, schema: dict[str, Any], where: str, depth: int) -> str:
        least = self._bound(schema, "minItems", where) or 0
        most = self._bound(schema, "maxItems", where)
        prefix = schema.get("prefixItems")
        if prefix is not None:
            fixed = isinstance(prefix, list) and prefix and schema.get("items", False) is False
            if not fixed or least > len(prefix) or (most is not None and most < len(prefix)):
                raise self._fail(where, "has prefixItems beside more or fewer items.")
            parts = [
                self._expression(one, f"{where}.prefixItems[{index}]", depth + 1)
                for index, one in enumerate(prefix)
            ]
            separator = f" {literal(', ')} "
            return f"{literal('[')} {separator.join(parts)} {literal(']')}"
        if most is not None and most < least:
            raise self._fail(where, f"has minItems={least} above maxItems={most}.")
        item = self._rule(self._expression(schema.get("items", True), f"{where}.items", depth + 1))
        self._spend(most or least, where)
        return f"{literal('[')} {listed(item, least, most)} {literal(']')}"

    def _text(self, schema: dict[str, Any], where: str) -> str:
        given = [one for one in ("pattern", "format", "minLength", "maxLength") if one in schema]
        if len(given) > 1 and given[0] in ("pattern", "format"):
            raise self._fail(where, f"has {given[1]} beside {given[0]}; give one of them.")
        if "pattern" in schema:
            pattern = schema["pattern"]
            body = regex_grammar(pattern, spell_in_string, name=f"json_schema: {where}.pattern")
            return f"{QUOTE} {body} {QUOTE}"
        if "format" in schema:
            if schema["format"] not in FORMATS:
                raise self._fail(
                    where, f"has format={schema['format']!r}; known: {', '.join(FORMATS)}."
                )
            return f"{QUOTE} {regex_grammar(FORMATS[schema['format']])} {QUOTE}"
        least = self._bound(schema, "minLength", where) or 0
        most = self._bound(schema, "maxLength", where)
        if most is not None and most < least:
            raise self._fail(where, f"has minLength={least} above maxLength={most}.")
        self._spend(max(least, most or 0), where)
        return f"{QUOTE} {repeat(CHARACTER, least, most)} {QUOTE}"

    def _bound(self, schema: dict[str, Any], name: str, where: str) -> int | None:
        value = schema.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self._fail(where, f"has {name}={value!r}, which must be an integer of 0 or more.")
        return value

    def _integer(self, schema: dict[str, Any], where: str) -> str:
        low, high = -_MOST_INTEGER, _MOST_INTEGER
        for name in _KEYWORDS["integer"] & schema.keys():
            value = schema[name]
            if isinstance(value, bool) or not isinstance(value, int | float) or value % 1 != 0:
                raise self._fail(where, f"has {name}={value!r}, which must be a whole number.")
            if "inimum" in name:
                low = max(low, int(value) + (name == "exclusiveMinimum"))
            else:
                high = min(high, int(value) - (name == "exclusiveMaximum"))
        if low > high:
            raise self._fail(where, "has a minimum above its maximum.")
        parts = []
        if low < 0:
            parts += [f'"-" {one}' for one in integers_between(max(1, -high), -low)]
        if high >= 0:
            parts += integers_between(max(0, low), high)
        return alternatives(parts)

    def _require_finite(self) -> None:
        """Refuse references that could only be followed for ever."""
        while True:
            found = {
                pointer
                for pointer in self._references
                if pointer not in self._finite and self._is_finite(self._resolve(pointer, "schema"))
            }
            if not found:
                break
            self._finite |= found
        endless = sorted(self._references.keys() - self._finite)
        if endless:
            raise self._fail(endless[0], "has no finite value: it always holds another of itself.")

    def _is_finite(self, schema: Any) -> bool:
        if not isinstance(schema, dict):
            return True
        if "$ref" in schema:
            return schema["$ref"] in self._finite
        for keyword in ("anyOf", "oneOf", "allOf"):
            if keyword in schema:
                return any(self._is_finite(one) for one in schema[keyword])
        if isinstance(schema.get("type"), list) and len(schema["type"]) > 1:
            return True  # of several types, one at least holds nothing
        needed = [schema.get("properties", {})[name] for name in schema.get("required", [])]
        needed += schema.get("prefixItems", [])
        if schema.get("minItems"):
            needed.append(schema.get("items", True))
        return all(self._is_finite(one) for one in needed)
