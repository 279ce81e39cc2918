r"""Compiles regular expressions to grammars for openvino-genai; refuses unsupported syntax."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NoReturn, Protocol

from ..errors import OptionError
from .character_sets import ANY, DIGIT, NEWLINE, SPACE, WORD, Ranges, common, unite, without
from .ebnf import MOST_REPETITIONS, alternatives, characters, repeat

MOST_CHARACTERS = 20_000
"""Maximum length of a pattern in characters."""
MOST_VARIABLE = 120
"""Maximum number of parts of variable length. `MOST_IN_A_ROW` limits adjacent parts that may each
be empty. With more, openvino-genai needs seconds for a token (decision 30)."""
MOST_IN_A_ROW = 20
_DEEPEST = 50


class Spelling(Protocol):
    """Writes a character class into the grammar."""

    def __call__(self, ranges: Ranges) -> str:
        """Return the expression; empty if no character of ``ranges`` can be written."""
        ...


@dataclass(frozen=True, slots=True)
class Pattern:
    """A pattern, or a part of one, as an expression of the grammar.

    Attributes:
        expression: EBNF.
        size: Number of characters and classes with repetitions expanded.
        shortest: Length of the shortest text in characters.
        longest: Length of the longest text in characters; None for no limit.
        variable: Number of parts of variable length with repetitions expanded.
        row: Longest run of adjacent parts that may each be empty.
    """

    expression: str
    size: int = 1
    shortest: int = 1
    longest: int | None = 1
    variable: int = 0
    row: int = 0


@dataclass(frozen=True, slots=True)
class _Repeated:
    """A pattern that is repeated ``least`` to ``most`` times."""

    unit: Pattern
    least: int
    most: int | None

    def pattern(self) -> Pattern:
        unit, copies = self.unit, self.least + 1 if self.most is None else self.most
        endless = self.most is None and unit.longest != 0
        bounded = None if unit.longest is None and copies else (unit.longest or 0) * copies
        row = max(1, unit.row * copies) if unit.shortest == 0 else int(self.least == 0)
        return Pattern(
            repeat(unit.expression, self.least, self.most),
            size=unit.size * max(self.least + 1, self.most or 1),
            shortest=unit.shortest * self.least,
            longest=None if endless else bounded,
            variable=unit.variable * copies + int(self.least != self.most),
            row=max(row, unit.row) if copies else 0,
        )


def regex_grammar(
    pattern: str,
    spell: Spelling = characters,
    *,
    name: str = "regex",
    lengths: tuple[int, int | None] = (0, None),
) -> Pattern:
    r"""Return the grammar of the texts that ``re.fullmatch(pattern, text, re.ASCII)`` accepts.

    Args:
        pattern: A pattern in Python's syntax: characters, ``.``, classes, ``\d \w \s \D \W \S``,
            groups, alternatives and repetitions. ``^`` and ``$`` may begin and end an alternative
            at the top level. Lookaround, backreferences and flags are refused.
        spell: Writes character classes: plain, or escaped in a JSON string.
        name: Name of the option, for messages.
        lengths: Minimum and maximum number of characters; None for no maximum.

    Raises:
        OptionError: The pattern is not a regular expression, or no grammar can enforce it. That
            includes ``lengths`` for a pattern with more than one part of variable length.
    """
    if not isinstance(pattern, str):
        raise OptionError(f"{name}={pattern!r} must be a string.", option=name)
    if len(pattern) > MOST_CHARACTERS:
        raise OptionError(
            f"{name} has {len(pattern)} characters; at most {MOST_CHARACTERS}.", option=name
        )
    return _RegexParser(pattern, spell, name, lengths).parse()


def _joined(parts: Sequence[Pattern]) -> Pattern:
    """Return the concatenation of ``parts``."""
    return Pattern(
        " ".join(['""', *(part.expression for part in parts)]),
        size=max(1, sum(part.size for part in parts)),
        shortest=sum(part.shortest for part in parts),
        longest=_total([part.longest for part in parts]),
        variable=sum(part.variable for part in parts),
        row=_longest_row(parts),
    )


def _longest_row(parts: Sequence[Pattern]) -> int:
    longest = row = 0
    for part in parts:
        row = row + part.row if part.shortest == 0 else 0
        longest = max(longest, row, part.row)
    return longest


def _either(parts: Sequence[Pattern]) -> Pattern:
    """Return the alternation of ``parts``."""
    longest = [part.longest for part in parts]
    known = [length for length in longest if length is not None]
    shortest = min(part.shortest for part in parts)
    optional = int(shortest == 0 and len(parts) > 1)
    return Pattern(
        alternatives(part.expression for part in parts),
        size=sum(part.size for part in parts),
        shortest=shortest,
        longest=max(known) if len(known) == len(longest) else None,
        variable=optional + sum(part.variable for part in parts),
        row=max(optional, *(part.row for part in parts)),
    )


def _total(lengths: Sequence[int | None]) -> int | None:
    known = [length for length in lengths if length is not None]
    return sum(known) if len(known) == len(lengths) else None


def _of_length(
    branch: Sequence[_Repeated], least: int, most: int | None
) -> Sequence[_Repeated] | None:
    """Return a sequence whose texts have ``least`` to ``most`` characters; None if none fits.

    Raises:
        ValueError: More than one part of the sequence has a variable length.
    """
    patterns = [part.pattern() for part in branch]
    shortest = sum(pattern.shortest for pattern in patterns)
    longest = _total([pattern.longest for pattern in patterns])
    if shortest >= least and (most is None or (longest is not None and longest <= most)):
        return branch
    if (most is not None and shortest > most) or (longest is not None and longest < least):
        return None
    varied = [
        index for index, pattern in enumerate(patterns) if pattern.shortest != pattern.longest
    ]
    part = branch[varied[0]]
    unit = part.unit.shortest
    if len(varied) > 1 or unit == 0 or unit != part.unit.longest:
        raise ValueError("several parts share the length")
    fixed = shortest - part.least * unit
    fewest = max(part.least, -(-(least - fixed) // unit))
    greatest = part.most if most is None else min(part.most or most, (most - fixed) // unit)
    if greatest is not None and fewest > greatest:
        return None
    fitted = replace(part, least=fewest, most=greatest)
    return [*branch[: varied[0]], fitted, *branch[varied[0] + 1 :]]


_ESCAPED_SETS = {
    "d": DIGIT, "w": WORD, "s": SPACE,
    "D": without(ANY, DIGIT), "W": without(ANY, WORD), "S": without(ANY, SPACE),
}  # fmt: skip
_ESCAPED_CHARACTERS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "a": "\a", "0": "\0"}
_HEXADECIMAL = {"x": 2, "u": 4, "U": 8}


class _RegexParser:
    """Recursive descent over a pattern; each method returns a part of the grammar."""

    def __init__(
        self, pattern: str, spell: Spelling, name: str, lengths: tuple[int, int | None]
    ) -> None:
        self._pattern = pattern
        self._spell = spell
        self._name = name
        self._lengths = lengths
        self._at = 0
        self._depth = 0

    def parse(self) -> Pattern:
        found = self._alternatives()
        if self._at < len(self._pattern):
            self._fail("unbalanced ')'")
        return found

    def _fail(self, why: str) -> NoReturn:
        raise OptionError(
            f"{self._name}={self._pattern[:200]!r}: {why} at position {self._at}. Supported are "
            "characters, classes, groups, alternatives and repetitions.",
            option=self._name,
        )

    def _peek(self, count: int = 1) -> str:
        return self._pattern[self._at : self._at + count]

    def _take(self) -> str:
        character = self._peek()
        if not character:
            self._fail("it ends too early")
        self._at += 1
        return character

    def _limited(self, part: Pattern) -> Pattern:
        if part.size > MOST_REPETITIONS:
            self._fail(f"more than {MOST_REPETITIONS} characters when repetitions are written out")
        if part.variable > MOST_VARIABLE:
            self._fail(
                f"more than {MOST_VARIABLE} parts of variable length when repetitions are written "
                "out"
            )
        if part.row > MOST_IN_A_ROW:
            self._fail(
                f"more than {MOST_IN_A_ROW} parts in a row that may be empty (put a character "
                "between them that must be there)"
            )
        return part

    def _alternatives(self) -> Pattern:
        branches = [self._sequence()]
        while self._peek() == "|":
            self._at += 1
            branches.append(self._sequence())
        if self._depth == 0:
            branches = self._fitted(branches)
        parts = (_joined([part.pattern() for part in branch]) for branch in branches)
        return self._limited(_either([self._limited(part) for part in parts]))

    def _fitted(self, branches: list[Sequence[_Repeated]]) -> list[Sequence[_Repeated]]:
        """Return the top-level alternatives, restricted to the pattern's lengths."""
        try:
            fitted = [_of_length(branch, *self._lengths) for branch in branches]
        except ValueError:
            self._fail(
                "several parts of different lengths share the length that is left by minLength "
                "or maxLength; limit the repetitions in the pattern instead"
            )
        found = [branch for branch in fitted if branch is not None]
        if not found:
            self._fail("no text of the length that minLength and maxLength allow")
        return found

    def _sequence(self) -> Sequence[_Repeated]:
        parts: list[_Repeated] = []
        if self._depth == 0 and self._peek() == "^":
            self._at += 1
        while (character := self._peek()) not in ("", "|", ")"):
            if self._depth == 0 and character == "$" and self._peek(2) in ("$", "$|"):
                self._at += 1
                continue
            parts.append(self._repeated())
        return parts

    def _repeated(self) -> _Repeated:
        part = self._atom()
        found = self._quantifier()
        if found is None:
            return _Repeated(part, 1, 1)
        repeated = _Repeated(part, *found)
        self._limited(repeated.pattern())
        if self._peek() == "?":  # lazy: matches the same texts
            self._at += 1
        elif self._peek() in ("+", "*", "{") and self._peek():
            self._fail("a repetition of a repetition")
        return repeated

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
            self._fail("a '{' that does not begin a repetition (write \\{ for the character)")
        least, most = int(low or 0), int(high) if high else None
        if not comma:
            most = least
        if most is not None and most < least:
            self._fail("a repetition whose limits are the wrong way round")
        self._at += len(body) + 2
        return least, most

    def _atom(self) -> Pattern:
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

    def _group(self) -> Pattern:
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

    def _class(self) -> Pattern:
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

    def _written(self, ranges: Ranges) -> Pattern:
        expression = self._spell(ranges) if common(ranges, ANY) else ""
        if not expression:
            self._fail("a class without any character that can be written")
        return Pattern(expression)
