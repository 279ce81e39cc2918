"""The KV cache: as large as the caller says, kept for later turns, emptied on request."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai
import pytest

import phi3ov
from phi3ov import OptionError, Phi3Chat, RuntimeConfig
from phi3ov.engine.genai.draft import SpeculationPlan
from phi3ov.engine.genai.kv_pool import KVPool, kv_block_bytes, plan_pool
from phi3ov.engine.paged.model import PagedModel
from phi3ov.engine.pipeline import PipelineEngine, scheduler_config
from phi3ov.engine.protocol import EngineName, EngineSetup
from phi3ov.runtime.rope import ContextChoice
from tests.inside import engine_of

from .conftest import EXACT, LoadModel, Zoo
from .truth import greedy, prompt_text

ROW = "phi-4"
GENAI: tuple[EngineName, ...] = ("pipeline", "worker")
CONFIGS = (
    EXACT,
    RuntimeConfig(),
    RuntimeConfig(kv_cache_precision="u8"),
    RuntimeConfig(kv_cache_precision="f16"),
    RuntimeConfig(key_cache_precision="u8", value_cache_precision="u8"),
    RuntimeConfig(key_cache_precision="u8", value_cache_precision="u4"),
    RuntimeConfig(key_cache_precision="u4", value_cache_precision="u8"),
    RuntimeConfig(kv_cache_precision="u4", key_cache_scales="token"),
    RuntimeConfig(
        kv_cache_precision="u8",
        key_cache_scales="token",
        key_cache_group_size=16,
        value_cache_group_size=8,
    ),
)


def set_up(zoo: Zoo, row: str = ROW, **changes: Any) -> EngineSetup:
    """Return a setup for the CPU in fp32."""
    artifact = phi3ov.Artifact.open(zoo.artifact(row))
    context = ContextChoice(tokens=1024, factors="none")
    setup = EngineSetup(artifact=artifact, device="CPU", config=EXACT, context=context)
    return replace(setup, **changes)


def genais_block_bytes(artifact: Path, properties: dict[str, str]) -> float:
    """Return what genai itself counts for a block."""
    pipeline: Any = openvino_genai.ContinuousBatchingPipeline(
        str(artifact), openvino_genai.Tokenizer(str(artifact)), scheduler_config(8, 64), "CPU",
        **properties,
    )  # fmt: skip
    config = openvino_genai.GenerationConfig(max_new_tokens=1, ignore_eos=True)
    pipeline.add_request(0, openvino.Tensor(np.array([[65]], dtype=np.int64)), config)
    pipeline.step()
    return float(pipeline.get_metrics().cache_size_in_bytes) / 8


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("row", [ROW, "phi-3-mini-4k"])
def test_a_block_takes_what_genai_counts(row: str, config: RuntimeConfig, zoo: Zoo) -> None:
    """In each precision, with fewer key heads than query heads and as many.

    OpenVINO's own cache tensors, which ``engine="paged"`` allocates, have that size as well.
    """
    artifact = phi3ov.Artifact.open(zoo.artifact(row))
    properties = config.to_properties()
    found = kv_block_bytes(artifact, "CPU", properties)
    context = ContextChoice(tokens=1024, factors="none")
    paged = PagedModel(artifact, device="CPU", config=config, context=context)
    assert found == sum(tensor.block_bytes for tensor in paged.layout)
    counted = genais_block_bytes(artifact.path, properties)
    four_bits = sum(
        tensor.block_bytes for tensor in paged.layout if tensor.precision in ("u4", "i4")
    )
    # genai allocates half a byte for four bits and counts a whole one.
    assert found + four_bits == counted


def test_the_default_holds_several_contexts_up_to_a_limit(zoo: Zoo) -> None:
    """So many contexts, or the limit, but never less than one context."""
    setup = set_up(zoo)

    def blocks(contexts: int, most_bytes: int) -> int:
        return plan(contexts, most_bytes).blocks

    def plan(contexts: int, most_bytes: int) -> KVPool:
        none = SpeculationPlan()
        return plan_pool(setup, {}, none, contexts=contexts, most_bytes=most_bytes)

    least = 1024 // 32 + 1
    assert blocks(4, 2**40) == 4 * least
    block_bytes = plan(1, 1).block_bytes
    assert blocks(4, 2 * least * block_bytes) == 2 * least
    assert blocks(4, 1) == least


@pytest.mark.parametrize("engine", ["paged", "transformers"])
def test_engines_without_a_pool_refuse_its_size(
    engine: EngineName, zoo: Zoo, load: LoadModel
) -> None:
    """The option is not accepted and ignored."""
    with pytest.raises(OptionError, match=f"cache_bytes=1000000: engine='{engine}' keeps"):
        load(zoo.artifact(ROW), engine=engine, cache_bytes=1_000_000)


@pytest.mark.parametrize("engine", GENAI)
def test_a_cache_that_holds_no_context_is_refused(
    engine: EngineName, zoo: Zoo, load: LoadModel
) -> None:
    """No request is accepted that genai would never answer; the message has both ways out."""
    block_bytes = 16384 * 2
    least = 33 * block_bytes
    with pytest.raises(OptionError, match=f"at least {least}, or load it with context_tokens=992"):
        load(zoo.artifact(ROW), engine=engine, cache_bytes=least - 1)
    model = load(zoo.artifact(ROW), engine=engine, cache_bytes=least - 1, context_tokens=992)
    longest = prompt_text(982)
    truth = greedy(zoo.checkpoint(ROW), model.tokenizer.encode_raw(longest), 10)
    assert model.complete(longest, max_new_tokens=10).token_ids == truth


def test_a_small_cache_forgets_the_oldest_chat_and_answers_right(zoo: Zoo, load: LoadModel) -> None:
    """Two chats fit, three do not: what was pushed out is read again, to the same answer."""
    model = load(zoo.artifact(ROW), context_tokens=256, cache_bytes=9 * 32768)

    def ask(seed: int) -> int:
        prompt = prompt_text(100, seed)
        truth = greedy(zoo.checkpoint(ROW), model.tokenizer.encode_raw(prompt), 8)
        reply = model.complete(prompt, max_new_tokens=8)
        assert reply.token_ids == truth
        return reply.usage.cached_tokens

    for seed in (1, 2, 3, 4, 1, 2, 3, 4, 4):
        cached = ask(seed)
    assert cached > 0


def test_many_at_once_in_a_small_cache_get_their_answers(zoo: Zoo, load: LoadModel) -> None:
    """Requests wait for room; none is dropped in the middle, none fails."""
    model = load(zoo.artifact(ROW), engine="worker", context_tokens=256, cache_bytes=12 * 32768)
    prompts = [prompt_text(20 + 10 * seed, seed) for seed in range(12)]
    truths = [
        greedy(zoo.checkpoint(ROW), model.tokenizer.encode_raw(prompt), 16) for prompt in prompts
    ]
    streams = [model.stream_prompt(prompt, max_new_tokens=100) for prompt in prompts]
    for stream in streams[::4]:
        stream.cancel()
    with ThreadPoolExecutor(12) as threads:
        replies = list(threads.map(lambda stream: stream.drain(), streams))
    for index, (reply, truth) in enumerate(zip(replies, truths, strict=True)):
        assert reply.finish_reason == ("length" if index % 4 else "cancelled")
        assert reply.token_ids[:16] == truth[: len(reply.token_ids)]


@pytest.mark.parametrize(
    ("engine", "row", "context"),
    [
        ("pipeline", ROW, None),
        ("paged", ROW, None),
        ("worker", ROW, None),
        ("worker", "phi-3.5-mini", 512),
    ],
)
def test_a_cleared_cache_is_empty_and_the_chat_goes_on(
    engine: EngineName, row: str, context: int | None, zoo: Zoo, load: LoadModel
) -> None:
    """The next turn reads everything, to the same answer, with the same LongRoPE factors."""
    model = load(zoo.artifact(row), engine=engine, context_tokens=context)
    chat, twin = Phi3Chat(model), Phi3Chat(model)
    questions = [prompt_text(40, seed) for seed in range(3)]
    usages = []
    for question in questions:
        reply = chat.generate(question, max_new_tokens=8)
        model.clear_cache()
        usages.append(reply.usage.cached_tokens)
    assert usages == [0, 0, 0]
    for question in questions:
        reply = twin.generate(question, max_new_tokens=8)
    assert twin.messages == chat.messages
    assert reply.usage.cached_tokens > 80


def test_clearing_waits_its_turn(zoo: Zoo, load: LoadModel) -> None:
    """Requests that run and wait are answered, in the worker's batch too."""
    model = load(zoo.artifact(ROW), engine="worker")
    prompts = [prompt_text(30, seed) for seed in range(3)]
    alone = [model.complete(prompt, max_new_tokens=60).token_ids for prompt in prompts]
    streams = [model.stream_prompt(prompt, max_new_tokens=60) for prompt in prompts]
    model.clear_cache()
    assert [stream.drain().token_ids for stream in streams] == alone
    assert model.complete(prompts[0], max_new_tokens=5).usage.cached_tokens == 0


