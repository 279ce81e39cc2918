"""Grammars composed from parts: fixed text, JSON schemas, alternatives, repetitions.

`phi3ov.structured.json_schema.schema_part` compiles a schema to a part. The grammar of guided tool
calls is an example: fixed text around the argument schemas of the offered tools.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..errors import OptionError
from .ebnf import MOST_REPETITIONS, alternatives, literal, repeat, rules
from .json_values import used_rules


@dataclass(frozen=True, slots=True)
class GrammarPart:
    """A grammar expression and the rules that it uses.

    Attributes:
        expression: EBNF.
        rules: Rule bodies by name, without the rules of JSON values (`value_rules`).
        size: Number of repetitions when they are expanded.
    """

    expression: str
    rules: Mapping[str, str] = field(default_factory=dict)
    size: int = 0


def text(fixed: str) -> GrammarPart:
    """Return the part that matches exactly ``fixed``.

    Raises:
        OptionError: ``fixed`` holds NUL.
    """
    return GrammarPart(literal(fixed))


def sequence(*parts: GrammarPart) -> GrammarPart:
    """Return the concatenation of ``parts``."""
    return _joined(" ".join(part.expression for part in parts), parts)


def one_of(*parts: GrammarPart) -> GrammarPart:
    """Return the alternation of ``parts``."""
    return _joined(alternatives(part.expression for part in parts), parts)


def repeated(
    part: GrammarPart, *, least: int = 0, most: int | None = None, separator: str = ""
) -> GrammarPart:
    """Return ``part`` repeated ``least`` to ``most`` times (None: no limit), with ``separator``."""
    if most == 0:
        return GrammarPart('""')
    rest = repeat(
        f"{literal(separator)} {part.expression}",
        max(0, least - 1),
        None if most is None else most - 1,
    )
    some = f"({part.expression} {rest})"
    size = part.size * max(1, least, most or 0)
    return GrammarPart(some if least else repeat(some, 0, 1), part.rules, size)


def grammar(part: GrammarPart) -> str:
    """Return the whole grammar; its first rule is ``answer``.

    Raises:
        OptionError: The grammar has too many repetitions.
    """
    if part.size > MOST_REPETITIONS:
        raise OptionError(
            f"The grammar has {part.size} repetitions when they are written out; at most "
            f"{MOST_REPETITIONS}. Give fewer or smaller schemas."
        )
    return rules(part.expression, {**part.rules, **used_rules(part.expression, part.rules)})


def _joined(expression: str, parts: tuple[GrammarPart, ...]) -> GrammarPart:
    found: dict[str, str] = {}
    for part in parts:
        for name, body in part.rules.items():
            if found.setdefault(name, body) != body:
                raise OptionError(f"Two parts of a grammar are named {name!r}; rename one.")
    sizes = {id(part): part.size for part in parts}  # a part that is used twice is written once
    return GrammarPart(expression, found, sum(sizes.values()))
