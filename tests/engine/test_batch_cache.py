"""The prefix cache while requests run together: what is found is right, and counted right.

genai lets a request find blocks that were never filled, or that another prompt is read into (the
tests called upstream show it). The worker's batch must give the answers of transformers in
float32 whatever joins, leaves or forks between two steps.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai
import pytest

from phi3ov.answer.token_stream import TokenRequest
from phi3ov.engine.genai.draft import SpeculationPlan
from phi3ov.engine.genai.kv_pool import KVPool
from phi3ov.engine.genai.prefix_cache import CachedSequence, PrefixCache
from phi3ov.engine.pipeline import generation_config
from phi3ov.engine.worker.batch import Batch
from phi3ov.engine.worker.protocol import Cancel, Progress, Submit

from .conftest import Zoo
from .truth import greedy

ROW = "phi-4"
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
NEW_TOKENS = 8

Ids = tuple[int, ...]


def some_ids(length: int, seed: int) -> Ids:
    """Return random ids of letters."""
    return tuple(random.Random(seed).choices(range(ord("a"), ord("z") + 1), k=length))


def open_pipeline(folder: Path, batched_tokens: int, blocks: int, **properties: Any) -> Any:
    """Return genai's continuous batching, which reads at most so many tokens per step."""
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.enable_prefix_caching = True
    scheduler.max_num_batched_tokens = batched_tokens
    scheduler.num_kv_blocks = blocks
    return openvino_genai.ContinuousBatchingPipeline(
        str(folder), scheduler, "CPU", EXACT | properties
    )


# --- what genai does ---------------------------------------------------------------------------


class Native:
    """genai's continuous batching, without phi3ov."""

    def __init__(self, zoo: Zoo, *, batched_tokens: int, blocks: int = 200) -> None:
        self.pipeline = open_pipeline(zoo.artifact(ROW), batched_tokens, blocks)
        self._numbers = count()

    def add(self, prompt_ids: Ids, limit: int = NEW_TOKENS) -> Any:
        """Add a request and return its handle."""
        asked = TokenRequest(prompt_ids=prompt_ids, max_new_tokens=limit, stop_ids=frozenset())
        config = generation_config(asked)
        config.ignore_eos = True
        prompt = openvino.Tensor(np.array([prompt_ids], dtype=np.int64))
        return self.pipeline.add_request(next(self._numbers), prompt, config)

    def answers(self, *handles: Any) -> list[Ids]:
        """Step until all is done and return what the handles got."""
        while self.pipeline.has_non_finished_requests():
            self.pipeline.step()
        return [read(handle) for handle in handles]


def read(handle: Any) -> Ids:
    """Return the ids that wait in a handle."""
    ids: list[int] = []
    while handle.can_read():
        ids += next(iter(handle.read().values())).generated_ids
    return tuple(ids)


def test_upstream_genai_reads_two_forks_into_one_block(zoo: Zoo) -> None:
    """Prompts that begin with the same begun block, added together: one answer is wrong."""
    native = Native(zoo, batched_tokens=512)
    trunk = some_ids(50, 1)
    (answer,) = native.answers(native.add(trunk))
    prompts = [trunk + answer + some_ids(20, seed) for seed in (2, 3)]
    answers = native.answers(*map(native.add, prompts))
    assert answers != [greedy(zoo.checkpoint(ROW), list(one), NEW_TOKENS) for one in prompts]


def test_upstream_genai_finds_a_block_that_was_never_filled(zoo: Zoo) -> None:
    """A request cancelled while its prompt is read spoils the next one with that prompt."""
    native = Native(zoo, batched_tokens=100)  # no multiple of a block's 32 tokens
    prompt = some_ids(300, 5)
    handle = native.add(prompt)
    native.pipeline.step()
    handle.cancel()
    native.answers()
    (answer,) = native.answers(native.add(prompt))
    assert answer != greedy(zoo.checkpoint(ROW), list(prompt), NEW_TOKENS)


# --- what the worker's batch does --------------------------------------------------------------


