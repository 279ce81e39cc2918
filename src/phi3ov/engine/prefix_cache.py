"""What genai's prefix cache holds: a small model of its block manager, for the tokens it reuses.

genai keeps the KV cache in blocks and finds them again by their content: the ids in a block and
all before it. It does not report what it reused, so this follows the same steps (functions of
genai's ``block_manager.hpp`` in brackets) for requests that run one after another:

- A block is fresh, occupied by the running request, or kept: it can be found and overwritten.
- A prompt takes the kept blocks that it begins with (``get_full_prefix_restore_plan``), fresh
  ones for the rest, and, when none is left, the kept block that was not taken for longest
  (``get_lru_block_to_overwrite``). A fresh block counts as taken when the pool was made.
- The begun block at the end is known by one length only: that of the prompt, until the first
  generated token is read; then it follows the answer (``append_slots``).
- A finished request gives up its blocks first to last (``free_sequence``). Where another block
  with that content is kept, that one becomes fresh (``BlockAllocator::free``).

What it cannot follow (requests that ran together, rejected candidates, a failure) it is told
by `PrefixCache.forget` or ``exact=False``; it then claims less, never more.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count


@dataclass(slots=True, eq=False)
class _Block:
    taken: int
    key: bytes = b""


class PrefixCache:
    """The blocks of a cache of fixed size, and which of them a prompt finds."""

    def __init__(self, block_tokens: int, blocks: int) -> None:
        """Model an empty cache of so many blocks with so many tokens each."""
        self._block_tokens = block_tokens
        self._clock = count(blocks)
        self._fresh = deque(_Block(taken) for taken in range(blocks))
        self._kept: dict[bytes, _Block] = {}
        self._exact = True
        self._last: set[bytes] = set()

    def forget(self) -> None:
        """Expect nothing, and from now on only what the last request will have left.

        Which block goes next is unknown once a request was not followed.
        """
        self._exact = False
        self._last = set()

    def reusable(self, prompt_ids: Sequence[int]) -> int:
        """Return how many of ``prompt_ids`` need not be read: never the last, which is needed."""
        found = self._find(prompt_ids)
        return min(found[-1][0], len(prompt_ids) - 1) if found else 0

    def add(
        self, prompt_ids: Sequence[int], generated_ids: Sequence[int], *, exact: bool = True
    ) -> None:
        """Note a request that ended, and the ids of its answer that were read.

        Args:
            prompt_ids: Its prompt.
            generated_ids: Its answer, but for the last id, which the model has not read.
            exact: Whether it ran alone and every id that was read is known.
        """
        ids = (*prompt_ids, *generated_ids)
        if not exact or not self._exact:
            self.forget()
            self._last = {key for length, key in self._keys(ids) if not length % self._block_tokens}
            return
        table = self._restore(prompt_ids)
        known = len(table)
        ends = list(self._keys(prompt_ids))
        if known and known < len(ends):  # the begun block was filled up
            table[-1].key = ends[known - 1][1]
        for _, key in ends[known:]:
            table.append(self._take(key))
        if generated_ids:
            ends = list(self._keys(ids))
            table[-1].key = ends[len(table) - 1][1]
            for _, key in ends[len(table) :]:
                table.append(self._take(key))
        for block in table:
            self._keep(block)

    def _keys(self, ids: Sequence[int]) -> list[tuple[int, bytes]]:
        """Return where each block of ``ids`` ends, and what it is found by."""
        keys: list[tuple[int, bytes]] = []
        before = b""
        for start in range(0, len(ids), self._block_tokens):
            block = ids[start : start + self._block_tokens]
            before = _key(before, block)
            keys.append((start + len(block), before))
        return keys

    def _find(self, prompt_ids: Sequence[int]) -> list[tuple[int, bytes]]:
        """Return the ends and keys of the blocks that a prompt begins with."""
        held = self._kept if self._exact else self._last
        found: list[tuple[int, bytes]] = []
        before = b""
        for end, key in self._keys(prompt_ids):
            if key in held:
                found.append((end, key))
                before = key
                continue
            start = len(found) * self._block_tokens
            for middle in range(start + 1, end):  # the shortest is taken
                part = _key(before, prompt_ids[start:middle])
                if part in held:
                    found.append((middle, part))
                    break
            break
        return found

    def _restore(self, prompt_ids: Sequence[int]) -> list[_Block]:
        """Take the blocks that a prompt begins with."""
        table = [self._kept.pop(key) for _, key in self._find(prompt_ids)]
        for block in table:
            block.taken = next(self._clock)
        return table

    def _take(self, key: bytes) -> _Block:
        """Take a fresh block, or overwrite the kept one that was not taken for longest."""
        if self._fresh:
            block = self._fresh.popleft()
        else:
            block = min(self._kept.values(), key=lambda kept: kept.taken)
            del self._kept[block.key]
            block.taken = next(self._clock)
        block.key = key
        return block

    def _keep(self, block: _Block) -> None:
        """Give up a block: it can be found until it is overwritten."""
        double = self._kept.pop(block.key, None)
        if double is not None:
            self._fresh.append(double)
        self._kept[block.key] = block


def _key(before: bytes, ids: Sequence[int]) -> bytes:
    return hashlib.blake2b(before + array("q", ids).tobytes(), digest_size=16).digest()
