"""Sliding windows: on both sides of the window, in chunks and from the cache, as in torch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from phi3ov.engine.protocol import EngineName

from .checkpoints import WINDOW, WINDOW_ROWS
from .conftest import LoadModel, Zoo
from .truth import greedy, prompt_text

ENGINES: tuple[EngineName, ...] = ("pipeline", "paged", "transformers")


def _truth(checkpoint: Path, prompt: str, max_new_tokens: int) -> tuple[int, ...]:
    return greedy(checkpoint, [ord(letter) - ord("a") + 64 for letter in prompt], max_new_tokens)


@pytest.mark.parametrize("row", WINDOW_ROWS)
def test_the_window_changes_answers(row: str, zoo: Zoo) -> None:
    """Guards the tests below: without the window the same weights answer otherwise."""
    checkpoint = zoo.checkpoint(row)
    prompt = prompt_text(3 * WINDOW)
    ids = torch.tensor([[ord(letter) - ord("a") + 64 for letter in prompt]])
    config = AutoConfig.from_pretrained(checkpoint)
    config.sliding_window = None
    model = AutoModelForCausalLM.from_pretrained(checkpoint, config=config, dtype=torch.float32)
    with torch.inference_mode():
        first = int(model.eval()(ids, use_cache=False).logits[0, -1].argmax())
    assert first != _truth(checkpoint, prompt, 1)[0]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("row", WINDOW_ROWS)
@pytest.mark.parametrize(
    "length",
    [
        pytest.param((12, WINDOW - 12), id="inside"),
        pytest.param((WINDOW - 6, 40), id="crossing"),
        pytest.param((WINDOW, 40), id="at the border"),
        pytest.param((5 * WINDOW, 40), id="beyond"),
        pytest.param((600, 32), id="beyond, longer than a chunk"),
    ],
)
def test_answers_on_both_sides_of_the_window(
    row: str, engine: EngineName, length: tuple[int, int], zoo: Zoo, load: LoadModel
) -> None:
    """Prompts shorter and longer than the window are answered as in torch."""
    prompt_tokens, max_new_tokens = length
    prompt = prompt_text(prompt_tokens, seed=prompt_tokens)
    model = load(zoo.artifact(row), engine=engine)
    reply = model.complete(prompt, max_new_tokens=max_new_tokens)
    assert reply.token_ids == _truth(zoo.checkpoint(row), prompt, max_new_tokens)


@pytest.mark.parametrize("row", WINDOW_ROWS)
@pytest.mark.parametrize("chunk", [16, 33])
def test_chunks_smaller_and_larger_than_the_window(
    row: str, chunk: int, zoo: Zoo, load: LoadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The size of a prefill chunk never changes an answer."""
    monkeypatch.setattr("phi3ov.engine.pipeline.PREFILL_CHUNK_TOKENS", chunk)
    model = load(zoo.artifact(row))
    for length in (WINDOW - 6, 5 * WINDOW + 7):
        prompt = prompt_text(length, seed=length)
        reply = model.complete(prompt, max_new_tokens=24)
        assert reply.token_ids == _truth(zoo.checkpoint(row), prompt, 24)


@pytest.mark.parametrize("row", WINDOW_ROWS)
def test_a_cached_prefix_longer_than_the_window(row: str, zoo: Zoo, load: LoadModel) -> None:
    """What the cache kept from inside and from beyond the window is good for longer prompts."""
    whole = prompt_text(8 * WINDOW, seed=9)
    model = load(zoo.artifact(row))
    for turn, length in enumerate((WINDOW + 5, 2 * WINDOW, 3 * WINDOW + 20, 8 * WINDOW)):
        reply = model.complete(whole[:length], max_new_tokens=12)
        assert reply.token_ids == _truth(zoo.checkpoint(row), whole[:length], 12)
        assert reply.usage.cached_tokens >= turn * WINDOW
