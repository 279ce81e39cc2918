"""What genai's prefix cache holds: a small model of its block manager, for the tokens it reuses.

genai keeps the KV cache in blocks and finds them again by their content: the ids in a block and
all before it. It does not report what it reused, so this takes the same steps (functions of
genai's ``block_manager.hpp`` and ``scheduler.hpp`` in brackets):

- A block is fresh, in use, or kept: it can be found and overwritten. Blocks in use can be found,
  too, so requests that run together share them.
- A request takes the blocks that its prompt begins with (``get_full_prefix_restore_plan``).
- In each step, running answers grow by a token first (``append_slots``), then prompts are read
  (``allocate``). A new block is a fresh one or, when none is left, the kept one that was not taken
  for longest (``get_lru_block_to_overwrite``). A fresh block counts as taken when the pool was
  made. An answer that shares its last block goes on in a copy.
- The begun block at the end is known by one length only: that of the prompt, until the first
  generated token is read; then it follows the answer.
- A request that ended gives up its blocks first to last (``free_sequence``). Where another block
  with that content is kept, that one becomes fresh (``BlockAllocator::free``).

`UnfollowedCache` is for what cannot be followed (speculation); it claims less, never more.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .kv_pool import KVPool


@dataclass(slots=True, eq=False)
class _Block:
    taken: int
    key: bytes = b""
    users: int = 0


class CachedSequence:
    """A request as the cache knows it.

    Attributes:
        ids: The prompt and the tokens generated so far; the caller appends to them.
        prompt_tokens: How many of them are the prompt.
        reused: Prompt ids that need not be read: never the last, which is needed.
        read: How many ids have been read, the reused ones included.
        table: Its blocks.
    """

    def __init__(self, prompt_ids: Sequence[int], block_tokens: int) -> None:
        """Know the prompt, and no block yet."""
        self.ids: list[int] = list(prompt_ids)
        self.prompt_tokens: int = len(self.ids)
        self.reused: int = 0
        self.read: int = 0
        self.table: list[_Block] = []
        self._block_tokens = block_tokens
        self._full_keys = [b""]

    def key(self, end: int) -> bytes:
        """Return the key of the block that ends after this many ids."""
        size, keys = self._block_tokens, self._full_keys
        full = end // size
        while len(keys) <= full:
            keys.append(_key(keys[-1], self.ids[(len(keys) - 1) * size : len(keys) * size]))
        return _key(keys[full], self.ids[full * size : end]) if end % size else keys[full]


class PrefixCache:
    """The blocks of a cache of fixed size, and which of them a prompt finds."""

    def __init__(self, block_tokens: int, blocks: int) -> None:
        """Model an empty cache."""
        self._block_tokens = block_tokens
        self._blocks = blocks
        self._clock = count(blocks)
        self._fresh = deque(_Block(taken) for taken in range(blocks))
        self._kept: dict[bytes, _Block] = {}
        self._found_by: dict[bytes, _Block] = {}

    @property
    def used_blocks(self) -> int:
        """How many blocks the running requests have."""
        return self._blocks - len(self._fresh) - len(self._kept)

    def reusable(self, prompt_ids: Sequence[int]) -> int:
        """Return how many of ``prompt_ids`` a request that begins now need not read."""
        sequence = self._sequence(prompt_ids)
        return self._reused(sequence, self._ends_of_found(sequence))

    def writes_beside(self, prompt_ids: Sequence[int], others: Sequence[CachedSequence]) -> bool:
        """Whether a prompt would be read into the begun block of another that is not read yet.

        Both find the block, and genai gives it to both: each overwrites what the other wrote.
        """
        sequence = self._sequence(prompt_ids)
        ends = self._ends_of_found(sequence)
        if not ends or not ends[-1] % self._block_tokens:
            return False
        begun = self._find(sequence.key(ends[-1]))
        return any(begun in other.table for other in others)

    def begin(self, prompt_ids: Sequence[int]) -> CachedSequence:
        """Give a request the blocks that its prompt begins with (``restore_cached_blocks``)."""
        sequence = self._sequence(prompt_ids)
        ends = self._ends_of_found(sequence)
        for end in ends:
            key = sequence.key(end)
            block = self._kept.pop(key, None) or self._found_by[key]
            block.users += 1
            block.taken = next(self._clock)
            sequence.table.append(block)
        sequence.reused = sequence.read = self._reused(sequence, ends)
        return sequence

    def step(self, running: Sequence[CachedSequence], most_prompt_tokens: int) -> None:
        """Follow one step.

        Args:
            running: The requests that take part, in the order in which they began. Those whose
                prompts have been read know the token that this step reads.
            most_prompt_tokens: How much of their prompts the step reads at most.
        """
        for sequence in running:  # `free_empty_physical_blocks`: a prompt that was found whole
            while len(sequence.table) > -(-sequence.read // self._block_tokens):
                self._give_up(sequence.table.pop())
        prompts = [sequence for sequence in running if sequence.read < sequence.prompt_tokens]
        answers = [sequence for sequence in running if sequence.read >= sequence.prompt_tokens]
        for sequence in answers:
            self._append(sequence)
        for sequence in prompts:
            tokens = min(sequence.prompt_tokens - sequence.read, most_prompt_tokens)
            most_prompt_tokens -= tokens
            self._extend(sequence, sequence.read + tokens)

    def follow(self, sequence: CachedSequence, read_ids: Iterable[int]) -> None:
        """Follow a request that ran alone to its end.

        Args:
            sequence: What `begin` returned.
            read_ids: The ids of its answer that were read, which the last one never is.
        """
        self.step([sequence], sequence.prompt_tokens)
        for token_id in read_ids:
            sequence.ids.append(token_id)
            self.step([sequence], 0)
        self.end(sequence)

    def end(self, sequence: CachedSequence) -> None:
        """Take a request's blocks back; they can be found until they are overwritten."""
        for block in sequence.table:
            self._give_up(block)
        sequence.table = []

    def _sequence(self, prompt_ids: Sequence[int]) -> CachedSequence:
        return CachedSequence(prompt_ids, self._block_tokens)

    @staticmethod
    def _reused(sequence: CachedSequence, ends: list[int]) -> int:
        return min(ends[-1], sequence.prompt_tokens - 1) if ends else 0

    def _find(self, key: bytes) -> _Block | None:
        return self._kept.get(key) or self._found_by.get(key)

    def _ends_of_found(self, sequence: CachedSequence) -> list[int]:
        """Return where the blocks end that a prompt begins with; a begun one is the last."""
        ends: list[int] = []
        for start in range(0, sequence.prompt_tokens, self._block_tokens):
            whole = min(start + self._block_tokens, sequence.prompt_tokens)
            if self._find(sequence.key(whole)) is not None:
                ends.append(whole)
                continue
            for middle in range(start + 1, whole):  # the shortest is taken
                if self._find(sequence.key(middle)) is not None:
                    ends.append(middle)
                    break
            break
        return ends

    def _append(self, sequence: CachedSequence) -> None:
        """Make room for the token that a running answer reads (``append_slots``)."""
        end = sequence.read + 1
        last = sequence.table[-1]
        if end > len(sequence.table) * self._block_tokens:
            self._extend(sequence, end)
        elif last.users > 1:
            sequence.table[-1] = self._take(sequence.key(end))
            self._give_up(last)
        else:
            self._rename(last, sequence.key(end))
        sequence.read = end

    def _extend(self, sequence: CachedSequence, end: int) -> None:
        """Take the blocks in which the ids up to ``end`` are read (``allocate``)."""
        size, table = self._block_tokens, sequence.table
        if table and end > len(table) * size:
            key = sequence.key(len(table) * size)
            if table[-1].key != key:  # it was begun
                self._rename(table[-1], key)
        while end > len(table) * size:
            table.append(self._take(sequence.key(min((len(table) + 1) * size, len(sequence.ids)))))
        sequence.read = end

    def _rename(self, block: _Block, key: bytes) -> None:
        self._found_by.pop(block.key, None)
        block.key = key
        self._found_by[key] = block

    def _take(self, key: bytes) -> _Block:
        """Take a fresh block, or overwrite the kept one that was not taken for longest."""
        if self._fresh:
            block = self._fresh.popleft()
        else:
            block = min(self._kept.values(), key=lambda kept: kept.taken)
            del self._kept[block.key]
            self._found_by.pop(block.key, None)
            block.taken = next(self._clock)
        block.key, block.users = key, 1
        self._found_by[key] = block
        return block

    def _give_up(self, block: _Block) -> None:
        block.users -= 1
        if block.users:
            return
        double = self._kept.pop(block.key, None)
        if double is not None:
            self._fresh.append(double)
            if self._found_by.get(block.key) is double:
                self._found_by[block.key] = block
        self._kept[block.key] = block


