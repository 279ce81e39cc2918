"""A tiny reasoning model, trained on a few lines in seconds, on every engine.

It has Phi-4-mini-reasoning's chat format and spells the tags in single characters, so that every
limit of its thoughts is another token boundary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import save_file
from transformers import Phi3Config, Phi3ForCausalLM

import phi3ov
from phi3ov import Message, OptionError, Phi3Model
from phi3ov.answer.stages import Thoughts
from phi3ov.engine.protocol import EngineName
from phi3ov.prompt.chat_tokenizer import ChatTokenizer
from phi3ov.prompt.formats import FORMATS

from ..conftest import MadeOnce
from .checkpoints import MINI_REASONING, build_checkpoint
from .conftest import LoadModel

FORMAT = next(each for each in FORMATS if each.name == "phi4-mini-reasoning")
CONTEXT = 512
QUESTION = [Message("user", "?")]
THOUGHTS = "<think>\none\n</think>"
ANSWER, CLOSED_ANSWER = "\n\nfour", "two"
"""What follows thoughts that the model closed itself, and those that were closed for it."""
MODES = get_args(EngineName)
SHAPE = {"type": "object", "properties": {"n": {"enum": [2, 3]}}, "required": ["n"]}


def close_at(tokenizer: ChatTokenizer, limit: int) -> list[int]:
    """Return the ids of the thoughts that a limit leaves, with the tag that closes them."""
    whole = tokenizer.encode_text(THOUGHTS)
    stage = Thoughts(tokenizer, max_tokens=limit, ends_with_thoughts=False)
    for token_id in whole[:limit]:
        stage.add(token_id)
    return [*whole[:limit], *stage.forced_ids]


def lines(tokenizer: ChatTokenizer) -> list[tuple[list[int], int]]:
    """Return the answers that the model learns, and where each of them begins to be its own."""
    end = tokenizer.control["<|end|>"]["id"]
    whole = tokenizer.encode_text(THOUGHTS)
    learned = [([*whole, *tokenizer.encode_text(ANSWER), end], 0)]
    for limit in range(len(whole)):
        closed = close_at(tokenizer, limit)
        if closed != whole:
            line = [*closed, *tokenizer.encode_text(CLOSED_ANSWER), end]
            learned.append((line, len(closed)))
    return learned


def train(folder: Path, tokenizer: ChatTokenizer, learned: Sequence[tuple[list[int], int]]) -> None:
    """Teach the checkpoint in ``folder`` the lines by heart."""
    torch.manual_seed(0)
    config = Phi3Config.from_pretrained(folder)
    model = Phi3ForCausalLM(config)
    prompt = tokenizer.encode_prompt(QUESTION)
    width = len(prompt) + max(len(line) for line, _ in learned)
    ids = torch.zeros((len(learned), width), dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for number, (line, own) in enumerate(learned):
        ids[number, : len(prompt) + len(line)] = torch.tensor([*prompt, *line])
        labels[number, len(prompt) + own : len(prompt) + len(line)] = torch.tensor(line[own:])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    for _ in range(300):
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 1e-3:
            break
    assert loss.item() < 5e-3
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="session")
def artifact(made_once: MadeOnce) -> Path:
    """Train the model and export it, once."""

    def build(folder: Path) -> None:
        build_checkpoint(
            folder,
            MINI_REASONING,
            dtype="float32",
            hidden_size=64,
            intermediate_size=128,
            sliding_window=None,
            max_position_embeddings=CONTEXT,
            original_max_position_embeddings=CONTEXT,
        )
        tokenizer = ChatTokenizer.from_folder(folder, FORMAT)
        train(folder, tokenizer, lines(tokenizer))

    def export(folder: Path) -> None:
        checkpoint = made_once("reasoning", build)
        phi3ov.export_model(checkpoint, folder, compression="fp16", progress=False)

    return made_once("reasoning-fp16", export)


def ask(model: Phi3Model, **options: Any) -> phi3ov.Reply:
    """Return the reply to the one question that the model knows."""
    return model.generate(QUESTION, **{"max_new_tokens": 100} | options)


@pytest.mark.parametrize("engine", MODES)
def test_thoughts_and_answer_come_apart_at_every_limit(
    artifact: Path, load: LoadModel, engine: EngineName
) -> None:
    """Each token boundary is a limit once; the model answers behind the tag that phi3ov wrote."""
    model = load(artifact, engine=engine)
    free = ask(model)
    assert (free.text, free.reasoning) == ("four", "one\n")
    whole = model.tokenizer.encode_text(THOUGHTS)
    for limit in range(len(whole) + 1):
        reply = ask(model, max_reasoning_tokens=limit)
        closed = close_at(model.tokenizer, limit)
        assert reply.text == ("four" if closed == whole else "two"), limit
        assert reply.token_ids[: len(closed)] == tuple(closed)
        assert reply.token_ids[:limit] == tuple(whole[:limit])
        assert free.reasoning.startswith(reply.reasoning)
        assert reply.finish_reason == "stop"


@pytest.mark.parametrize("engine", ["pipeline", "worker"])
def test_a_structured_answer_begins_behind_the_thoughts(
    artifact: Path, load: LoadModel, engine: EngineName
) -> None:
    """The thoughts are free, and the grammar applies after the tag, also one that phi3ov wrote."""
    model = load(artifact, engine=engine)
    reply = ask(model, json_schema=SHAPE)
    assert (reply.reasoning, reply.parsed in ({"n": 2}, {"n": 3})) == ("one\n", True)
    for limit in (0, 3, 9, 14):
        reply = ask(model, json_schema=SHAPE, max_reasoning_tokens=limit)
        assert reply.parsed in ({"n": 2}, {"n": 3})
        assert "one\n".startswith(reply.reasoning)
    assert ask(model, choices=("four", "six")).parsed == "four"


@pytest.mark.parametrize("engine", ["paged", "transformers"])
def test_engines_without_grammars_refuse_a_shape_before_the_thoughts(
    artifact: Path, load: LoadModel, engine: EngineName
) -> None:
    """By name, and not when the thoughts are over."""
    model = load(artifact, engine=engine)
    with pytest.raises(OptionError, match="json_schema, regex and choices are not supported"):
        model.stream(QUESTION, json_schema=SHAPE, max_new_tokens=100)
