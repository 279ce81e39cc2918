"""Compiles JSON schemas to grammars for openvino-genai.

A finished answer fits its schema: a keyword that cannot be enforced is refused by name. White
space between JSON tokens is exactly that of ``json.dumps``, so a model cannot write spaces without
end. Integers have at most 15 digits, and the members of an object come in the schema's order.
``keywords.py`` reads the keywords.
"""

from __future__ import annotations

import json
import re
from typing import Any

from ..errors import OptionError
from .ebnf import MOST_REPETITIONS, alternatives, literal, repeat
from .json_values import (
    ANY_DEPTH,
    CHARACTER,
    FORMATS,
    NUMBER,
    QUOTE,
    STRING,
    listed,
    spell_in_string,
)
from .keywords import (
    ANNOTATIONS,
    WAY_OUT,
    direct_references,
    follow,
    nested_id,
    read_constants,
    read_counts,
    read_list,
    read_properties,
    read_range,
    read_tagged,
    read_types,
    read_unique,
    refusal,
    require_alone,
    require_enforceable,
    require_tag,
    resolve,
)
from .parts import GrammarPart, grammar
from .regex import regex_grammar
from .relaxation import relaxed

MOST_SCHEMAS = 1000
"""Maximum number of subschemas in a schema."""
_DEEPEST = 32
_RESERVED = ("answer", "class", "json_")
"""Prefixes that the names of all other rules use."""
_CHARACTERS_PER_REPETITION = 5
"""Number of characters of a constant that cost as much as one repetition."""


def json_grammar(schema: Any, *, lenient: bool = False) -> str:
    """Return the grammar of JSON texts that fit ``schema``; its first rule is ``answer``.

    Each part of a schema is written once, so the grammar is about as long as the schema.

    Args:
        schema: A JSON schema.
        lenient: Drop keywords that a grammar cannot enforce instead of refusing them. The grammar
            then allows texts that do not fit, so check the finished answer.

    Raises:
        OptionError: The schema is malformed or too large, has a keyword that cannot be enforced,
            or allows no value.
    """
    compiler = _Compiler(schema, lenient=lenient)
    part = GrammarPart(compiler.compile(), compiler.rules, compiler.size)
    return grammar(part)


def schema_part(schema: Any, name: str) -> GrammarPart:
    r"""Return a schema as part of a larger grammar.

    Args:
        schema: A JSON schema.
        name: Name of its first rule, and prefix of its other rules; must be unique in the grammar.

    Raises:
        OptionError: As `json_grammar`, or ``name`` is not a valid identifier or is reserved.

    Example:
        >>> from phi3ov.structured.parts import grammar, one_of, sequence, text
        >>> cities = schema_part({"enum": ["Paris", "Rome"]}, "city")
        >>> years = schema_part({"type": "integer", "minimum": 1, "maximum": 9}, "year")
        >>> print(grammar(sequence(text("go "), one_of(cities, years))))
        answer ::= "go\u0020" (city | year)
        city ::= ("\u0022Paris\u0022" | "\u0022Rome\u0022")
        year ::= ((year_part1))
        year_part0 ::= ("")
        year_part1 ::= (class0 year_part0)
        class0 ::= [1-9]
    """
    if not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII) or name.startswith(_RESERVED):
        raise OptionError(
            f"name={name!r} cannot name a rule: give ASCII letters, digits and underscores that "
            f"do not begin with {', '.join(_RESERVED)}.",
            option="name",
        )
    compiler = _Compiler(schema, prefix=f"{name}_")
    first = {name: compiler.compile()}
    return GrammarPart(name, first | compiler.rules, compiler.size)


