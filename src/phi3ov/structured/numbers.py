"""Decimal numbers between bounds, and multiples of a step, as grammar rules.

A finite automaton reads the digits from left to right. Its state tracks whether the digits so far
equal those of a bound, and the remainder modulo the step. Each state becomes a rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import cache
from itertools import groupby

from .ebnf import alternatives, literal

DIGITS = 15
"""Maximum digits before the point, and maximum significant digits of a bounded number: with more,
two different texts could be the same float."""
GREATEST = 10**DIGITS - 1


@dataclass(frozen=True, slots=True)
class NumberRange:
    """Numbers with at most ``decimals`` digits after the point.

    Bounds and step are integers in units of the last digit.

    Attributes:
        low: Minimum.
        high: Maximum.
        step: Every number is a multiple of this.
        decimals: Digits after the point.
    """

    low: int
    high: int
    step: int
    decimals: int

    @classmethod
    def between(
        cls,
        low: Decimal | None,
        high: Decimal | None,
        *,
        above: Decimal | None = None,
        below: Decimal | None = None,
        step: Decimal | None = None,
        whole: bool,
    ) -> NumberRange:
        """Return the numbers that satisfy all given bounds; None means no bound.

        Args:
            low: Inclusive minimum.
            high: Inclusive maximum.
            above: Exclusive minimum.
            below: Exclusive maximum.
            step: Every number is a multiple of this.
            whole: Whether to allow integers only.
        """
        given = [bound for bound in (low, high, above, below) if bound is not None]
        if whole:
            decimals = 0
        elif step is not None:
            decimals = max(0, -int(step.normalize().as_tuple().exponent))
        else:
            before = len(str(max((abs(int(bound)) for bound in given), default=0)))
            decimals = max(0, DIGITS - before)
        unit = 10**decimals
        least, most = -GREATEST * unit, GREATEST * unit
        if low is not None:
            least = max(least, math.ceil(Fraction(low) * unit))
        if above is not None:
            least = max(least, math.floor(Fraction(above) * unit) + 1)
        if high is not None:
            most = min(most, math.floor(Fraction(high) * unit))
        if below is not None:
            most = min(most, math.ceil(Fraction(below) * unit) - 1)
        # u / unit is a multiple of p / q exactly if u * q is a multiple of p * unit
        part = Fraction(1, unit) if step is None else Fraction(step)
        whole_step = part.numerator * unit
        return cls(least, most, whole_step // math.gcd(whole_step, part.denominator), decimals)

    def expression(self, name: Callable[[str], str]) -> str | None:
        """Return the grammar expression for these numbers; None if the range is empty.

        Args:
            name: Returns the name of a rule with the given body.
        """
        parts = []
        if self.low < 0:
            parts += [f'"-" {part}' for part in self._positive(max(1, -self.high), -self.low, name)]
        if self.high >= 0:
            parts += self._positive(max(0, self.low), self.high, name)
        return alternatives(parts) if parts else None

    def _positive(self, low: int, high: int, name: Callable[[str], str]) -> list[str]:
        """Return one expression per number of digits before the point."""
        unit = 10**self.decimals
        parts = []
        for length in range(len(str(low // unit)), len(str(high // unit)) + 1):
            least = max(low, 10 ** (length - 1) * unit if length > 1 else 0)
            most = min(high, 10**length * unit - 1)
            if least <= most:
                width = length + self.decimals
                digits = f"{least:0{width}}", f"{most:0{width}}"
                part = self._of_length(length, *digits, name)
                parts += [] if part is None else [part]
        return parts

    def _of_length(
        self, length: int, low: str, high: str, name: Callable[[str], str]
    ) -> str | None:
        """Return the expression for the numbers between two bounds with equally many digits."""

        @cache
        def rest(at: int, remainder: int, *, at_low: bool, at_high: bool) -> str | None:
            """Return the expression for the digits from ``at`` on.

            Args:
                at: Number of digits before it.
                remainder: Remainder of those digits modulo the step.
                at_low: Whether those digits equal the first digits of ``low``.
                at_high: Whether those digits equal the first digits of ``high``.
            """
            parts = []
            if at >= length:
                ends = not at_low or not low[at:].strip("0")
                if ends and remainder * 10 ** (len(low) - at) % self.step == 0:
                    parts.append('""')
            if at < len(low):
                point = f"{literal('.')} " if at == length else ""
                first, last = (low[at] if at_low else "0"), (high[at] if at_high else "9")
                following = [
                    (
                        digit,
                        rest(
                            at + 1,
                            (remainder * 10 + digit) % self.step,
                            at_low=at_low and digit == int(first),
                            at_high=at_high and digit == int(last),
                        ),
                    )
                    for digit in range(int(first), int(last) + 1)
                ]
                for after, group in groupby(following, key=lambda pair: pair[1]):
                    digits = [digit for digit, _ in group]
                    if after is not None:
                        parts.append(f"{point}[{digits[0]}-{digits[-1]}] {after}")
            return name(alternatives(parts)) if parts else None

        return rest(0, 0, at_low=True, at_high=True)
