r"""Regular expressions and characters to the grammars (EBNF) that openvino-genai enforces.

genai's own conversions are not used. Its character classes let invalid UTF-8 through, a
``pattern`` in its JSON strings may hold a bare quotation mark, its number ranges match any
character for the point, and between JSON tokens it allows white space without end. So every
grammar is written here, from ranges of characters that are split where the first bytes of
their UTF-8 change, which is the form that genai's matcher treats rightly.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Protocol

from .errors import OptionError

Ranges = tuple[tuple[int, int], ...]
"""Code points as inclusive ranges, sorted and apart."""

MOST_REPETITIONS = 20_000
"""How often a part may be repeated, nested counts multiplied: more takes the matcher seconds."""
MOST_CHARACTERS = 20_000
"""The longest expression."""
_DEEPEST = 50

ANY: Ranges = ((1, 0xD7FF), (0xE000, 0x10FFFF))
"""Every character that can be written: surrogates are none, and genai's matcher drops NUL."""
DIGIT: Ranges = ((0x30, 0x39),)
WORD: Ranges = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
SPACE: Ranges = ((0x09, 0x0D), (0x20, 0x20))
NEWLINE: Ranges = ((0x0A, 0x0A),)


def unite(*parts: Ranges) -> Ranges:
    """Return the characters that are in any of ``parts``."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(one for part in parts for one in part):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)


def without(characters: Ranges, others: Ranges) -> Ranges:
    """Return ``characters`` that are not in ``others``."""
    for low, high in others:
        left = ((a, min(b, low - 1)) for a, b in characters if a < low)
        right = ((max(a, high + 1), b) for a, b in characters if b > high)
        characters = unite(tuple(left), tuple(right))
    return characters


def common(one: Ranges, other: Ranges) -> Ranges:
    """Return the characters that are in both."""
    return tuple(
        (max(low, first), min(high, last))
        for low, high in one
        for first, last in other
        if max(low, first) <= min(high, last)
    )


def characters(ranges: Ranges) -> str:
    r"""Return the grammar's class for ``ranges``, which must not be empty.

    Example:
        >>> print(characters(((0x41, 0x5A), (0xE9, 0xE9))))
        [\u0041-\u005a\u00e9]
    """
    pieces = [piece for low, high in common(ranges, ANY) for piece in _split_utf8(low, high)]
    spelt = (
        _escape(low) if low == high else f"{_escape(low)}-{_escape(high)}" for low, high in pieces
    )
    return f"[{''.join(spelt)}]"


def literal(text: str) -> str:
    r"""Return the grammar's string for ``text``, or several in a row.

    A character that is not printable ASCII has one of its own: genai writes the grammar anew, with
    such characters as ``\x..``, and takes hexadecimal digits behind them for part of that.

    Example:
        >>> print(literal('a"'), literal("aéb"))
        "a\u0022" "a" "\u00e9" "b"

    Raises:
        OptionError: It holds NUL, which genai's matcher drops.
    """
    if "\0" in text:
        raise OptionError(f"{text[:60]!r} holds the character NUL, which no answer can hold.")
    pieces = re.findall(r"[ -~]+|[^ -~]", text) or [""]
    spelt = (re.sub(r"[^0-9A-Za-z]", lambda one: _escape(ord(one[0])), one) for one in pieces)
    return " ".join(f'"{one}"' for one in spelt)


def rules(answer: str, others: Mapping[str, str] | None = None) -> str:
    """Return the whole grammar: ``answer``, the ``others`` by name, and a rule for each class.

    Classes must not stand in a sequence: after an optional one, genai's matcher takes the first
    again and again where the next is of several bytes.
    """
    named = (f"{name} ::= {body}" for name, body in (others or {}).items())
    lines = [f"answer ::= {answer}", *named]
    classes: dict[str, str] = {}

    def name_class(found: re.Match[str]) -> str:
        return classes.setdefault(found[0], f"class{len(classes)}")

    # Inside of strings, brackets are escaped.
    lines = [re.sub(r"\[[^\]]*\]", name_class, line) for line in lines]
    return "\n".join([*lines, *(f"{name} ::= {body}" for body, name in classes.items())])


def alternatives(expressions: Iterable[str]) -> str:
    """Return an expression that is one of ``expressions``."""
    return "(" + " | ".join(expressions) + ")"


def repeat(expression: str, least: int, most: int | None) -> str:
    """Return ``least`` to ``most`` times ``expression``; None is without a limit."""
    short = {(0, 1): "?", (0, None): "*", (1, None): "+", (1, 1): ""}
    counted = f"{{{least},{'' if most is None else most}}}"
    return f"({expression}){short.get((least, most), counted)}"


def _escape(code: int) -> str:
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def _split_utf8(low: int, high: int) -> list[tuple[int, int]]:
    """Split a range so that within a piece each byte takes a range of its own."""
    for last in (0x7F, 0x7FF, 0xFFFF):
        if low <= last < high:
            return _split_utf8(low, last) + _split_utf8(last + 1, high)
    for bits in (6, 12, 18):
        tail = (1 << bits) - 1
        if high > 0x7F and low >> bits != high >> bits:
            if low & tail:
                return _split_utf8(low, low | tail) + _split_utf8((low | tail) + 1, high)
            if high & tail != tail:
                border = high & ~tail
                return _split_utf8(low, border - 1) + _split_utf8(border, high)
    return [(low, high)]


class Spelling(Protocol):
    """How a character class is written into the grammar."""

    def __call__(self, ranges: Ranges) -> str:
        """Return the expression; empty where no character of ``ranges`` can be written."""
        ...


def regex_grammar(pattern: str, spell: Spelling = characters, *, name: str = "regex") -> str:
    r"""Return the grammar of the texts that ``re.fullmatch(pattern, text, re.ASCII)`` accepts.

    Args:
        pattern: Of Python's syntax: characters, ``.``, classes, ``\d \w \s \D \W \S``, groups,
            alternatives and repetitions. ``^`` and ``$`` may begin and end an alternative of
            the whole. What looks around, refers back or sets flags is refused.
        spell: How characters are written: as they are, or escaped in a JSON string.
        name: The option, for messages.

    Raises:
        OptionError: The pattern is no regular expression, or none that a grammar can follow.
    """
    if not isinstance(pattern, str):
        raise OptionError(f"{name}={pattern!r} must be a string.")
    if len(pattern) > MOST_CHARACTERS:
        raise OptionError(f"{name} has {len(pattern)} characters; at most {MOST_CHARACTERS}.")
    return _RegexParser(pattern, spell, name).parse()


_ESCAPED_SETS = {
    "d": DIGIT, "w": WORD, "s": SPACE,
    "D": without(ANY, DIGIT), "W": without(ANY, WORD), "S": without(ANY, SPACE),
}  # fmt: skip
_ESCAPED_CHARACTERS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "a": "\a", "0": "\0"}
_HEXADECIMAL = {"x": 2, "u": 4, "U": 8}


class _RegexParser:
    """Recursive descent over a pattern; each method returns an expression and its expanded size."""

    def __init__(self, pattern: str, spell: Spelling, name: str) -> None:
        self._pattern = pattern
        self._spell = spell
        self._name = name
        self._at = 0
        self._depth = 0

    def parse(self) -> str:
        expression, _ = self._alternatives()
        if self._at < len(self._pattern):
            self._fail("unbalanced ')'")
        return expression

    def _fail(self, why: str) -> None:
        raise OptionError(
            f"{self._name}={self._pattern[:200]!r}: {why} at position {self._at}. Supported are "
            "characters, classes, groups, alternatives and repetitions."
        )

    def _peek(self, count: int = 1) -> str:
        return self._pattern[self._at : self._at + count]

    def _take(self) -> str:
        character = self._peek()
        if not character:
            self._fail("it ends too early")
        self._at += 1
        return character

    def _alternatives(self) -> tuple[str, int]:
        branches = [self._sequence()]
        while self._peek() == "|":
            self._at += 1
            branches.append(self._sequence())
        return alternatives(one for one, _ in branches), sum(size for _, size in branches)

    def _sequence(self) -> tuple[str, int]:
        parts, total = ['""'], 1
        if self._depth == 0 and self._peek() == "^":
            self._at += 1
        while (character := self._peek()) not in ("", "|", ")"):
            if self._depth == 0 and character == "$" and self._peek(2) in ("$", "$|"):
                self._at += 1
                continue
            expression, size = self._repeated()
            parts.append(expression)
            total += size
        return " ".join(parts), total

    def _repeated(self) -> tuple[str, int]:
        expression, size = self._atom()
        found = self._quantifier()
        if found is None:
            return expression, size
        least, most = found
        size *= max(least + 1, most or 1)
        if size > MOST_REPETITIONS:
            self._fail(f"repetitions that multiply to more than {MOST_REPETITIONS}")
        if self._peek() == "?":  # lazy: the same texts
            self._at += 1
        elif self._peek() in ("+", "*", "{") and self._peek():
            self._fail("a repetition of a repetition")
        return repeat(expression, least, most), size

    def _quantifier(self) -> tuple[int, int | None] | None:
        simple: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
        character = self._peek()
        if character in simple and character:
            self._at += 1
            return simple[character]
        if character != "{":
            return None
        body, closed, _ = self._pattern[self._at + 1 :].partition("}")
        low, comma, high = body.partition(",")
        if not closed or not (low or high) or not f"{low}{high}".isdecimal() or len(body) > 12:
            self._fail("a '{' that is no repetition (write \\{ for the character)")
        least, most = int(low or 0), int(high) if high else None
        if not comma:
            most = least
        if most is not None and most < least:
            self._fail("a repetition whose limits are the wrong way round")
        self._at += len(body) + 2
        return least, most

    def _atom(self) -> tuple[str, int]:
        character = self._take()
        if character == "(":
            return self._group()
        if character == "[":
            return self._class(), 1
        if character == ".":
            return self._written(without(ANY, NEWLINE)), 1
        if character == "\\":
            return self._written(self._escaped()), 1
        if character in "^$*+?{":
            self._at -= 1
            self._fail(f"{character!r}, which cannot stand there,")
        return self._written(((ord(character), ord(character)),)), 1

    def _group(self) -> tuple[str, int]:
        if self._peek() == "?":
            if self._peek(2) != "?:":
                self._fail("a group that looks around, has a name or sets flags")
            self._at += 2
        self._depth += 1
        if self._depth > _DEEPEST:
            self._fail(f"more than {_DEEPEST} groups in each other")
        inner = self._alternatives()
        if self._peek() != ")":
            self._fail("a group that is not closed")
        self._at += 1
        self._depth -= 1
        return inner

    def _class(self) -> str:
        negated = self._peek() == "^"
        self._at += int(negated)
        found: Ranges = ()
        first = True
        while first or self._peek() != "]":
            first = False
            low = self._class_member()
            if self._peek() == "-" and self._peek(2) not in ("-", "-]"):
                self._at += 1
                high = self._class_member()
                single = len(low) == len(high) == 1 and low[0][0] == low[0][1]
                if not single or high[0][0] != high[0][1] or low > high:
                    self._fail("a bad range of characters")
                low = ((low[0][0], high[0][0]),)
            found = unite(found, low)
        self._at += 1
        return self._written(without(ANY, found) if negated else found)

    def _class_member(self) -> Ranges:
        character = self._take()
        return self._escaped() if character == "\\" else ((ord(character), ord(character)),)

    def _escaped(self) -> Ranges:
        character = self._take()
        if character in _ESCAPED_SETS:
            return _ESCAPED_SETS[character]
        if character in _HEXADECIMAL:
            digits = self._peek(_HEXADECIMAL[character])
            try:
                code = int(digits, 16) if digits.isalnum() else -1
            except ValueError:
                code = -1
            if len(digits) < _HEXADECIMAL[character] or not 0 <= code <= 0x10FFFF:
                self._fail("a bad escape")
            self._at += len(digits)
            return ((code, code),)
        if character == "0" and self._peek().isdecimal():
            self._fail("an octal escape")
        if character.isascii() and character.isalnum() and character not in _ESCAPED_CHARACTERS:
            self._fail(f"\\{character}, which no grammar can follow,")
        character = _ESCAPED_CHARACTERS.get(character, character)
        return ((ord(character), ord(character)),)

    def _written(self, ranges: Ranges) -> str:
        expression = self._spell(ranges) if common(ranges, ANY) else ""
        if not expression:
            self._fail("a class without any character that can be written")
        return expression
