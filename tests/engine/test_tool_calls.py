"""Guided tool calls on a real engine: drawn wildly from random weights, every call parses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

import phi3ov
from phi3ov import Message, OptionError, Phi3Chat, Phi3Model, Reply, Tool
from phi3ov.engine.protocol import EngineName

from ..conftest import MadeOnce
from .checkpoints import PHI4_MINI_TEMPLATE, PHI4_MINI_TOKENS, Row, build_checkpoint
from .conftest import LoadModel

CONTEXT = 4096
WILD: dict[str, Any] = {"temperature": 100.0, "max_new_tokens": 2200}
QUESTION = [Message("user", "hello")]
BATCH = 50


def get_weather(
    city: Literal["Paris", "Rome", "Saint-Étienne"], days: int = 1, unit: Literal["c", "f"] = "c"
) -> str:
    """Return the weather of a city."""
    return f"{city} {days} {unit}"


ORDER = Tool(
    name="order",
    description="Order something",
    parameters={
        "type": "object",
        "properties": {
            "what": {"type": "string", "maxLength": 8},
            "more": {"type": "array", "items": {"enum": ["a", 1, None]}, "maxItems": 3},
            "fast": {"type": "boolean"},
        },
        "required": ["what", "fast"],
        "additionalProperties": False,
    },
)
NOW = Tool(name="now", description="Time")
TOOLS = (Tool.of(get_weather), ORDER, NOW)


@pytest.fixture(scope="session")
def artifact(made_once: MadeOnce) -> Path:
    """A tiny Phi-4-mini whose context holds descriptions of tools."""
    row = Row(template=PHI4_MINI_TEMPLATE, control_tokens=PHI4_MINI_TOKENS, strips=False)

    def build(folder: Path) -> None:
        build_checkpoint(
            folder,
            row,
            sliding_window=None,
            max_position_embeddings=CONTEXT,
            original_max_position_embeddings=CONTEXT,
        )

    def export(folder: Path) -> None:
        checkpoint = made_once("tool-calls", build)
        phi3ov.export_model(checkpoint, folder, compression="fp16", progress=False)

    return made_once("tool-calls-fp16", export)


def check(reply: Reply, offered: Sequence[str]) -> None:
    """Check that an answer consists of calls that fit."""
    assert reply.finish_reason == "stop", reply
    assert reply.text == ""
    assert 1 <= len(reply.tool_calls) <= 16
    for call in reply.tool_calls:
        assert call.name in offered
        if call.name == "get_weather":
            get_weather(**call.parse(get_weather))
        elif call.name == "order":
            assert {"what", "fast"} <= call.arguments.keys() <= {"what", "more", "fast"}
            assert len(call.arguments["what"]) <= 8
            assert type(call.arguments["fast"]) is bool
            assert all(item in ("a", 1, None) for item in call.arguments.get("more", []))
        else:
            assert call.arguments == {}


def draw(model: Phi3Model, seed: int, **options: Any) -> Sequence[Reply]:
    """Return a batch of candidates."""
    reply = model.generate(QUESTION, tools=TOOLS, seed=seed, candidates=BATCH, **WILD, **options)
    return reply.candidates


@pytest.mark.slow
def test_a_thousand_guided_calls_parse(artifact: Path, load: LoadModel) -> None:
    """Of 1 000 answers at a temperature of 100, none is cut off, unparsable or unfit."""
    model = load(artifact, engine="worker")
    names = [tool.name for tool in TOOLS]
    seen: set[str] = set()
    count = 0
    for seed in range(0, 600, BATCH):
        for reply in draw(model, seed, tool_choice="required"):
            check(reply, names)
            seen |= {call.name for call in reply.tool_calls}
            count += 1
    for name in ("get_weather", "order"):
        for seed in range(0, 200, BATCH):
            for reply in draw(model, seed, tool_choice={"name": name}):
                check(reply, [name])
                assert len(reply.tool_calls) == 1
                count += 1
    assert (count, seen) == (1000, set(names))


@pytest.mark.parametrize("engine", ["pipeline", "worker"])
def test_a_call_that_the_model_begins_is_guided(
    engine: EngineName, artifact: Path, load: LoadModel
) -> None:
    """In auto mode too, whatever came before it; the first part of the answer is not touched."""
    model = load(artifact, engine=engine)
    opening, closing = model.tokenizer.tool_call_ids or (0, 0)
    begun = 0
    for seed in range(400):
        reply = model.generate(QUESTION, tools=TOOLS, seed=seed, **WILD)
        if opening in reply.token_ids and reply.finish_reason == "stop":
            begun += 1
            names = [tool.name for tool in TOOLS]
            place = reply.token_ids.index(opening)
            assert reply.tool_calls
            assert all(call.name in names for call in reply.tool_calls)
            assert closing not in reply.token_ids[place:]
        if begun == 5:
            return
    pytest.fail("the model began no calls")


def test_greedy_answers_are_the_same_with_tools_guided_or_not(
    artifact: Path, load: LoadModel
) -> None:
    """An answer without calls is token for token that of the same prompt ids without tools."""
    model = load(artifact, engine="pipeline")
    guided = model.generate(QUESTION, tools=TOOLS, max_new_tokens=20)
    plain = model.stream_ids(guided.prompt_ids, max_new_tokens=20).drain()
    assert guided.token_ids == plain.token_ids


def test_a_required_call_and_its_result_grow_one_history(artifact: Path, load: LoadModel) -> None:
    """The next prompt begins with exactly the ids of the call, and its cache fits."""
    model = load(artifact, engine="worker")
    chat = Phi3Chat(model, tools=TOOLS)
    reply = chat.generate("hello", tool_choice={"name": "now"})
    assert [call.name for call in reply.tool_calls] == ["now"]
    answer = chat.generate([Message("tool", "noon")], max_new_tokens=4)
    known = (*reply.prompt_ids, *reply.token_ids)
    assert answer.prompt_ids[: len(known)] == known
    assert answer.usage.cached_tokens >= len(reply.prompt_ids) - 32


@pytest.mark.parametrize("engine", ["paged", "transformers"])
def test_engines_without_grammars_refuse_what_they_cannot_guide(
    engine: EngineName, artifact: Path, load: LoadModel
) -> None:
    """A call that must come is refused; where the model decides, it is not guided."""
    model = load(artifact, engine=engine)
    with pytest.raises(OptionError, match="needs an engine that takes grammars"):
        model.generate(QUESTION, tools=TOOLS, tool_choice="required")
    assert model.generate(QUESTION, tools=TOOLS, max_new_tokens=3).usage.completion_tokens > 0


def test_a_guided_call_is_streamed_and_cancelled_like_any_answer(
    artifact: Path, load: LoadModel
) -> None:
    """Leaving the stream frees the engine for the next request."""
    model = load(artifact, engine="worker")
    with model.stream(QUESTION, tools=TOOLS, tool_choice="required", seed=1, **WILD) as stream:
        next(stream, None)
    assert phi3ov.Phi3Chat(model).generate("hello", max_new_tokens=2).usage.completion_tokens > 0
