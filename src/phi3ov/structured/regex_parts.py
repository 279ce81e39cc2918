"""Parts of a pattern: their grammar, and what the matcher pays for it.

Many repetitions cost the matcher seconds, and so do loose parts in a row. A part is loose if it
may take more or fewer characters. Where several of them follow each other and could take the same
ones, as in ``.*.*.*``, the matcher keeps every way of sharing these out, for each token of the
vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .ebnf import alternatives, repeat

MOST_LOOSE = 100
"""How much looseness may stand in a row: one ``.*`` has 20, one ``[a-z]*`` has 1. These weights
follow the matcher's time, of which a row of 100 takes one or two seconds."""


@dataclass(frozen=True, slots=True)
class Part:
    """An expression, and what it costs the matcher.

    Attributes:
        expression: In the grammar.
        size: Characters and classes when repetitions are written out.
        empty: Whether it may be of no characters.
        wide: Whether it holds a wide class.
        head: How many loose parts in a row it may begin with.
        tail: How many it may end with.
        through: How many a row that goes through it gains; None where it always ends there, at a
            character of a narrow class.
    """

    expression: str
    size: int = 1
    empty: bool = False
    wide: bool = False
    head: int = 0
    tail: int = 0
    through: int | None = None

    def repeated(self, least: int, most: int | None) -> Part:
        """Return it ``least`` to ``most`` times."""
        # Of what is never empty the matcher writes no copies out side by side.
        copies = (2 if most is None else most) if self.empty else min(2, most or 2)
        loose = self._looseness(least, most)
        if self.through is None and self.size == 1:
            through, row = loose or None, loose
        elif self.through is None:
            loose = min(loose, 1)
            through = loose if least == 0 else None
            row = self.tail + self.head if copies > 1 else 0
        else:
            through = row = loose + self.through * copies
        return Part(
            repeat(self.expression, least, most),
            size=self.size * max(least + 1, most or 1),
            empty=self.empty or least == 0,
            wide=self.wide,
            head=max(row, loose + self.head),
            tail=max(row, loose + self.tail),
            through=through,
        )

    def _looseness(self, least: int, most: int | None) -> int:
        if least == most:
            return 0
        if most is None or self.size > 1:
            return 20 if self.wide else 1
        spread = most - least  # of one class: every count is a state of its own
        return min(80, 4 + 3 * spread) if self.wide else min(45, spread)


def joined(parts: Sequence[Part]) -> Part:
    """Return ``parts`` one after the other."""
    head = tail = 0
    through: int | None = 0
    for part in parts:
        # A row may come in at the part's head, go through, and begin anew at its tail.
        if through is not None:
            head = max(head, through + part.head)
        row = tail + part.head
        passed = None if part.through is None else tail + part.through
        tail = max(part.tail, passed or 0)
        head = max(head, row if row > MOST_LOOSE else 0)  # too long within: seen by the caller
        through = None if through is None or part.through is None else through + part.through
    return Part(
        " ".join(['""', *(part.expression for part in parts)]),
        size=max(1, sum(part.size for part in parts)),
        empty=all(part.empty for part in parts),
        wide=any(part.wide for part in parts),
        head=head,
        tail=tail,
        through=through,
    )


def either(parts: Sequence[Part]) -> Part:
    """Return one of ``parts``."""
    wide = any(part.wide for part in parts)
    through = max((part.through for part in parts if part.through is not None), default=None)
    if through is not None and len(parts) > 1:  # as loose as ``?``: (.|) is .?
        through += 4 if wide else 1
    return Part(
        alternatives(part.expression for part in parts),
        size=sum(part.size for part in parts),
        empty=any(part.empty for part in parts),
        wide=wide,
        head=max(through or 0, *(part.head for part in parts)),
        tail=max(through or 0, *(part.tail for part in parts)),
        through=through,
    )
