"""LongRoPE: the factors are chosen once, so cache, chunks and neighbours never mix both sets.

The first half is phi3ov's side: everything equals transformers pinned to the same factors. The
second half reproduces what the tools underneath do by themselves; each of those tests says in
its message what to reconsider when it fails because upstream was mended.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai
import pytest
import torch
from transformers import AutoModelForCausalLM

from phi3ov import Artifact, OptionError, Phi3Chat, UnsupportedModelError
from phi3ov.artifact.folder import MANIFEST_NAME, MODEL_BIN, MODEL_XML, Manifest, record_files
from phi3ov.engine.pinned import open_pinned
from phi3ov.engine.protocol import EngineName
from phi3ov.runtime.rope import choose_context

from .checkpoints import BORDER, LONGEST, LONGROPE_ROWS
from .conftest import LoadModel, Zoo
from .truth import Pin, greedy, prompt_text

ENGINES: tuple[EngineName, ...] = ("pipeline", "paged", "transformers")
ROW = "phi-3-mini-128k"
PROPERTIES = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}


def prompt_ids_of(text: str) -> list[int]:
    """Return the ids of lower-case text: a's is 64 in the alphabet that checkpoints.py sorts."""
    return [ord(letter) - ord("a") + 64 for letter in text]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("row", LONGROPE_ROWS)
def test_the_context_asked_for_decides_the_factors(
    row: str, engine: EngineName, zoo: Zoo, load: LoadModel
) -> None:
    """None and the border itself choose short factors, one token more chooses long ones."""
    prompt = prompt_text(20, seed=1)
    cases: tuple[tuple[int | None, Pin], ...] = (
        (None, "short"),
        (BORDER, "short"),
        (BORDER + 1, "long"),
    )
    for context_tokens, pin in cases:
        model = load(zoo.artifact(row), engine=engine, context_tokens=context_tokens)
        assert model.context.factors == pin
        assert model.context.tokens == (context_tokens or BORDER)
        truth = greedy(zoo.checkpoint(row), prompt_ids_of(prompt), 32, pin=pin)
        assert model.complete(prompt, max_new_tokens=32).token_ids == truth
        model.close()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("row", LONGROPE_ROWS)
def test_an_answer_may_cross_the_border(
    row: str, engine: EngineName, zoo: Zoo, load: LoadModel
) -> None:
    """An answer that begins below the original context and ends above it is right throughout."""
    prompt = prompt_text(BORDER - 10, seed=2)
    truth = greedy(zoo.checkpoint(row), prompt_ids_of(prompt), 40, pin="long")
    model = load(zoo.artifact(row), engine=engine, context_tokens=LONGEST)
    assert model.complete(prompt, max_new_tokens=40).token_ids == truth


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("row", LONGROPE_ROWS)
def test_a_prompt_may_lie_wholly_above_the_border(
    row: str, engine: EngineName, zoo: Zoo, load: LoadModel
) -> None:
    """A prompt of three times the original context is answered right."""
    prompt = prompt_text(3 * BORDER, seed=3)
    truth = greedy(zoo.checkpoint(row), prompt_ids_of(prompt), 32, pin="long")
    model = load(zoo.artifact(row), engine=engine, context_tokens=LONGEST)
    assert model.complete(prompt, max_new_tokens=32).token_ids == truth


@pytest.mark.parametrize("engine", ENGINES)
def test_a_prompt_may_be_longer_than_a_prefill_chunk(
    engine: EngineName, zoo: Zoo, load: LoadModel
) -> None:
    """A prompt that the engine reads in two chunks is read as one."""
    prompt = prompt_text(700, seed=4)
    truth = greedy(zoo.checkpoint(ROW), prompt_ids_of(prompt), 32, pin="long")
    model = load(zoo.artifact(ROW), engine=engine, context_tokens=LONGEST)
    assert model.complete(prompt, max_new_tokens=32).token_ids == truth