def test_an_engine_recovers_when_building_anew_fails(
    zoo: Zoo, load: LoadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request at hand fails with the reason, and the next one tries again."""
    model = load(zoo.artifact(ROW))
    prompt = prompt_text(30)
    before = model.complete(prompt, max_new_tokens=5).token_ids
    engine_of(model, PipelineEngine)  # the other engines build nothing anew

    def fail(*_args: Any, **_options: Any) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(openvino_genai, "LLMPipeline", fail)
        with pytest.raises(phi3ov.GenerationError, match="out of memory"):
            model.clear_cache()
    assert model.complete(prompt, max_new_tokens=5).token_ids == before


def test_a_fork_costs_no_reading(zoo: Zoo, load: LoadModel) -> None:
    """Of the common past a fork reads at most what its last block has begun."""
    model = load(zoo.artifact(ROW))
    trunk = Phi3Chat(model, system=prompt_text(300))
    trunk.generate(prompt_text(50), max_new_tokens=8)
    past = len(trunk.token_ids)
    reply = trunk.fork().generate(prompt_text(10, seed=1), max_new_tokens=8)
    assert reply.usage.prompt_tokens - reply.usage.cached_tokens <= 10 + 8 + 32
    assert reply.usage.cached_tokens >= past - 32


def test_blocks_are_counted_up() -> None:
    """A begun block is a block, and one more may be written beside the last."""
    pool = KVPool(blocks=9, block_tokens=32, block_bytes=1)
    assert [pool.blocks_for(tokens) for tokens in (1, 32, 33, 256)] == [2, 2, 3, 9]


@pytest.mark.parametrize("name", ["int8", "undefined", "mro"])
def test_a_precision_that_openvino_does_not_know_is_refused(name: str, zoo: Zoo) -> None:
    """Before anything is compiled, with the property and its value."""
    artifact = phi3ov.Artifact.open(zoo.artifact(ROW))
    with pytest.raises(OptionError, match=f"KEY_CACHE_PRECISION is '{name}'"):
        kv_block_bytes(artifact, "CPU", {"KEY_CACHE_PRECISION": name})
    with pytest.raises(OptionError, match=f"key_cache_precision={name!r} is not one of"):
        RuntimeConfig(key_cache_precision=name, value_cache_precision="u8")  # type: ignore[arg-type]