class Running:
    """The worker's batch without its process, what it answered, and what its cache says."""

    def __init__(
        self, zoo: Zoo, *, prompt_tokens: int, blocks: int = 200, max_running: int = 8
    ) -> None:
        self.pipeline = open_pipeline(zoo.artifact(ROW), prompt_tokens + max_running, blocks)
        pool = KVPool(blocks=blocks, block_tokens=32, block_bytes=0)
        self.batch = Batch(lambda: self.pipeline, pool, max_running, prompt_tokens)
        self.prompts: dict[int, Ids] = {}
        self.answers: dict[int, Ids] = {}
        self.cached: dict[int, int] = {}
        self.open: set[int] = set()
        self._blocks = blocks
        self._watch()

    def _watch(self) -> None:
        """Compare the blocks in use with genai's own figure in every step."""
        assert isinstance(self.batch.cache, PrefixCache)
        cache: PrefixCache = self.batch.cache
        pipeline, follow = self.pipeline, cache.step

        class Watched:
            def has_non_finished_requests(_) -> bool:  # noqa: N805
                return bool(pipeline.has_non_finished_requests())

            def add_request(_, *arguments: Any) -> Any:  # noqa: N805
                return pipeline.add_request(*arguments)

            def step(_) -> None:  # noqa: N805
                pipeline.step()
                share = pipeline.get_metrics().cache_usage / 100
                if cache.used_blocks:  # a step that reads nothing leaves the figure as it was
                    assert cache.used_blocks == pytest.approx(share * self._blocks, abs=0.01)

        def step(running: Sequence[CachedSequence], most_prompt_tokens: int) -> None:
            left = sum(max(0, one.prompt_tokens - one.read) for one in running)
            assert left <= most_prompt_tokens, "no prompt is left half read"
            follow(running, most_prompt_tokens)

        cache.step = step  # type: ignore[method-assign]
        self.batch.pipeline = Watched()

    def submit(self, prompt_ids: Ids, limit: int = NEW_TOKENS) -> int:
        """Ask, and return the request's number."""
        number = len(self.prompts)
        self.prompts[number], self.answers[number] = prompt_ids, ()
        self.open.add(number)
        asked = TokenRequest(prompt_ids=prompt_ids, max_new_tokens=limit, stop_ids=frozenset())
        self.batch.accept(Submit(number=number, request=asked))
        return number

    def step(self) -> list[Progress]:
        """Step, and note what came."""
        progress = self.batch.step()
        for one in progress:
            assert one.error is None
            if one.token_ids:
                self.cached.setdefault(one.number, one.cached_tokens)
            self.answers[one.number] += one.token_ids
            if one.ended:
                self.open.discard(one.number)
        return progress

    def run(self) -> None:
        """Step until nothing is left."""
        while not self.batch.idle:
            self.step()


def truth(zoo: Zoo, prompt_ids: Ids, length: int = NEW_TOKENS) -> Ids:
    """Return what transformers in float32 answers."""
    return greedy(zoo.checkpoint(ROW), list(prompt_ids), length)


def test_forks_that_begin_together_get_their_own_answers(zoo: Zoo) -> None:
    """Four prompts that begin with one begun block, and one that repeats another."""
    running = Running(zoo, prompt_tokens=512)
    trunk = some_ids(50, 1)
    first = running.submit(trunk)
    running.run()
    past = trunk + running.answers[first]
    forks = [running.submit(past + some_ids(20, seed)) for seed in (2, 3, 4, 5, 3)]
    running.run()
    for fork in forks:
        assert running.answers[fork] == truth(zoo, running.prompts[fork])
    # the first goes on in the begun block, the others have the whole one before it
    assert [running.cached[fork] for fork in forks[:4]] == [len(past) - 1, 32, 32, 32]


def test_forks_of_a_running_answer_get_their_own_answers(zoo: Zoo) -> None:
    """Prompts that go on from what another request is still writing."""
    running = Running(zoo, prompt_tokens=512)
    trunk = running.submit(some_ids(40, 1), limit=30)
    while len(running.answers[trunk]) < 5:
        running.step()
    past = running.prompts[trunk] + running.answers[trunk][:-1]
    forks = [running.submit(past + some_ids(9, seed)) for seed in (2, 3)]
    running.run()
    for number in (trunk, *forks):
        length = len(running.answers[number])
        assert running.answers[number] == truth(zoo, running.prompts[number], length)
    assert all(running.cached[fork] for fork in forks)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_prompt_that_was_cancelled_while_it_was_read_is_read_right_again(
    steps: int, zoo: Zoo
) -> None:
    """Beside an answer that takes part of each step, and one that joined just before."""
    running = Running(zoo, prompt_tokens=100)
    beside = running.submit(some_ids(17, 6), limit=12)
    running.step()
    long = some_ids(350, 7)
    given_up = running.submit(long)
    for _ in range(steps):
        running.step()
    joined = running.submit(long[:300] + some_ids(5, 8))
    running.batch.accept(Cancel(number=given_up))
    again = running.submit(long)
    running.run()
    assert running.answers[given_up] == ()
    for number in (beside, joined, again):
        length = len(running.answers[number])
        assert running.answers[number] == truth(zoo, running.prompts[number], length)
    assert running.cached[joined] == 96 * steps
    assert running.cached[again] == 300 // 32 * 32


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("blocks", [24, 200])
def test_any_requests_together_are_answered_right(blocks: int, seed: int, zoo: Zoo) -> None:
    """Requests of all kinds of common beginnings that join, fork and are cancelled at any step."""
    draw = random.Random(seed)
    running = Running(zoo, prompt_tokens=64, blocks=blocks, max_running=4)
    trunks = [some_ids(45, 10 + other) for other in range(2)]
    known = list(trunks)
    for _ in range(60):
        for _ in range(draw.choice((0, 0, 1, 2))):
            past = draw.choice(known[-5:] + trunks)
            prompt = past[: draw.choice((len(past), 32, 40, 64))][:170]
            prompt += some_ids(draw.choice((0, 1, 20, 40)), draw.randrange(5))
            running.submit(prompt, limit=draw.choice((1, 2, NEW_TOKENS, 35)))
        if running.open and draw.random() < 0.1:
            running.batch.accept(Cancel(number=draw.choice(sorted(running.open))))
        before = set(running.open)
        running.step()
        known += [running.prompts[one] + running.answers[one] for one in before - running.open]
    running.run()
    assert sum(map(bool, running.cached.values())) > 10
    for number, answer in running.answers.items():
        assert answer == truth(zoo, running.prompts[number], len(answer))


