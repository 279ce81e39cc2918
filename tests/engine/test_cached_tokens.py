"""``usage.cached_tokens`` is what genai's prefix cache really saves, measured and not modelled.

The measurement: the same prompts through genai's continuous batching with one token per step.
Each prompt token that is not cached then takes a step of its own, so the steps until the first
token are the tokens that were read.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai
import pytest

from phi3ov import GenerationError, Phi3Chat, Reply
from phi3ov.answer.token_stream import TokenStream
from phi3ov.artifact.folder import Artifact
from phi3ov.engine.genai.kv_pool import kv_block_bytes
from phi3ov.engine.genai.prefix_cache import CachedSequence
from phi3ov.engine.pipeline import generation_config
from phi3ov.model import Phi3Model
from tests.inside import any_engine_of, runner_of

from .conftest import LoadModel, Zoo
from .truth import greedy, prompt_text

ROWS = ("phi-4", "phi-3-mini-4k")


class Measurement:
    """genai's cache, watched from outside while it gets the same requests as phi3ov."""

    def __init__(self, artifact: Path, blocks: int) -> None:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = True
        scheduler.max_num_batched_tokens = 1
        scheduler.num_kv_blocks = blocks
        self._pipeline: Any = openvino_genai.ContinuousBatchingPipeline(
            str(artifact),
            scheduler,
            "CPU",
            {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"},
        )
        self._requests = 0

    def cached_tokens(self, stream: TokenStream, produced: tuple[int, ...] | None) -> int:
        """Run a request to its end and return how many prompt tokens took no step."""
        request = stream.request
        prompt = openvino.Tensor(np.array([request.prompt_ids], dtype=np.int64))
        handle = self._pipeline.add_request(self._requests, prompt, generation_config(request))
        self._requests += 1
        steps = 0
        tokens: list[int] = []
        while not handle.can_read():
            self._pipeline.step()
            steps += 1
        while self._pipeline.has_non_finished_requests() or handle.can_read():
            while handle.can_read():
                tokens += next(iter(handle.read().values())).generated_ids
            if self._pipeline.has_non_finished_requests():
                self._pipeline.step()
        assert produced in (None, tuple(tokens)), "the two caches must see the same sequences"
        return len(request.prompt_ids) - steps


class Watch:
    """Takes turns with a model and measures the cache beside it."""

    def __init__(
        self, model: Phi3Model, monkeypatch: pytest.MonkeyPatch, blocks: int | None = None
    ) -> None:
        self.model = model
        if blocks is None:
            blocks = runner_of(model).pool.blocks
        self._measurement = Measurement(model.artifact.path, blocks)
        self._streams: list[TokenStream] = []
        submit = any_engine_of(model).submit

        def remember(request: Any, **options: Any) -> TokenStream:
            self._streams.append(submit(request, **options))
            return self._streams[-1]

        monkeypatch.setattr(any_engine_of(model), "submit", remember)

    def repeat(self, read_ids: list[int]) -> None:
        """Let the measured cache see the last request, up to the ids that were really read."""
        stream = self._streams[-1]
        shorter = replace(stream.request, max_new_tokens=len(read_ids) + 1)
        again = TokenStream(shorter)
        self._measurement.cached_tokens(again, None)

    def measure(self, reply: Reply) -> tuple[int, int]:
        """Return what the last reply reported and what was really cached."""
        really = self._measurement.cached_tokens(self._streams[-1], reply.token_ids)
        return reply.usage.cached_tokens, really


@pytest.fixture(params=ROWS)
def watch(
    request: pytest.FixtureRequest, zoo: Zoo, load: LoadModel, monkeypatch: pytest.MonkeyPatch
) -> Watch:
    """A freshly loaded model, its cache empty; with and without a sliding window."""
    return Watch(load(zoo.artifact(request.param)), monkeypatch)


@pytest.mark.parametrize("answer_tokens", [1, 16, 21])
def test_a_growing_chat_reports_exactly_what_was_cached(answer_tokens: int, watch: Watch) -> None:
    """In eight turns of various lengths, everything but the new ids and a rest is cached."""
    chat = Phi3Chat(watch.model, system="You are terse.")
    for turn, length in enumerate((9, 40, 1, 25, 64, 7, 32, 3)):
        reply = chat.generate(prompt_text(length, seed=turn), max_new_tokens=answer_tokens)
        reported, really = watch.measure(reply)
        assert reported == really, f"turn {turn}"
        assert (really > 0) == (turn > 0)


def test_turns_inside_one_block_report_exactly_what_was_cached(watch: Watch) -> None:
    """A block that prompts alone have filled is found by the length of the first of them."""
    whole = prompt_text(120)
    cached = []
    for length in (70, 80, 95, 40, 90, 120):
        reply = watch.model.complete(whole[:length], max_new_tokens=1)
        reported, really = watch.measure(reply)
        assert reported == really, f"{length} tokens"
        cached.append(really)
    assert cached == [0, 70, 70, 32, 70, 70]


@pytest.mark.parametrize("length", [31, 32, 33, 64, 80, 600])
def test_the_same_prompt_again_reports_exactly_what_was_cached(length: int, watch: Watch) -> None:
    """A prompt asked three times, of a whole number of blocks and not."""
    for _ in range(3):
        reply = watch.model.complete(prompt_text(length), max_new_tokens=8)
        reported, really = watch.measure(reply)
        assert reported == really


def test_an_unrelated_prompt_reports_nothing(watch: Watch) -> None:
    """Another prompt shares no block with the last one."""
    for seed in (1, 2, 3):
        reply = watch.model.complete(prompt_text(100, seed), max_new_tokens=8)
        assert watch.measure(reply) == (0, 0)


@pytest.mark.parametrize("shorter", [20, 32, 50, 64, 99])
def test_a_prefix_of_the_last_prompt_reports_exactly_what_was_cached(
    shorter: int, watch: Watch
) -> None:
    """Part of the last prompt, cut at and inside a block."""
    whole = prompt_text(100)
    for prompt in (whole, whole[:shorter]):
        reply = watch.model.complete(prompt, max_new_tokens=8)
        reported, really = watch.measure(reply)
        assert reported == really


def test_forks_report_exactly_what_was_cached(watch: Watch) -> None:
    """Chats with a common past that take turns find both the past and their own turns."""
    trunk = Phi3Chat(watch.model)
    watch.measure(trunk.generate(prompt_text(50), max_new_tokens=12))
    twins = (trunk.fork(), trunk.fork())
    for turn in range(4):
        for which, twin in enumerate(twins):
            question = prompt_text(20, seed=10 * turn + which)
            reported, really = watch.measure(twin.generate(question, max_new_tokens=12))
            assert reported == really >= 64 + 32 * turn


@pytest.mark.parametrize(
    ("engine", "blocks"), [("pipeline", 11), ("pipeline", 16), ("pipeline", 1000), ("worker", 11)]
)
@pytest.mark.parametrize("seed", range(3))
def test_any_sequence_of_prompts_reports_exactly_what_was_cached(
    *,
    seed: int,
    engine: str,
    blocks: int,
    zoo: Zoo,
    load: LoadModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Prompts that grow, shrink, repeat, branch off and begin anew, with and without eviction."""
    artifact = zoo.artifact("phi-4")
    one = kv_block_bytes(Artifact.open(artifact), "CPU", {"KV_CACHE_PRECISION": "f32"})
    model = load(
        artifact, engine=engine, context_tokens=320, cache_bytes=blocks * one, warm_up=False
    )
    watch = Watch(model, monkeypatch, blocks)
    draw = random.Random(seed)
    prompts = [prompt_text(50, seed + other) for other in range(3)]
    found = []
    for step in range(60):
        known = draw.choice(prompts[-6:])
        prompt = (known if draw.random() < 0.6 else known[: draw.randint(1, 150)])[:180]
        prompt += prompt_text(draw.choice((0, 1, 9, 40)), seed=100 * seed + step)
        reply = watch.model.complete(prompt, max_new_tokens=draw.choice((1, 2, 7, 33)))
        reported, really = watch.measure(reply)
        assert reported == really, f"step {step}"
        found.append(really)
        prompts.append(prompt + watch.model.tokenizer.decode(reply.token_ids))
    assert any(found)


@pytest.mark.parametrize("ending", ["cancelled", "dropped", "stop string", "reader broke"])
def test_after_an_answer_that_ended_early_the_figure_stays_exact(
    ending: str, zoo: Zoo, load: LoadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Genai computes a little more before it sees that nobody listens, and that is known, too."""
    model = load(zoo.artifact("phi-4"))
    watch = Watch(model, monkeypatch)
    cache = runner_of(model).cache
    read: list[int] = []
    follow = cache.follow

    def note(sequence: CachedSequence, read_ids: list[int]) -> None:
        read[:] = read_ids
        follow(sequence, read_ids)

    monkeypatch.setattr(cache, "follow", note)
    chat = Phi3Chat(model)
    whole = chat.fork().generate(prompt_text(40), max_new_tokens=300)
    watch.measure(whole)
    if ending == "stop string":
        chat.generate(prompt_text(40), max_new_tokens=300, stop=(whole.text[15:19],))
    elif ending == "reader broke":

        def fail(_stream: TokenStream, _token_ids: list[int]) -> None:
            raise RuntimeError("the reader broke")

        with monkeypatch.context() as patched:
            patched.setattr(TokenStream, "put", fail)
            with pytest.raises(GenerationError, match="the reader broke"):
                chat.generate(prompt_text(40), max_new_tokens=300)
    else:
        stream = chat.stream(prompt_text(40), max_new_tokens=300)
        for _ in range(3):
            next(stream)
        stream.cancel(keep=ending == "cancelled")
        stream.drain()
    assert read  # as far as it came before the engine heard of it
    watch.repeat(read)
    for seed in range(3):
        reported, really = watch.measure(chat.generate(prompt_text(20, seed), max_new_tokens=9))
        assert reported == really


def test_after_genai_failed_the_cache_begins_empty_and_answers_are_right(
    zoo: Zoo, load: LoadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a failure leaves in genai's cache is unknown, so none of it is used."""
    model = load(zoo.artifact("phi-4"))
    prompt = prompt_text(100)
    truth = greedy(zoo.checkpoint("phi-4"), model.tokenizer.encode_raw(prompt), 8)
    assert model.complete(prompt, max_new_tokens=8).token_ids == truth
    runner = runner_of(model)

    class Broken:
        def generate(self, *_arguments: Any) -> None:
            raise RuntimeError("out of memory")

    monkeypatch.setattr(runner, "pipeline", Broken())
    with pytest.raises(GenerationError, match="out of memory"):
        model.complete(prompt, max_new_tokens=8)
    for cached in (0, 96):
        reply = model.complete(prompt, max_new_tokens=8)
        assert reply.token_ids == truth
        assert reply.usage.cached_tokens == cached