class UnfollowedCache:
    """What is surely found where genai cannot be followed: the last request's whole blocks."""

    def __init__(self, block_tokens: int) -> None:
        """Expect nothing of an empty cache."""
        self._block_tokens = block_tokens
        self._running = 0
        self._last_ids: list[int] = []

    def reusable(self, prompt_ids: Sequence[int]) -> int:
        """Return what a prompt shares with the last request, if nothing runs that overwrites it."""
        if self._running:
            return 0
        known = min(len(self._last_ids), len(prompt_ids) - 1)
        shared = next((at for at in range(known) if self._last_ids[at] != prompt_ids[at]), known)
        return shared // self._block_tokens * self._block_tokens

    def writes_beside(self, _prompt_ids: Sequence[int], others: Sequence[CachedSequence]) -> bool:
        """Whether a prompt might be read into another's begun block: unknown, so yes."""
        return bool(others)

    def begin(self, prompt_ids: Sequence[int]) -> CachedSequence:
        """Note that a request runs."""
        sequence = CachedSequence(prompt_ids, self._block_tokens)
        sequence.reused = self.reusable(prompt_ids)
        self._running += 1
        return sequence

    def step(self, running: Sequence[CachedSequence], most_prompt_tokens: int) -> None:
        """Follow nothing."""

    def follow(self, sequence: CachedSequence, read_ids: Iterable[int]) -> None:
        """Note a request that ran alone to its end."""
        self.end(sequence)
        self._last_ids = [*sequence.ids, *read_ids]

    def end(self, sequence: CachedSequence) -> None:
        """Note what a request leaves: of its ids, all but the last have been read."""
        self._running -= 1
        self._last_ids = sequence.ids[:-1]


def follow_cache(pool: KVPool) -> PrefixCache | UnfollowedCache:
    """Return what follows an empty cache of the size of ``pool``."""
    if pool.spare_tokens:  # for candidates: where the rejected ones were is not known
        return UnfollowedCache(pool.block_tokens)
    return PrefixCache(pool.block_tokens, pool.blocks)


def _key(before: bytes, ids: Sequence[int]) -> bytes:
    return hashlib.blake2b(before + array("q", ids).tobytes(), digest_size=16).digest()
