"""Model of genai's prefix cache: replays its block manager to count the tokens that it reuses.

genai keeps the KV cache in blocks and finds them by their content: the ids in a block and all ids
before it. It does not report the tokens that it reused, so this module replays its steps
(functions of genai's ``block_manager.hpp`` and ``scheduler.hpp`` in brackets):

- A block is fresh, in use, or kept. A kept block can be found and can be overwritten. Blocks in
  use can be found, too, so concurrent requests share them.
- A request takes the blocks that its prompt begins with (``get_full_prefix_restore_plan``).
- In each step, running answers first grow by a token (``append_slots``), then prompts are read
  (``allocate``). A new block is a fresh one or, if none is left, the least recently used kept one
  (``get_lru_block_to_overwrite``). The creation of the pool counts as the use of a fresh block. An
  answer that shares its last block continues in a copy.
- The partial block at the end is found under a single length: the length of the prompt until the
  first generated token is read, then the length of the answer so far.
- A request that ended releases its blocks from first to last (``free_sequence``). If another block
  with the same content is kept, that other block becomes fresh (``BlockAllocator::free``).

`UnfollowedCache` is for requests that cannot be replayed (speculation); it reports a lower bound.
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
    """A request's state in the cache.

    Attributes:
        ids: The prompt and the tokens generated so far; the caller appends to them.
        prompt_tokens: Number of prompt ids.
        reused: Number of prompt ids that are reused; never the last id, which must be computed.
        read: Number of ids that have been read, including the reused ones.
        table: The request's blocks.
    """

    def __init__(self, prompt_ids: Sequence[int], block_tokens: int) -> None:
        """Start with the prompt and an empty block table."""
        self.ids: list[int] = list(prompt_ids)
        self.prompt_tokens: int = len(self.ids)
        self.reused: int = 0
        self.read: int = 0
        self.table: list[_Block] = []
        self._block_tokens = block_tokens
        self._full_keys = [b""]

    def key(self, end: int) -> bytes:
        """Return the key of the block that ends after ``end`` ids."""
        size, keys = self._block_tokens, self._full_keys
        full = end // size
        while len(keys) <= full:
            keys.append(_key(keys[-1], self.ids[(len(keys) - 1) * size : len(keys) * size]))
        return _key(keys[full], self.ids[full * size : end]) if end % size else keys[full]


class PrefixCache:
    """Model of a prefix cache with a fixed number of blocks."""

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
        """Number of blocks in use by running requests."""
        return self._blocks - len(self._fresh) - len(self._kept)

    def reusable(self, prompt_ids: Sequence[int]) -> int:
        """Return how many of ``prompt_ids`` a request that begins now would reuse."""
        sequence = self._sequence(prompt_ids)
        return self._reused(sequence, self._ends_of_found(sequence))

    def writes_beside(self, prompt_ids: Sequence[int], others: Sequence[CachedSequence]) -> bool:
        """Whether a prompt would be written into the partial block of another unread prompt.

        genai gives the block to both requests, and each overwrites the other's data.
        """
        sequence = self._sequence(prompt_ids)
        ends = self._ends_of_found(sequence)
        if not ends or not ends[-1] % self._block_tokens:
            return False
        begun = self._find(sequence.key(ends[-1]))
        return any(begun in other.table for other in others)

    def begin(self, prompt_ids: Sequence[int]) -> CachedSequence:
        """Start a request with the cached blocks of its prompt (``restore_cached_blocks``)."""
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
        """Replay one step.

        Args:
            running: The participating requests, in the order in which they began. If a request's
                prompt has been read, its ids include the token that this step reads.
            most_prompt_tokens: Maximum number of prompt tokens that the step reads.
        """
        for sequence in running:  # `free_empty_physical_blocks`: the whole prompt was found
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
        """Replay a request that ran alone to its end.

        Args:
            sequence: The request's state from `begin`.
            read_ids: The ids of its answer that were read; the last id never is.
        """
        self.step([sequence], sequence.prompt_tokens)
        for token_id in read_ids:
            sequence.ids.append(token_id)
            self.step([sequence], 0)
        self.end(sequence)

    def end(self, sequence: CachedSequence) -> None:
        """Release a request's blocks; they can be found until they are overwritten."""
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
        """Return the end positions of a prompt's cached blocks; a partial block is the last."""
        ends: list[int] = []
        for start in range(0, sequence.prompt_tokens, self._block_tokens):
            whole = min(start + self._block_tokens, sequence.prompt_tokens)
            if self._find(sequence.key(whole)) is not None:
                ends.append(whole)
                continue
            for middle in range(start + 1, whole):  # genai takes the shortest
                if self._find(sequence.key(middle)) is not None:
                    ends.append(middle)
                    break
            break
        return ends

    def _append(self, sequence: CachedSequence) -> None:
        """Allocate room for the token that a running answer reads (``append_slots``)."""
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
        """Allocate blocks for the ids up to ``end`` (``allocate``)."""
        size, table = self._block_tokens, sequence.table
        if table and end > len(table) * size:
            key = sequence.key(len(table) * size)
            if table[-1].key != key:  # it was partial
                self._rename(table[-1], key)
        while end > len(table) * size:
            table.append(self._take(sequence.key(min((len(table) + 1) * size, len(sequence.ids)))))
        sequence.read = end

    def _rename(self, block: _Block, key: bytes) -> None:
        self._found_by.pop(block.key, None)
        block.key = key
        self._found_by[key] = block

    def _take(self, key: bytes) -> _Block:
        """Take a fresh block, or overwrite the least recently used kept block."""
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
    """Lower bound of the cache's content if genai cannot be replayed.

    Only the whole blocks of the last request are certain to be found.
    """

    def __init__(self, block_tokens: int) -> None:
        """Start with an empty cache."""
        self._block_tokens = block_tokens
        self._running = 0
        self._last_ids: list[int] = []

    def reusable(self, prompt_ids: Sequence[int]) -> int:
        """Return how many ids a prompt shares with the last request; 0 while a request runs."""
        if self._running:
            return 0
        known = min(len(self._last_ids), len(prompt_ids) - 1)
        shared = next((at for at in range(known) if self._last_ids[at] != prompt_ids[at]), known)
        return shared // self._block_tokens * self._block_tokens

    def writes_beside(self, _prompt_ids: Sequence[int], others: Sequence[CachedSequence]) -> bool:
        """Whether a prompt may be written into another's partial block: unknown, so yes."""
        return bool(others)

    def begin(self, prompt_ids: Sequence[int]) -> CachedSequence:
        """Note that a request runs."""
        sequence = CachedSequence(prompt_ids, self._block_tokens)
        sequence.reused = self.reusable(prompt_ids)
        self._running += 1
        return sequence

    def step(self, running: Sequence[CachedSequence], most_prompt_tokens: int) -> None:
        """Do nothing."""

    def follow(self, sequence: CachedSequence, read_ids: Iterable[int]) -> None:
        """Note a request that ran alone to its end."""
        self.end(sequence)
        self._last_ids = [*sequence.ids, *read_ids]

    def end(self, sequence: CachedSequence) -> None:
        """Note the ids that a request leaves in the cache: all but the last have been read."""
        self._running -= 1
        self._last_ids = sequence.ids[:-1]


def follow_cache(pool: KVPool) -> PrefixCache | UnfollowedCache:
    """Return a model of an empty cache with the size of ``pool``."""
    if pool.spare_tokens:  # speculation: the positions of rejected draft tokens are unknown
        return UnfollowedCache(pool.block_tokens)
    return PrefixCache(pool.block_tokens, pool.blocks)


def _key(before: bytes, ids: Sequence[int]) -> bytes:
    return hashlib.blake2b(before + array("q", ids).tobytes(), digest_size=16).digest()