@pytest.mark.parametrize("row", LONGROPE_ROWS)
@pytest.mark.parametrize("chunk", [16, 33])
def test_the_chunk_size_never_changes_an_answer(
    row: str, chunk: int, zoo: Zoo, load: LoadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With chunks that end below, at and above the border the answers stay the same."""
    monkeypatch.setattr("phi3ov.engine.pipeline.PREFILL_CHUNK_TOKENS", chunk)
    model = load(zoo.artifact(row), context_tokens=LONGEST)
    for length, seed in ((BORDER - 4, 5), (2 * BORDER + 5, 6)):
        prompt = prompt_text(length, seed)
        truth = greedy(zoo.checkpoint(row), prompt_ids_of(prompt), 24, pin="long")
        assert model.complete(prompt, max_new_tokens=24).token_ids == truth


@pytest.mark.parametrize("row", LONGROPE_ROWS)
def test_a_cached_prefix_from_below_the_border_is_good_above_it(
    row: str, zoo: Zoo, load: LoadModel
) -> None:
    """A prompt that grows over the border reuses what was cached below it, and is right."""
    whole = prompt_text(3 * BORDER, seed=7)
    model = load(zoo.artifact(row), context_tokens=LONGEST)
    for length in (BORDER - 20, BORDER + 20, 3 * BORDER):
        prompt = whole[:length]
        truth = greedy(zoo.checkpoint(row), prompt_ids_of(prompt), 16, pin="long")
        reply = model.complete(prompt, max_new_tokens=16)
        assert reply.token_ids == truth
        assert bool(reply.usage.cached_tokens) == (length > BORDER)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_chat_may_outgrow_the_original_context(
    engine: EngineName, zoo: Zoo, load: LoadModel
) -> None:
    """Six turns from below the border to far above it: each answer is right."""
    model = load(zoo.artifact(ROW), engine=engine, context_tokens=LONGEST)
    chat = Phi3Chat(model)
    for turn in range(6):
        question = prompt_text(12, seed=turn)
        user_ids = model.tokenizer.encode_raw(f"<|user|>\n{question}<|end|>\n<|assistant|>\n")
        truth = greedy(zoo.checkpoint(ROW), [*chat.token_ids, *user_ids], 16, pin="long")
        assert chat.generate(question, max_new_tokens=16).token_ids == truth
    assert len(chat.token_ids) > 2 * BORDER


def test_a_short_request_beside_a_long_one_is_right(zoo: Zoo, tmp_path: Path) -> None:
    """In one batch of genai's continuous batching, the pinned graph keeps both right."""
    artifact = Artifact.open(zoo.artifact(ROW))
    context = choose_context(artifact.config, LONGEST)
    pipeline = _continuous_batching(artifact.path, open_pinned(artifact, context).xml, tmp_path)
    prompts = [prompt_text(20, seed=8), prompt_text(2 * BORDER, seed=9)]
    truths = [
        greedy(zoo.checkpoint(ROW), prompt_ids_of(prompt), 20, pin="long") for prompt in prompts
    ]
    assert _generate_together(pipeline, prompts, 20) == truths


# What the tools underneath do with LongRoPE by themselves.


def test_upstream_transformers_cached_answer_diverges_at_the_border(zoo: Zoo) -> None:
    """The cached generate() of transformers itself is wrong from the crossing on."""
    model = AutoModelForCausalLM.from_pretrained(zoo.checkpoint(ROW), dtype=torch.float32).eval()
    prompt_ids = prompt_ids_of(prompt_text(BORDER - 10, seed=2))
    uncached = greedy(zoo.checkpoint(ROW), prompt_ids, 20)  # not pinned: switches, without a cache
    produced = model.generate(
        torch.tensor([prompt_ids]), max_new_tokens=20, do_sample=False, eos_token_id=None
    )
    cached = tuple(produced[0, len(prompt_ids) :].tolist())
    _expect_wrong_from_the_crossing_on(cached, uncached, "transformers' cached generate()")


def test_upstream_optimum_generate_raises_above_the_border(zoo: Zoo) -> None:
    """optimum-intel drops the cache at the border and then fails over the missing cache."""
    from optimum.intel import OVModelForCausalLM

    model = OVModelForCausalLM.from_pretrained(zoo.artifact(ROW), ov_config=PROPERTIES)
    for length in (BORDER - 10, 2 * BORDER):
        prompt = torch.tensor([prompt_ids_of(prompt_text(length, seed=2))])
        try:
            model.generate(prompt, max_new_tokens=20, do_sample=False, eos_token_id=None)
        except TypeError as error:
            assert "'NoneType' object is not subscriptable" in str(error)  # noqa: PT017
        else:
            pytest.fail(
                "optimum-intel no longer fails above the original context. Check its answers; if "
                "they are right, engine/transformers.py need not move the border any more."
            )


def test_upstream_genai_diverges_at_the_border(zoo: Zoo) -> None:
    """openvino-genai on the graph as exported is wrong from the crossing on."""
    artifact = zoo.artifact(ROW)
    prompt = prompt_text(BORDER - 10, seed=2)
    truth = greedy(zoo.checkpoint(ROW), prompt_ids_of(prompt), 20)
    pipeline = openvino_genai.LLMPipeline(
        str(artifact), "CPU", scheduler_config=_scheduler(), **PROPERTIES
    )
    ids = openvino.Tensor(np.array([prompt_ids_of(prompt)], dtype=np.int64))
    result = pipeline.generate(ids, _greedy_config(20))
    _expect_wrong_from_the_crossing_on(tuple(result.tokens[0]), truth, "openvino-genai")


def test_upstream_genai_spoils_a_short_request_beside_a_long_one(zoo: Zoo, tmp_path: Path) -> None:
    """On the graph as exported a long neighbour switches the factors of a short request."""
    artifact = zoo.artifact(ROW)
    xml = (artifact / MODEL_XML).read_text(encoding="utf-8")
    prompts = [prompt_text(20, seed=8), prompt_text(2 * BORDER, seed=9)]
    truth = greedy(zoo.checkpoint(ROW), prompt_ids_of(prompts[0]), 20)
    alone, together = (
        _generate_together(_continuous_batching(artifact, xml, tmp_path / name), batch, 20)[0]
        for name, batch in (("alone", prompts[:1]), ("together", prompts))
    )
    assert alone == truth
    assert together != truth, (
        "A long neighbour no longer changes a short answer in openvino-genai: look whether it "
        "chooses LongRoPE factors per request now, and whether phi3ov still has to pin them."
    )


def test_upstream_genai_misreads_a_prompt_in_chunks(zoo: Zoo, tmp_path: Path) -> None:
    """On the graph as exported a chunk below the border has other factors than one above."""
    artifact = zoo.artifact(ROW)
    xml = (artifact / MODEL_XML).read_text(encoding="utf-8")
    prompt = prompt_text(3 * BORDER, seed=3)
    truth = greedy(zoo.checkpoint(ROW), prompt_ids_of(prompt), 20)
    whole, chunked = (
        _generate_together(
            _continuous_batching(artifact, xml, tmp_path / str(chunk), chunk=chunk), [prompt], 20
        )[0]
        for chunk in (512, 32)
    )
    assert whole == truth
    assert chunked != truth, (
        "openvino-genai now reads a LongRoPE prompt right in chunks: look whether phi3ov still "
        "has to pin the factors."
    )


def _expect_wrong_from_the_crossing_on(
    answer: tuple[int, ...], truth: tuple[int, ...], who: str
) -> None:
    """Right while prompt and answer fit the original context (10 tokens here), wrong after."""
    assert answer[:10] == truth[:10]
    assert answer != truth, (
        f"{who} now crosses the original context of a LongRoPE model as transformers without a "
        "cache does. Look whether phi3ov still has to pin the factors."
    )
    crossing = next(i for i, (a, b) in enumerate(zip(answer, truth, strict=True)) if a != b)
    assert crossing <= 12


# An export that holds one factor set only, as exporters before mid-2026 made them.


@pytest.fixture(scope="module")
def old_artifact(zoo: Zoo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact whose graph always takes the short factors: the comparison is gone."""
    folder = tmp_path_factory.mktemp("old") / "artifact"
    shutil.copytree(zoo.artifact(ROW), folder)
    model = openvino.Core().read_model(folder / MODEL_XML)
    (comparison,) = (
        node
        for node in model.get_ops()
        if node.get_type_name() == "Greater" and "rotary_emb" in node.get_friendly_name()
    )
    never = openvino.op.Constant(openvino.Type.boolean, openvino.Shape([]), [False])
    for user in comparison.output(0).get_target_inputs():
        user.replace_source_output(never.output(0))
    for name in (MODEL_XML, MODEL_BIN):
        (folder / name).unlink()  # the model in memory still maps the file
    openvino.save_model(model, folder / MODEL_XML, compress_to_fp16=False)
    manifest = replace(_read_manifest(folder), files=record_files(folder))
    (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8", newline="\n")
    return folder


def _read_manifest(folder: Path) -> Manifest:
    """Read a manifest without the check of the files that it lists."""
    return Manifest.from_json((folder / MANIFEST_NAME).read_text(encoding="utf-8"))


@pytest.mark.parametrize("engine", ENGINES)
def test_an_old_export_is_refused_above_the_original_context(
    engine: EngineName, old_artifact: Path, load: LoadModel
) -> None:
    """Long factors that are not in the export are not replaced by short ones in silence."""
    with pytest.raises(UnsupportedModelError, match=f"context_tokens={BORDER + 1} needs.*again"):
        load(old_artifact, engine=engine, context_tokens=BORDER + 1)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_old_export_works_up_to_the_original_context(
    engine: EngineName, old_artifact: Path, zoo: Zoo, load: LoadModel
) -> None:
    """The short factors are all that is needed there, and the answer is right."""
    prompt = prompt_text(20, seed=1)
    truth = greedy(zoo.checkpoint(ROW), prompt_ids_of(prompt), 32, pin="short")
    for context_tokens in (None, BORDER, BORDER - 5):
        model = load(old_artifact, engine=engine, context_tokens=context_tokens)
        assert model.complete(prompt, max_new_tokens=32).token_ids == truth
        model.close()


@pytest.mark.parametrize("context_tokens", [0, -1, LONGEST + 1, True])
def test_a_context_that_the_model_does_not_have_is_refused(
    context_tokens: int, zoo: Zoo, load: LoadModel
) -> None:
    """The message names the value and the model's limit."""
    with pytest.raises(OptionError, match=f"context_tokens={context_tokens}.*{LONGEST}"):
        load(zoo.artifact(ROW), context_tokens=context_tokens)


def _scheduler(chunk: int = 256) -> openvino_genai.SchedulerConfig:
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.enable_prefix_caching = True
    scheduler.max_num_batched_tokens = chunk
    return scheduler


def _greedy_config(max_new_tokens: int) -> openvino_genai.GenerationConfig:
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = max_new_tokens
    config.ignore_eos = True
    config.apply_chat_template = False
    return config


def _continuous_batching(artifact: Path, xml: str, folder: Path, *, chunk: int = 512) -> Any:
    """Load ``xml`` with an artifact's weights, which genai wants side by side in a folder."""
    folder.mkdir(exist_ok=True)
    for path in artifact.iterdir():
        if path.name != MODEL_XML:
            os.link(path, folder / path.name)
    (folder / MODEL_XML).write_text(xml, encoding="utf-8", newline="\n")
    return openvino_genai.ContinuousBatchingPipeline(
        str(folder), _scheduler(chunk), "CPU", PROPERTIES
    )


def _generate_together(
    pipeline: Any, prompts: list[str], max_new_tokens: int
) -> list[tuple[int, ...]]:
    inputs = [
        openvino.Tensor(np.array([prompt_ids_of(prompt)], dtype=np.int64)) for prompt in prompts
    ]
    results = pipeline.generate(inputs, [_greedy_config(max_new_tokens)] * len(prompts))
    return [tuple(result.m_generation_ids[0]) for result in results]
