"""Texts of a grammar, drawn or recognized: a slow, obvious reading of phi3ov's EBNF."""

from __future__ import annotations

import functools
import math
import random
import re
from typing import Any

_TOKEN = re.compile(
    r'\s*(?:"((?:\\.|[^"\\])*)"|\[((?:\\.|[^\]\\])*)\]|(\w+)|(\{[\d,]+\}|[()|?*+]))'
)
_ESCAPE = re.compile(r"\\u([0-9a-f]{4})|\\U([0-9a-f]{8})")
_QUANTIFIERS = {"?": (0, 1), "*": (0, None), "+": (1, None)}

Node = tuple[Any, ...]


def _plain(text: str) -> list[int]:
    """Return the code points of a string or a class, escapes read; "-" between two is -1."""
    codes, at = [], 0
    while at < len(text):
        found = _ESCAPE.match(text, at)
        codes.append(int(found[1] or found[2], 16) if found else ord(text[at]))
        at = found.end() if found else at + 1
        if text[at : at + 1] == "-" and at + 1 < len(text):
            codes.append(-1)
            at += 1
    return codes


@functools.cache
def _parse(body: str) -> Node:
    tokens, at = [], 0
    while at < len(body.rstrip()):
        found = _TOKEN.match(body, at)
        assert found, body[at : at + 40]
        tokens.append(found)
        at = found.end()
    node = _alternatives(tokens)
    assert not tokens, body
    return node


def _alternatives(tokens: list[re.Match[str]]) -> Node:
    branches = [_sequence(tokens)]
    while tokens and tokens[0][4] == "|":
        tokens.pop(0)
        branches.append(_sequence(tokens))
    return ("either", branches)


def _sequence(tokens: list[re.Match[str]]) -> Node:
    parts: list[Node] = []
    while tokens and tokens[0][4] not in ("|", ")"):
        token = tokens.pop(0)
        if token[1] is not None:
            node: Node = ("text", "".join(map(chr, _plain(token[1].replace("-", "\\u002d")))))
        elif token[2] is not None:
            codes = _plain(token[2])
            pairs = []
            while codes:
                low = codes.pop(0)
                high = low
                if codes[:1] == [-1]:
                    codes.pop(0)
                    high = codes.pop(0)
                pairs.append((low, high))
            node = ("class", pairs)
        elif token[3] is not None:
            node = ("rule", token[3])
        else:
            assert token[4] == "("
            node = _alternatives(tokens)
            tokens.pop(0)
        if tokens and (tokens[0][4] in _QUANTIFIERS or (tokens[0][4] or "").startswith("{")):
            sign = tokens.pop(0)[4]
            if sign in _QUANTIFIERS:
                least, most = _QUANTIFIERS[sign]
            else:
                low_text, comma, high_text = sign[1:-1].partition(",")
                least = int(low_text)
                most = int(high_text) if high_text else None if comma else least
            node = ("repeat", node, least, most)
        parts.append(node)
    return ("all", parts)


class GrammarSampler:
    """A grammar, from whose first rule texts are drawn."""

    def __init__(self, grammar: str) -> None:
        self.rules: dict[str, Node] = {}
        for line in grammar.splitlines():
            name, _, body = line.partition(" ::= ")
            self.rules[name] = _parse(body)
        self._depths = dict.fromkeys(self.rules, math.inf)
        self._known: dict[int, float] = {}  # of each node, by its id
        while True:  # how deep each rule goes at least
            self._known.clear()
            depths = {name: self._depth(node) for name, node in self.rules.items()}
            if depths == self._depths:
                break
            self._depths = depths

    def _depth(self, node: Node) -> float:
        if id(node) not in self._known:
            self._known[id(node)] = self._least_depth(node)
        return self._known[id(node)]

    def _least_depth(self, node: Node) -> float:
        kind = node[0]
        if kind in ("text", "class"):
            return 0
        if kind == "rule":
            return 1 + self._depths[node[1]]
        if kind == "repeat":
            return self._depth(node[1]) if node[2] else 0
        inner = [self._depth(item) for item in node[1]]
        return min(inner) if kind == "either" else max(inner, default=0)

    def draw(self, chance: random.Random, *, fuel: int = 40) -> str:
        """Return a text of the grammar; with ``fuel`` used up, the shortest way out is taken."""
        return self._draw(self.rules["answer"], chance, fuel)

    def _draw(self, node: Node, chance: random.Random, fuel: float) -> str:
        kind = node[0]
        if kind == "text":
            return str(node[1])
        if kind == "class":
            return chr(chance.randint(*chance.choice(node[1])))
        if kind == "rule":
            return self._draw(self.rules[node[1]], chance, fuel - 1)
        if kind == "all":
            return "".join(self._draw(item, chance, fuel) for item in node[1])
        if kind == "either":
            fits = [item for item in node[1] if self._depth(item) <= fuel]
            item = chance.choice(fits) if fits else min(node[1], key=self._depth)
            return self._draw(item, chance, fuel)
        _, inner, least, most = node
        more = chance.choice((0, 0, 1, 2)) if self._depth(inner) <= fuel else 0
        count = least + more if most is None else min(most, least + more)
        return "".join(self._draw(inner, chance, fuel) for _ in range(count))

    def accepts(self, text: str) -> bool:
        """Whether ``text`` is one of the grammar's."""
        return len(text) in self._ends(self.rules["answer"], text, 0, {})

    def _ends(
        self, node: Node, text: str, at: int, known: dict[tuple[int, int], frozenset[int]]
    ) -> frozenset[int]:
        """Return where a text that a node allows may end if it begins ``at``."""
        key = (id(node), at)
        if key not in known:
            known[key] = frozenset(self._find_ends(node, text, at, known))
        return known[key]

    def _find_ends(
        self, node: Node, text: str, at: int, known: dict[tuple[int, int], frozenset[int]]
    ) -> set[int]:
        kind = node[0]
        if kind == "text":
            return {at + len(node[1])} if text.startswith(node[1], at) else set()
        if kind == "class":
            fits = at < len(text) and any(low <= ord(text[at]) <= high for low, high in node[1])
            return {at + 1} if fits else set()
        if kind == "rule":
            return set(self._ends(self.rules[node[1]], text, at, known))
        if kind == "either":
            return set[int]().union(*(self._ends(item, text, at, known) for item in node[1]))
        if kind == "all":
            ends = {at}
            for item in node[1]:
                ends = set[int]().union(*(self._ends(item, text, end, known) for end in ends))
            return ends
        _, inner, least, most = node
        ends, found, count = {at}, {at} if least == 0 else set[int](), 0
        while ends and (most is None or count < most):
            count += 1
            after = set[int]().union(*(self._ends(inner, text, end, known) for end in ends))
            ends = after - found if count > least else after
            found |= ends if count >= least else set()
        return found
