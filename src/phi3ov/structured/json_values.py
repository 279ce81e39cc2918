"""JSON's values as grammar rules: strings, numbers, lists, and values of every kind.

``json_schema.py`` builds the grammars of schemas from them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from .character_sets import ANY, Ranges, common, without
from .ebnf import alternatives, characters, literal, repeat

ANY_DEPTH = 6
"""Maximum nesting depth of values where a schema allows any value."""

_ESCAPES = {'"': '"', "\\": "\\", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t"}
_BARE = without(ANY, ((0, 0x1F), (0x22, 0x22), (0x5C, 0x5C)))


def spell_in_string(ranges: Ranges) -> str:
    """Return the expression for a character of ``ranges`` in a JSON string; may be empty."""
    bare = common(ranges, _BARE)
    parts = [characters(bare)] if bare else []
    parts += [
        literal("\\" + escaped)
        for character, escaped in _ESCAPES.items()
        if any(low <= ord(character) <= high for low, high in ranges)
    ]
    return alternatives(parts) if parts else ""


QUOTE = literal('"')
CHARACTER = "json_character"
STRING = "json_string"
NUMBER = "json_number"
_DATE = (
    r"[12]\d{3}-((0[1-9]|1[0-2])-(0[1-9]|1\d|2[0-8])|(0[13-9]|1[0-2])-(29|30)"
    r"|(0[13578]|1[02])-31)"
)
_TIME = r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,6})?"
_ZONE = r"(Z|[+-](0\d|1[0-3]):[0-5]\d)"
_WORD = r"[A-Za-z0-9_+]{1,20}"
_LABEL = r"[A-Za-z0-9]{1,20}(-[A-Za-z0-9]{1,20})?"
_DOMAIN = rf"({_LABEL}\.){{1,3}}[A-Za-z]{{2,6}}"
_BYTE = r"(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
FORMATS = {
    "date": _DATE,
    "time": f"{_TIME}{_ZONE}",
    "date-time": f"{_DATE}T{_TIME}{_ZONE}",
    "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    "duration": (
        r"P(\d{1,3}D(T\d{1,2}H(\d{1,2}M(\d{1,2}S)?)?)?"
        r"|T(\d{1,2}H(\d{1,2}M(\d{1,2}S)?)?|\d{1,2}M(\d{1,2}S)?|\d{1,2}S))"
    ),
    "email": rf"{_WORD}(\.{_WORD}){{0,2}}@{_DOMAIN}",
    "uri": rf"https?://{_DOMAIN}(:[1-9]\d{{1,3}})?(/[A-Za-z0-9._~-]{{0,40}}){{0,8}}",
    "ipv4": rf"{_BYTE}(\.{_BYTE}){{3}}",
}
"""Pattern of each format. Every match is valid, but some valid texts do not match."""


def listed(item: str, least: int, most: int | None) -> str:
    """Return ``item`` repeated ``least`` to ``most`` times, separated by commas."""
    if most == 0:
        return '""'
    rest = repeat(f"{literal(', ')} {item}", max(0, least - 1), None if most is None else most - 1)
    some = f"({item} {rest})"
    return some if least else repeat(some, 0, 1)


def value_rules() -> dict[str, str]:
    """Return the grammar rules of JSON values."""
    rules = {
        CHARACTER: spell_in_string(ANY),
        STRING: f"{QUOTE} {repeat(CHARACTER, 0, None)} {QUOTE}",
        NUMBER: '"-"? ("0" | [1-9] [0-9]{0,14}) ("." [0-9]{1,15})? ("e" [-+]? [1-9] [0-9]{0,1})?',
        "json_value0": f'("null" | "true" | "false" | {NUMBER} | {STRING})',
    }
    for depth in range(1, ANY_DEPTH + 1):
        inner = f"json_value{depth - 1}"
        member = f"{STRING} {literal(': ')} {inner}"
        items = f"{literal('[')} {listed(inner, 0, None)} {literal(']')}"
        members = f"{literal('{')} {listed(member, 0, None)} {literal('}')}"
        rules[f"json_value{depth}"] = f"(json_value0 | {items} | {members})"
    return rules


def used_rules(expression: str, others: Mapping[str, str]) -> dict[str, str]:
    """Return the rules of `value_rules` that ``expression`` and ``others`` use, also indirectly."""
    known, used = value_rules(), dict[str, str]()
    waiting = [expression, *others.values()]
    while waiting:
        for name in re.findall(r"json_\w+", waiting.pop()):
            if name in known and name not in used:
                used[name] = known[name]
                waiting.append(known[name])
    return used