# --- how much of it is cached ------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [40, 60, 400])
@pytest.mark.parametrize("seed", range(3))
def test_what_a_joining_prompt_reuses_is_what_genai_does_not_read(
    blocks: int, seed: int, zoo: Zoo
) -> None:
    """Measured: beside answers that take all but one token of a step, a prompt reads one a step.

    The cache that is followed here sees the same requests: joining, ending, cancelled, with
    blocks that others use, have left, or have lost to somebody else.
    """
    beside = 3
    native = Native(zoo, batched_tokens=beside + 1, blocks=blocks)
    cache = PrefixCache(32, blocks)
    draw = random.Random(100 + seed)
    live: list[tuple[Any, CachedSequence, int]] = []
    known: list[Ids] = [some_ids(40, 50 + other) for other in range(3)]

    def add(prompt: Ids, limit: int) -> CachedSequence:
        sequence = cache.begin(prompt)
        live.append((native.add(prompt, limit), sequence, limit))
        return sequence

    def step(cancelled: Any = None) -> None:
        """One step of genai's and of the cache's, without the cancelled handle."""
        taking_part = [sequence for handle, sequence, _ in live if handle is not cancelled]
        answers = sum(one.read >= one.prompt_tokens for one in taking_part)
        cache.step(taking_part, beside + 1 - answers)
        native.pipeline.step()
        leaving = []
        for entry in list(live):
            handle, sequence, limit = entry
            if handle is cancelled:
                leaving.append(entry)
                continue
            sequence.ids += read(handle)
            if len(sequence.ids) - sequence.prompt_tokens == limit:
                live.remove(entry)
                cache.end(sequence)
                known.append(tuple(sequence.ids))
        for entry in leaving:
            live.remove(entry)
            cache.end(entry[1])

    found = []
    for _ in range(20):
        while len(live) < beside:  # they answer until somebody else has read its prompt
            past = draw.choice(known[-6:])[:100]
            sequence = add(past + some_ids(draw.choice((1, 7)), draw.randrange(9)), 400)
            while sequence.read < sequence.prompt_tokens:
                step()
        past = draw.choice([*known[-6:], *(tuple(one.ids[:-1]) for _, one, _ in live)])
        prompt = past[: draw.choice((len(past), 33, 64))][:150]
        prompt += some_ids(draw.choice((0, 1, 30)), draw.randrange(5))
        sequence = add(prompt, draw.choice((1, 3)))
        steps = 0
        while len(sequence.ids) == len(prompt):
            step()
            steps += 1
        assert sequence.reused == len(prompt) - steps
        found.append(sequence.reused)
        for _ in range(4):
            step()
        gone = draw.choice(live)[0]
        gone.cancel()
        known.append(tuple(next(one for handle, one, _ in live if handle is gone).ids))
        step(gone)
    assert sum(map(bool, found)) > 5


def test_with_speculation_forks_begin_one_step_after_the_other(zoo: Zoo) -> None:
    """What rejected candidates left is not known, so no two prompts are read in one step."""
    plan = SpeculationPlan(candidate_tokens=3, ngram_tokens=3)
    pipeline = open_pipeline(zoo.artifact(ROW), 64 + 4 * 8, 200, prompt_lookup=True)
    pool = KVPool(blocks=200, block_tokens=32, block_bytes=0, spare_tokens=4)
    batch = Batch(lambda: pipeline, pool, 8, 64, plan)
    answers: dict[int, Ids] = {}

    def ask(prompts: dict[int, Ids]) -> None:
        for number, prompt in prompts.items():
            answers[number] = ()
            asked = TokenRequest(prompt_ids=prompt, max_new_tokens=20, stop_ids=frozenset())
            batch.accept(Submit(number=number, request=asked))
        while not batch.idle:
            for one in batch.step():
                answers[one.number] += one.token_ids

    trunk = some_ids(50, 1)
    ask({0: trunk})
    prompts = {seed: trunk + answers[0] + some_ids(100, seed) for seed in (1, 2, 3)}
    ask(prompts)
    for number, prompt in prompts.items():
        assert answers[number] == truth(zoo, prompt, 20)
