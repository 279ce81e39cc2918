r"""Writes grammars (EBNF) for openvino-genai: character classes, strings, repetitions, rules.

genai's own conversion of patterns and schemas has the defects that decision 29 lists, so phi3ov
writes every grammar itself. A class is split where the first UTF-8 byte of its characters changes,
because genai's matcher lets invalid bytes through unsplit classes. ``regex.py`` converts patterns,
``json_schema.py`` schemas.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

from ..errors import OptionError
from .character_sets import ANY, Ranges, common, split_utf8

MOST_REPETITIONS = 20_000
"""Maximum size of an expression with its repetitions expanded. The matcher expands them, which
takes seconds for larger ones."""

_FEW = 16
"""Longest repetition range that is left to the matcher."""


def characters(ranges: Ranges) -> str:
    r"""Return the character class for ``ranges``, which must not be empty.

    Example:
        >>> print(characters(((0x41, 0x5A), (0xE9, 0xE9))))
        [\u0041-\u005a\u00e9]
    """
    pieces = [piece for low, high in common(ranges, ANY) for piece in split_utf8(low, high)]
    spelt = (
        _escape(low) if low == high else f"{_escape(low)}-{_escape(high)}" for low, high in pieces
    )
    return f"[{''.join(spelt)}]"


def literal(text: str) -> str:
    r"""Return ``text`` as one or more string literals of the grammar.

    A character outside printable ASCII gets a separate literal: genai rewrites such characters as
    ``\x..``, and would read a hexadecimal digit after one as part of it.

    Example:
        >>> print(literal('a"'), literal("aéb"))
        "a\u0022" "a" "\u00e9" "b"

    Raises:
        OptionError: ``text`` holds NUL, which genai's matcher drops.
    """
    if "\0" in text:
        raise OptionError(f"{text[:60]!r} holds the character NUL, which no answer can hold.")
    pieces = re.findall(r"[ -~]+|[^ -~]", text) or [""]
    spelt = (
        re.sub(r"[^0-9A-Za-z]", lambda found: _escape(ord(found[0])), piece) for piece in pieces
    )
    return " ".join(f'"{piece}"' for piece in spelt)


def rules(answer: str, others: Mapping[str, str] | None = None) -> str:
    """Return the whole grammar: ``answer``, the ``others`` by name, and a rule for each class.

    Each class is written once. `_up_to` expands a class or rule that may repeat up to n times:
    with the native ``{0,n}`` and ``{n,}``, genai's matcher takes half a minute for the first
    tokens (decision 29).
    """
    named = (f"{name} ::= {body}" for name, body in (others or {}).items())
    lines = [f"answer ::= {answer}", *named]
    classes: dict[str, str] = {}

    def name_class(found: re.Match[str]) -> str:
        return classes.setdefault(found[0], f"class{len(classes)}")

    # Brackets inside string literals are escaped, so this finds classes only.
    lines = [re.sub(r"\[[^\]]*\]", name_class, line) for line in lines]
    counted: dict[str, str] = {}

    def name_count(found: re.Match[str]) -> str:
        name, least, most = found[1], int(found[2]), found[3]
        more = f"({name})*"
        if most:
            if int(most) - least < _FEW:
                return found[0]
            counted.update(_up_to(name, int(most) - least))
            more = f"{name}_to{int(most) - least}"
        return f"({name}){{{least}}} {more}" if least else more

    lines = [re.sub(r"\((\w+)\)\{(\d+),(\d*)\}", name_count, line) for line in lines]
    more = counted | {name: body for body, name in classes.items()}
    return "\n".join([*lines, *(f"{name} ::= {body}" for name, body in more.items())])


def _up_to(name: str, most: int) -> dict[str, str]:
    """Return rules, the first of which matches ``name`` at most ``most`` times.

    The text is parsed as some whole blocks and a remainder shorter than a block, so that each
    count has exactly one parse. Blocks and remainder are chains of rules of about the same length,
    and each rule either ends the chain or continues it.
    """
    block = math.isqrt(most)
    blocks, rest = divmod(most, block)
    start = f"{name}_to{most}"
    rules = {start: f"{start}_{blocks}"}
    for count in range(blocks, 0, -1):
        rules[f"{start}_{count}"] = (
            f"({name}_rest{block - 1} | {name}_block{block} {start}_{count - 1})"
        )
    rules[f"{start}_0"] = f"{name}_rest{rest}"
    rules[f"{name}_block{block}"] = " ".join([name] * block)
    for count in range(max(rest, block - 1), 0, -1):
        rules[f"{name}_rest{count}"] = f'("" | {name} {name}_rest{count - 1})'
    return rules | {f"{name}_rest0": '""'}


def alternatives(expressions: Iterable[str]) -> str:
    """Return the alternation of ``expressions``."""
    return "(" + " | ".join(expressions) + ")"


def repeat(expression: str, least: int, most: int | None) -> str:
    """Return ``expression`` repeated ``least`` to ``most`` times; None for no limit."""
    short = {(0, 1): "?", (0, None): "*", (1, None): "+", (1, 1): ""}
    counted = f"{{{least},{'' if most is None else most}}}"
    return f"({expression}){short.get((least, most), counted)}"


def _escape(code: int) -> str:
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
