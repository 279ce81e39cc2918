"""What phi3ov believes of genai's prefix cache, where no genai is needed to tell.

That it agrees with genai is tested in tests/engine/test_cached_tokens.py and test_batch_cache.py.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from phi3ov.engine.genai.kv_pool import KVPool
from phi3ov.engine.genai.prefix_cache import (
    CachedSequence,
    PrefixCache,
    UnfollowedCache,
    follow_cache,
)

BLOCK = 4
IDS = st.lists(st.integers(0, 1), min_size=1, max_size=18)
ALONE = st.lists(st.tuples(IDS, IDS), min_size=1, max_size=12)


def answer(cache: PrefixCache | UnfollowedCache, prompt: list[int], read: list[int]) -> int:
    """Run one request from begin to end and return what it reused."""
    sequence = cache.begin(prompt)
    cache.follow(sequence, read)
    return sequence.reused


@given(ALONE)
def test_what_is_reused_was_read_before(requests: list[tuple[list[int], list[int]]]) -> None:
    """Whatever came before, what is reused is the beginning of it, and never the whole prompt."""
    cache = PrefixCache(BLOCK, 12)
    seen: list[list[int]] = []
    for prompt, read in requests:
        reused = answer(cache, prompt, read)
        assert reused < len(prompt)
        assert not reused or any(one[:reused] == prompt[:reused] for one in seen)
        seen.append(prompt + read)


@given(ALONE)
def test_with_speculation_no_more_is_claimed(requests: list[tuple[list[int], list[int]]]) -> None:
    """The lower bound never exceeds what following would find, in a pool that is not used up."""
    exact, bound = PrefixCache(BLOCK, 1000), UnfollowedCache(BLOCK)
    for prompt, read in requests:
        assert answer(bound, prompt, read) <= answer(exact, prompt, read)


@given(st.data())
def test_requests_that_run_together_give_back_every_block(data: st.DataObject) -> None:
    """Begun, read, shared and ended in any order, no block is lost and none is held twice."""
    cache = PrefixCache(BLOCK, 60)
    running: list[CachedSequence] = []
    for _ in range(data.draw(st.integers(1, 25))):
        if len(running) < 4 and data.draw(st.booleans()):
            running.append(cache.begin(data.draw(IDS)))
        cache.step(running, 1000)
        for sequence in running:
            sequence.ids.append(data.draw(st.integers(0, 1)))
        leaves: bool = data.draw(st.booleans())
        if running and leaves:
            cache.end(running.pop(data.draw(st.integers(0, len(running) - 1))))
        tables = [block for sequence in running for block in sequence.table]
        assert cache.used_blocks == len(set(map(id, tables)))
        for sequence in running:
            assert len(sequence.table) == -(-sequence.read // BLOCK)
    for sequence in running:
        cache.end(sequence)
    assert cache.used_blocks == 0


def test_nothing_is_claimed_while_another_runs_that_cannot_be_followed() -> None:
    """It may overwrite any block; the last request is known again when all have ended."""
    cache = UnfollowedCache(BLOCK)
    prompt = [1] * 9
    first, second = cache.begin(prompt), cache.begin(prompt)
    assert (first.reused, second.reused) == (0, 0)
    assert cache.reusable(prompt) == 0
    for sequence in (first, second):
        sequence.ids.append(1)
        cache.end(sequence)
    assert cache.reusable(prompt) == 8
    assert cache.reusable([1, 1, 1, 1, 1, 0, 1]) == 4


def test_two_prompts_that_find_one_begun_block_are_told_apart() -> None:
    """The second would be read into it; one that finds whole blocks only, or none, would not."""
    cache = PrefixCache(BLOCK, 20)
    answer(cache, [1, 2, 3, 4, 5, 6], [])
    first = cache.begin([1, 2, 3, 4, 5, 6, 7, 7, 7])
    assert first.reused == 6
    assert cache.writes_beside([1, 2, 3, 4, 5, 6, 8], [first])
    assert not cache.writes_beside([1, 2, 3, 4, 9], [first])
    assert not cache.writes_beside([9, 9], [first])
    cache.step([first], 100)  # now the block holds the first one's ids
    assert not cache.writes_beside([1, 2, 3, 4, 5, 6, 8], [])
    assert cache.reusable([1, 2, 3, 4, 5, 6, 8]) == 4


def test_a_pool_with_room_for_candidates_is_not_followed() -> None:
    """Where genai put rejected candidates is not known."""
    pool = KVPool(blocks=5, block_tokens=BLOCK, block_bytes=1)
    assert isinstance(follow_cache(pool), PrefixCache)
    spare = KVPool(blocks=5, block_tokens=BLOCK, block_bytes=1, spare_tokens=3)
    assert isinstance(follow_cache(spare), UnfollowedCache)
