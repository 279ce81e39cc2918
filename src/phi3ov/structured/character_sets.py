"""Sets of characters, as ranges of their code points.

``ebnf.py`` writes them as character classes of a grammar.
"""

from __future__ import annotations

Ranges = tuple[tuple[int, int], ...]
"""Code points as sorted, inclusive, non-adjacent ranges."""

_LAST = 0x10FFFF
ANY: Ranges = ((1, 0xD7FF), (0xE000, _LAST))
"""Every character that an answer can hold: no surrogates, and no NUL, which
genai's grammar matcher drops."""
DIGIT: Ranges = ((0x30, 0x39),)
WORD: Ranges = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
SPACE: Ranges = ((0x09, 0x0D), (0x20, 0x20))
NEWLINE: Ranges = ((0x0A, 0x0A),)


def unite(*parts: Ranges) -> Ranges:
    """Return the union of ``parts``, sorting once."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(pair for part in parts for pair in part):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)


def without(characters: Ranges, others: Ranges) -> Ranges:
    """Return the difference: ``characters`` without ``others``."""
    gaps, first = [], 0
    for low, high in others:
        if first < low:
            gaps.append((first, low - 1))
        first = high + 1
    if first <= _LAST:
        gaps.append((first, _LAST))
    return common(characters, tuple(gaps))


def common(one: Ranges, other: Ranges) -> Ranges:
    """Return the intersection of both sets in one parallel pass."""
    found, left, right = [], 0, 0
    while left < len(one) and right < len(other):
        low, high = max(one[left][0], other[right][0]), min(one[left][1], other[right][1])
        if low <= high:
            found.append((low, high))
        if one[left][1] < other[right][1]:
            left += 1
        else:
            right += 1
    return tuple(found)


def split_utf8(low: int, high: int) -> list[tuple[int, int]]:
    """Split a range into pieces in which each UTF-8 byte covers an independent range."""
    for last in (0x7F, 0x7FF, 0xFFFF):
        if low <= last < high:
            return split_utf8(low, last) + split_utf8(last + 1, high)
    for bits in (6, 12, 18):
        tail = (1 << bits) - 1
        if high > 0x7F and low >> bits != high >> bits:
            if low & tail:
                return split_utf8(low, low | tail) + split_utf8((low | tail) + 1, high)
            if high & tail != tail:
                border = high & ~tail
                return split_utf8(low, border - 1) + split_utf8(border, high)
    return [(low, high)]