class _Compiler:
    """Compiles one schema, with its definitions, to rules."""

    def __init__(self, root: Any, prefix: str = "", *, lenient: bool = False) -> None:
        self.rules: dict[str, str] = {}
        self.size = 0
        self._root = relaxed(root) if lenient else root
        self._prefix = prefix
        self._names: dict[str, str] = {}  # body to rule
        self._references: dict[tuple[str, str | None], str] = {}  # pointer and tag to rule
        self._pending: list[tuple[str, str | None]] = []
        self._pointers: dict[str, None] = {}  # every followed pointer, in order
        self._count = 0

    def compile(self) -> str:
        """Return the expression for the whole schema, and fill `rules`."""
        answer = self._expression(self._root, "schema", 0)
        while self._pending:
            pointer, tag = key = self._pending.pop()
            schema = resolve(self._root, pointer, pointer)
            schema = schema if tag is None else require_tag(schema, tag)
            self.rules[self._references[key]] = self._expression(schema, pointer, 0)
        self._require_finite()
        self._require_steps()
        return answer

    def _rule(self, body: str, size: int = 0, where: str = "") -> str:
        """Return the name of the rule with this body; equal bodies share one rule."""
        if re.fullmatch(r"\w+", body):
            return body
        if body not in self._names:
            self._spend(size, where)
            self._names[body] = f"{self._prefix}part{len(self.rules)}"
            self.rules[self._names[body]] = body
        return self._names[body]

    def _spend(self, size: int, where: str) -> None:
        self.size += size
        if self.size > MOST_REPETITIONS:
            raise refusal(
                where,
                f"makes the schema too large: it has more than {MOST_REPETITIONS} repetitions, for "
                "which a character of a pattern counts as one, and "
                f"{_CHARACTERS_PER_REPETITION} of constants, names or bounds do.",
            )

    def _expression(self, schema: Any, where: str, depth: int) -> str:
        self._count += 1
        if self._count > MOST_SCHEMAS or depth > _DEEPEST:
            limit = f"{MOST_SCHEMAS} parts, {_DEEPEST} of them in each other"
            raise refusal(where, f"makes the schema too large: at most {limit}.")
        if schema is True:
            return f"json_value{ANY_DEPTH}"
        if not isinstance(schema, dict):
            raise refusal(where, f"is {schema!r:.80}, which no value satisfies.")
        if "$id" in schema and schema is not self._root:
            raise nested_id(where)
        if schema.keys() <= ANNOTATIONS:
            return f"json_value{ANY_DEPTH}"
        for keyword in ("$ref", "const", "enum", "anyOf", "oneOf", "allOf"):
            if keyword in schema:
                require_alone(schema, keyword, where)
                return self._combined(schema, keyword, where, depth)
        return self._typed(schema, where, depth)

    def _combined(self, schema: dict[str, Any], keyword: str, where: str, depth: int) -> str:
        if keyword == "$ref":
            return self._reference(schema["$ref"], where)
        if keyword in ("const", "enum"):
            values = read_constants(schema, where)
            return alternatives([self._constant(value, where) for value in values])
        if keyword == "oneOf":
            return self._tagged(schema, where, depth)
        schemas = read_list(schema, keyword, where)
        if keyword == "allOf" and len(schemas) > 1:
            raise refusal(where, f"has allOf with several members; merge them. {WAY_OUT}")
        parts = [
            self._expression(member, f"{where}.{keyword}[{index}]", depth + 1)
            for index, member in enumerate(schemas)
        ]
        return alternatives(parts)

    def _tagged(self, schema: dict[str, Any], where: str, depth: int) -> str:
        """Compile ``oneOf``: require the discriminator in each member, so that only one fits."""
        tag, branches = read_tagged(self._root, schema, where)
        parts = []
        for index, branch in enumerate(branches):
            place = f"{where}.oneOf[{index}]"
            pointers, found = follow(self._root, branch, place)
            self._pointers |= dict.fromkeys(pointers)
            if pointers:
                parts.append(self._reference(pointers[-1], place, tag))
            else:
                parts.append(self._expression(require_tag(found, tag), place, depth + 1))
        return alternatives(parts)

    def _constant(self, value: Any, where: str) -> str:
        text = json.dumps(value, ensure_ascii=False)
        self._spend(1 + len(text) // _CHARACTERS_PER_REPETITION, where)
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise refusal(where, "holds a lone surrogate, which no text has.")
        return literal(text)

    def _reference(self, pointer: Any, where: str, tag: str | None = None) -> str:
        resolve(self._root, pointer, where)
        key = (pointer, tag)
        if key not in self._references:
            name = self._references[key] = f"{self._prefix}reference{len(self._references)}"
            self.rules[name] = ""  # `compile` writes it later, so long chains do not recurse
            self._pending.append(key)
            self._pointers[pointer] = None
        return self._references[key]

    def _typed(self, schema: dict[str, Any], where: str, depth: int) -> str:
        types = read_types(schema, where)
        require_enforceable(schema, types, where)
        parts = []
        for kind in dict.fromkeys(types):
            if kind == "object":
                parts.append(self._object(schema, where, depth))
            elif kind == "array":
                parts.append(self._array(schema, where, depth))
            elif kind == "string":
                parts.append(self._text(schema, where))
            elif kind in ("integer", "number"):
                if kind == "number" or "number" not in types:  # "number" covers integers
                    parts.append(self._number(schema, where, whole=kind == "integer"))
            else:
                parts.append({"null": '"null"', "boolean": '("true" | "false")'}[kind])
        return alternatives(parts)

    def _object(self, schema: dict[str, Any], where: str, depth: int) -> str:
        properties, required = read_properties(schema, where)
        if not properties:
            more = schema.get("additionalProperties", True)
            if more is False:
                return literal("{}")
            value = self._expression(more, f"{where}.additionalProperties", depth + 1)
            member = f"{STRING} {literal(': ')} {self._rule(value)}"
            return f"{literal('{')} {listed(member, 0, None)} {literal('}')}"
        members = [
            f"{self._constant(name, where)} {literal(': ')} "
            + self._expression(part, f"{where}.{name}", depth + 1)
            for name, part in properties.items()
        ]
        needed = [name in required for name in properties]
        # From the last member to the first: the rule for the members that may come next. No part
        # is optional, because the matcher's time grows with the square of adjacent optional parts.
        choice = ""
        for index in reversed(range(len(members))):
            follows = [] if any(needed[index + 1 :]) else [literal("}")]
            follows += [f"{literal(', ')} {choice}"] if choice else []
            member = f"{members[index]} {alternatives(follows)}"
            skipped = [choice] if choice and not needed[index] else []
            choice = self._rule(alternatives([member, *skipped]))
        first = [choice] if any(needed) else [choice, literal("}")]
        return f"{literal('{')} {alternatives(first)}"

    def _array(self, schema: dict[str, Any], where: str, depth: int) -> str:
        least, most = read_counts(schema, "Items", where)
        if "prefixItems" in schema:
            prefix = read_list(schema, "prefixItems", where)
            fixed = schema.get("items", False) is False
            if not fixed or least > len(prefix) or (most is not None and most < len(prefix)):
                raise refusal(where, "has prefixItems beside more or fewer items.")
            parts = [
                self._expression(part, f"{where}.prefixItems[{index}]", depth + 1)
                for index, part in enumerate(prefix)
            ]
            separator = f" {literal(', ')} "
            return f"{literal('[')} {separator.join(parts)} {literal(']')}"
        values = read_unique(schema, where)
        if values is not None:
            return self._unique(values, least, most, where)
        item = self._rule(self._expression(schema.get("items", True), f"{where}.items", depth + 1))
        self._spend(most or least, where)
        return f"{literal('[')} {listed(item, least, most)} {literal(']')}"

    def _unique(self, values: list[Any], least: int, most: int | None, where: str) -> str:
        """Compile an array of distinct items: a subsequence of ``values``."""
        most = len(values) if most is None else min(most, len(values))
        if least > most:
            raise refusal(where, f"has {least} different items of {len(values)} values.")
        texts = [self._constant(value, where) for value in values]
        # From the last value to the first: `choice[count]` is the expression after `count` items.
        choice = [""] * (most + 1)
        for text in reversed(texts):
            for count in range(most):
                follows = [literal("]")] if count + 1 >= least else []
                follows += [f"{literal(', ')} {choice[count + 1]}"] if choice[count + 1] else []
                found = [f"{text} {alternatives(follows)}"] if follows else []
                found += [choice[count]] if choice[count] else []
                choice[count] = self._rule(alternatives(found), 1, where) if found else ""
        first = [choice[0]] if choice[0] else []
        first += [literal("]")] if least == 0 else []
        return f"{literal('[')} {alternatives(first)}"

    def _text(self, schema: dict[str, Any], where: str) -> str:
        lengths = read_counts(schema, "Length", where)
        if "pattern" in schema and "format" in schema:
            raise refusal(where, f"has both format and pattern; give one of them. {WAY_OUT}")
        if "pattern" in schema:
            name = f"json_schema: {where}.pattern"
            found = regex_grammar(schema["pattern"], spell_in_string, name=name, lengths=lengths)
            body, size = found.expression, found.size
        elif "format" in schema:
            known = schema["format"] if isinstance(schema["format"], str) else ""
            if known not in FORMATS:
                raise refusal(
                    where,
                    f"has format={schema['format']!r:.80}; known: {', '.join(FORMATS)}. {WAY_OUT}",
                )
            name = f"json_schema: {where}.format"
            found = regex_grammar(FORMATS[known], name=name, lengths=lengths)
            body, size = found.expression, found.size
        else:
            least, most = lengths
            body, size = repeat(CHARACTER, least, most), max(least, most or 0)
        return self._rule(f"{QUOTE} {body} {QUOTE}", size, where)

    def _number(self, schema: dict[str, Any], where: str, *, whole: bool) -> str:
        found = read_range(schema, where, whole=whole)
        if found is None:
            return NUMBER

        def name(body: str) -> str:
            return self._rule(body, 1 + body.count("|"), where)

        expression = found.expression(name)
        if expression is None:
            raise refusal(where, "has no multiple of multipleOf between its bounds.")
        return expression

    def _require_steps(self) -> None:
        """Refuse references that lead back to themselves without producing any text.

        The standard does not define them, and validators loop on them.
        """
        next_ones = {
            pointer: direct_references(resolve(self._root, pointer, pointer))
            for pointer in self._pointers
        }
        for pointer in self._pointers:
            waiting, seen = [pointer], set[str]()
            while waiting:
                for pointed in next_ones[waiting.pop()] - seen:
                    if pointed == pointer:
                        raise refusal(
                            pointer, "leads back to itself with no object or array between."
                        )
                    seen.add(pointed)
                    waiting.append(pointed)

    def _require_finite(self) -> None:
        """Refuse recursive references that allow no finite value."""
        finite: set[str] = set()
        before = -1
        while len(finite) > before:
            before = len(finite)
            for pointer in reversed(self._pointers):  # targets mostly come later
                if pointer not in finite:
                    schema = resolve(self._root, pointer, pointer)
                    if self._is_finite(schema, finite):
                        finite.add(pointer)
        endless = sorted(self._pointers.keys() - finite)
        if endless:
            raise refusal(endless[0], "has no finite value: it always holds another of itself.")

    def _is_finite(self, schema: Any, finite: set[str]) -> bool:
        if not isinstance(schema, dict) or schema.keys() <= ANNOTATIONS:
            return True
        if "$ref" in schema:
            return schema["$ref"] in finite
        for keyword in ("anyOf", "oneOf", "allOf"):
            if keyword in schema:
                return any(self._is_finite(member, finite) for member in schema[keyword])
        if schema.keys() & {"const", "enum"}:
            return True
        for kind in read_types(schema, "schema"):
            needed: list[Any] = []
            if kind == "object":
                properties, required = read_properties(schema, "schema")
                needed = [properties[name] for name in required]
            elif kind == "array":
                needed = schema.get("prefixItems", [])
                if not needed and schema.get("minItems"):
                    needed = [schema.get("items", True)]
            if all(self._is_finite(part, finite) for part in needed):
                return True
        return False
