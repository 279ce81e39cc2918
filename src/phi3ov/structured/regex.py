r"""Regular expressions to the grammars that openvino-genai enforces: what it cannot is refused.

What is refused, too, is what takes the matcher seconds: see ``regex_parts.py``.
"""

from __future__ import annotations

from typing import Protocol

from ..errors import OptionError
from .character_sets import ANY, DIGIT, NEWLINE, SPACE, WORD, Ranges, common, unite, without
from .ebnf import MOST_REPETITIONS, characters
from .regex_parts import MOST_LOOSE, Part, either, joined

MOST_CHARACTERS = 20_000
"""The longest expression."""
_WIDE_FROM = 128
"""From how many characters a class is wide: then tokens of every kind fit it."""
_DEEPEST = 50


class Spelling(Protocol):
    """How a character class is written into the grammar."""

    def __call__(self, ranges: Ranges) -> str:
        """Return the expression; empty where no character of ``ranges`` can be written."""
        ...


def regex_grammar(
    pattern: str, spell: Spelling = characters, *, name: str = "regex"
) -> tuple[str, int]:
    r"""Return the grammar of the texts that ``re.fullmatch(pattern, text, re.ASCII)`` accepts.

    With it comes its size: its characters and classes when repetitions are written out, at most
    `MOST_REPETITIONS`.

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
    part = _RegexParser(pattern, spell, name).parse()
    return part.expression, part.size


_ESCAPED_SETS = {
    "d": DIGIT, "w": WORD, "s": SPACE,
    "D": without(ANY, DIGIT), "W": without(ANY, WORD), "S": without(ANY, SPACE),
}  # fmt: skip
_ESCAPED_CHARACTERS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "a": "\a", "0": "\0"}
_HEXADECIMAL = {"x": 2, "u": 4, "U": 8}


class _RegexParser:
    """Recursive descent over a pattern; each method returns a part of the grammar."""

    def __init__(self, pattern: str, spell: Spelling, name: str) -> None:
        self._pattern = pattern
        self._spell = spell
        self._name = name
        self._at = 0
        self._depth = 0

    def parse(self) -> Part:
        found = self._alternatives()
        if self._at < len(self._pattern):
            self._fail("unbalanced ')'")
        return found

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

    def _limited(self, part: Part) -> Part:
        if part.size > MOST_REPETITIONS:
            self._fail(f"more than {MOST_REPETITIONS} characters when repetitions are written out")
        if max(part.head, part.tail, part.through or 0) > MOST_LOOSE:
            self._fail(
                "too many parts in a row that may take the same characters or none, such as .*.* "
                "(put a character between them that must be there)"
            )
        return part

    def _alternatives(self) -> Part:
        branches = [self._sequence()]
        while self._peek() == "|":
            self._at += 1
            branches.append(self._sequence())
        return self._limited(either(branches))

    def _sequence(self) -> Part:
        parts: list[Part] = []
        if self._depth == 0 and self._peek() == "^":
            self._at += 1
        while (character := self._peek()) not in ("", "|", ")"):
            if self._depth == 0 and character == "$" and self._peek(2) in ("$", "$|"):
                self._at += 1
                continue
            parts.append(self._repeated())
        return self._limited(joined(parts))

    def _repeated(self) -> Part:
        part = self._atom()
        found = self._quantifier()
        if found is None:
            return part
        part = self._limited(part.repeated(*found))
        if self._peek() == "?":  # lazy: the same texts
            self._at += 1
        elif self._peek() in ("+", "*", "{") and self._peek():
            self._fail("a repetition of a repetition")
        return part

    def _quantifier(self) -> tuple[int, int | None] | None:
        simple: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
        character = self._peek()
        if character in simple and character:
            self._at += 1
            return simple[character]
        if character != "{":
            return None
        body, closed, _ = self._peek(15)[1:].partition("}")
        low, comma, high = body.partition(",")
        digits = f"{low}{high}"
        if not closed or not (digits.isascii() and digits.isdecimal()) or len(body) > 12:
            self._fail("a '{' that is no repetition (write \\{ for the character)")
        least, most = int(low or 0), int(high) if high else None
        if not comma:
            most = least
        if most is not None and most < least:
            self._fail("a repetition whose limits are the wrong way round")
        self._at += len(body) + 2
        return least, most

    def _atom(self) -> Part:
        character = self._take()
        if character == "(":
            return self._group()
        if character == "[":
            return self._class()
        if character == ".":
            return self._written(without(ANY, NEWLINE))
        if character == "\\":
            return self._written(self._escaped())
        if character in "^$*+?{":
            self._at -= 1
            self._fail(f"{character!r}, which cannot stand there,")
        return self._written(((ord(character), ord(character)),))

    def _group(self) -> Part:
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

    def _class(self) -> Part:
        negated = self._peek() == "^"
        self._at += int(negated)
        members: list[Ranges] = []
        while not members or self._peek() != "]":
            low = self._class_member()
            if self._peek() == "-" and self._peek(2) not in ("-", "-]"):
                self._at += 1
                high = self._class_member()
                single = len(low) == len(high) == 1 and low[0][0] == low[0][1]
                if not single or high[0][0] != high[0][1] or low > high:
                    self._fail("a bad range of characters")
                low = ((low[0][0], high[0][0]),)
            members.append(low)
        self._at += 1
        found = unite(*members)
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
                code = int(digits, 16) if digits.isascii() and digits.isalnum() else -1
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

    def _written(self, ranges: Ranges) -> Part:
        expression = self._spell(ranges) if common(ranges, ANY) else ""
        if not expression:
            self._fail("a class without any character that can be written")
        wide = sum(high - low + 1 for low, high in ranges) >= _WIDE_FROM
        return Part(expression, wide=wide, through=0 if wide else None)
