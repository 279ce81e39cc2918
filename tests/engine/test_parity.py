"""Every member of the family answers as transformers does, token for token, on both engines."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from phi3ov import Phi3Chat, Tool
from phi3ov.engine.protocol import EngineName
from phi3ov.prompt.tools import describe_tools
from tests.inside import any_engine_of

from .checkpoints import FAMILY, LONGEST, LONGROPE_ROWS
from .conftest import LoadModel, Zoo
from .truth import Pin, greedy, prompt_text

ENGINES: tuple[EngineName, ...] = ("pipeline", "paged", "transformers")
PLACEHOLDER = "@@answer@@"


def _pin(row: str, pin: Pin) -> Pin | None:
    return pin if FAMILY[row].longrope else None


@pytest.mark.parametrize("row", LONGROPE_ROWS)
def test_the_two_factor_sets_give_different_answers(row: str, zoo: Zoo) -> None:
    """Guards the tests below: with equal answers they could not tell the factor sets apart."""
    prompt_ids = list(prompt_text(24).encode())
    short, long = (
        greedy(zoo.checkpoint(row), prompt_ids, 40, pin=pin) for pin in ("short", "long")
    )
    assert short[:8] != long[:8]
    assert len(set(short)) > 20, "the answer is a loop, which many wrong models would fall into"


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("row", FAMILY)
def test_an_answer_equals_transformers(
    row: str, engine: EngineName, zoo: Zoo, load: LoadModel
) -> None:
    """40 greedy tokens after the same prompt ids are the ones of transformers in fp32."""
    prompt = prompt_text(24)
    model = load(zoo.artifact(row), engine=engine)
    prompt_ids = model.tokenizer.encode_raw(prompt)
    assert len(prompt_ids) == 24
    truth = greedy(zoo.checkpoint(row), prompt_ids, 40, pin=_pin(row, "short"))
    reply = model.complete(prompt, max_new_tokens=40)
    assert reply.token_ids == truth
    assert reply.finish_reason == "length"
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (24, 40)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("row", FAMILY)
def test_a_chat_of_two_turns_equals_transformers(
    row: str, engine: EngineName, zoo: Zoo, load: LoadModel
) -> None:
    """Both answers are transformers' own, after prompts that its own template has written."""
    checkpoint = zoo.checkpoint(row)
    longest = LONGEST if FAMILY[row].longrope else None
    chat = Phi3Chat(
        load(zoo.artifact(row), engine=engine, context_tokens=longest),
        system=None if "medium" in row else "You speak in riddles.",
    )
    questions = ("What walks on four legs?", "And\n in the evening ")
    written = _written_around_answers(checkpoint, chat, questions)
    prompt_ids: list[int] = []
    for question, around in zip(questions, written, strict=True):
        prompt_ids += around
        truth = greedy(checkpoint, prompt_ids, 32, pin=_pin(row, "long"))
        reply = chat.generate(question, max_new_tokens=32)
        assert reply.usage.prompt_tokens == len(prompt_ids)
        assert reply.token_ids == truth
        prompt_ids += truth


def test_tools_stand_where_the_checkpoints_own_template_puts_them(
    zoo: Zoo, load: LoadModel
) -> None:
    """Exported, loaded and asked with tools, Phi-4-mini sees what its template writes."""
    tool = Tool(name="now", description="Current time", parameters={"zone": {"type": "str"}})
    model = load(zoo.artifact("phi-4-mini"), context_tokens=LONGEST)
    chat = Phi3Chat(model, system="You have tools.", tools=[tool])
    reply = chat.generate("What time is it?", max_new_tokens=4)
    messages = [
        {"role": "system", "content": "You have tools.", "tools": describe_tools([tool])},
        {"role": "user", "content": "What time is it?"},
    ]
    tokenizer = AutoTokenizer.from_pretrained(zoo.checkpoint("phi-4-mini"))
    written = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    prompt_ids = tokenizer(written, add_special_tokens=False)["input_ids"]
    assert chat.token_ids[: len(prompt_ids)] == tuple(prompt_ids)
    assert reply.usage.prompt_tokens == len(prompt_ids)


def _written_around_answers(
    checkpoint: Path, chat: Phi3Chat, questions: tuple[str, ...]
) -> list[list[int]]:
    """Return the ids that the checkpoint's own template writes before each answer."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    messages = [{"role": one.role, "content": one.content} for one in chat.messages]
    for question in questions:
        messages += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": PLACEHOLDER},
        ]
    text: str = tokenizer.apply_chat_template(
        messages[:-1], tokenize=False, add_generation_prompt=True
    )
    return [
        tokenizer(part, add_special_tokens=False)["input_ids"] for part in text.split(PLACEHOLDER)
    ]


@pytest.mark.parametrize("engine", ENGINES)
def test_an_answer_ends_at_each_of_the_stop_tokens(
    engine: EngineName, zoo: Zoo, load: LoadModel
) -> None:
    """The engine stops right after whichever stop id comes first, and hands that id over too."""
    from phi3ov.answer.token_stream import TokenRequest

    model = load(zoo.artifact("phi-3-mini-4k"), engine=engine)
    prompt_ids = model.tokenizer.encode_raw(prompt_text(24))
    truth = greedy(zoo.checkpoint("phi-3-mini-4k"), prompt_ids, 40)
    for stop in (truth[5], truth[17]):
        request = TokenRequest(
            prompt_ids=tuple(prompt_ids),
            max_new_tokens=40,
            stop_ids=frozenset({stop, *model.tokenizer.stop_tokens}),
        )
        stream = any_engine_of(model).submit(request)
        ids = [token_id for chunk in stream for token_id in chunk]
        assert tuple(ids) == truth[: truth.index(stop) + 1]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_longer_answer_is_the_same_answer(engine: EngineName, zoo: Zoo, load: LoadModel) -> None:
    """What was cached for one answer never changes the next: repeated, cut short, after others."""
    model = load(zoo.artifact("phi-4"), engine=engine)
    prompts = [prompt_text(70, seed) for seed in (1, 2)]
    truths = [
        greedy(zoo.checkpoint("phi-4"), model.tokenizer.encode_raw(prompt), 40)
        for prompt in prompts
    ]
    for which, length in ((0, 40), (1, 40), (0, 3), (0, 40), (1, 40)):
        reply = model.complete(prompts[which], max_new_tokens=length)
        assert reply.token_ids == truths[which][:length]
