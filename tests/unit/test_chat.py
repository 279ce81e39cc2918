"""A conversation: its history is ids, and only finished turns enter it."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable
from typing import cast

import pytest

from phi3ov.answer.options import GenerationOptions, Options
from phi3ov.answer.token_stream import TokenRequest
from phi3ov.chat import Phi3Chat
from phi3ov.errors import (
    ContextLengthError,
    GenerationError,
    OptionError,
    Phi3OVError,
    PromptError,
    StateError,
)
from phi3ov.prompt.messages import Message

from .fakes import MEDIUM, MINI, Answer, FakeEngine, answer_ids, make_model

HELLO = answer_ids("hello")
ENDLESS = Answer(answer_ids("hello the user", stop=None), endless=True)
WAIT_SECONDS = 20


def make_chat(
    *answers: Answer, context_tokens: int = 4096, system: str | None = None
) -> tuple[Phi3Chat, FakeEngine]:
    """Return a chat whose engine gives ``answers`` in turn."""
    engine = FakeEngine(answers)
    return Phi3Chat(make_model(engine, context_tokens=context_tokens), system=system), engine


def slow_prompt(*messages: tuple[str, str]) -> tuple[int, ...]:
    """Return the ids of a conversation, from the official tokenizer and a template by hand."""
    text = "".join(f"<|{role}|>\n{content}<|end|>\n" for role, content in messages)
    return tuple(MINI.official.encode(text + "<|assistant|>\n", add_special_tokens=False).ids)


def test_generate_is_the_stream_drained() -> None:
    """Both give the same reply and leave the same history."""
    one, first = make_chat(Answer(HELLO), Answer(HELLO))
    two, second = make_chat(Answer(HELLO), Answer(HELLO))
    reply = one.generate("hi")
    stream = two.stream("hi")
    assert "".join(stream) == reply.text == "hello"
    assert (stream.reply.token_ids, stream.reply.usage) == (reply.token_ids, reply.usage)
    assert one.messages == two.messages
    assert one.token_ids == two.token_ids
    first.close()
    second.close()


def test_prompts_are_the_official_rendering_of_the_conversation() -> None:
    """The engine is given system message and turns as the template writes them."""
    chat, engine = make_chat(Answer(HELLO), Answer(HELLO), system="Be brief.")
    chat.generate("hi")
    chat.generate("and you?")
    assert engine.requests[0].prompt_ids == slow_prompt(("system", "Be brief."), ("user", "hi"))
    assert engine.requests[1].prompt_ids == slow_prompt(
        ("system", "Be brief."), ("user", "hi"), ("assistant", "hello"), ("user", "and you?")
    )
    assert chat.messages == (
        Message("system", "Be brief."),
        Message("user", "hi"),
        Message("assistant", "hello"),
        Message("user", "and you?"),
        Message("assistant", "hello"),
    )
    engine.close()


def test_history_is_the_ids_that_the_model_saw_and_produced() -> None:
    """The next prompt begins with last prompt and answer, even where encoding anew differs."""
    spelled = [MINI.official.token_to_id("▁"), *map(MINI.official.token_to_id, "hello")]
    assert MINI.chat.encode_text(MINI.chat.decode(spelled)) != spelled
    end = MINI.official.token_to_id("<|end|>")
    chat, engine = make_chat(Answer([*spelled, end]), Answer(HELLO))
    assert chat.generate("hi").text == "hello"
    chat.generate("again")
    seen = (*engine.requests[0].prompt_ids, *spelled, end)
    assert engine.requests[1].prompt_ids[: len(seen)] == seen
    assert chat.token_ids[: len(seen)] == seen
    engine.close()


def test_answer_at_its_limit_is_closed_in_the_history() -> None:
    """An answer cut at max_new_tokens is still followed by the end of its message."""
    chat, engine = make_chat(Answer(HELLO), Answer(HELLO))
    assert chat.generate("hi", max_new_tokens=1).finish_reason == "length"
    assert chat.token_ids == (
        *engine.requests[0].prompt_ids,
        HELLO[0],
        MINI.official.token_to_id("<|end|>"),
    )
    engine.close()


def test_requests_carry_the_options() -> None:
    """Every option reaches the engine, and a call's changes last one call."""
    engine = FakeEngine([Answer(HELLO), Answer(HELLO)])
    options = GenerationOptions(temperature=0.5, top_p=0.9, top_k=7, repetition_penalty=1.1, seed=3)
    chat = Phi3Chat(make_model(engine), options=options)
    assert chat.generate("hi", max_new_tokens=9, seed=4).seed == 4
    assert chat.generate("hi").seed == 3
    first, second = engine.requests
    assert first.stop_ids == frozenset(MINI.chat.stop_tokens)
    assert (first.max_new_tokens, second.max_new_tokens) == (9, 1024)
    assert (first.sampling.temperature, first.sampling.top_p, first.sampling.top_k) == (0.5, 0.9, 7)
    assert first.sampling.repetition_penalty == 1.1
    assert (first.sampling.seed, second.sampling.seed) == (4, 3)
    engine.close()


def test_drawn_seed_is_recorded() -> None:
    """Sampling without a seed draws one, tells the engine and records it in the reply."""
    chat, engine = make_chat(*[Answer(HELLO)] * 5)
    seeds = [chat.generate("hi", temperature=1.0).seed for _ in range(4)]
    assert seeds == [request.sampling.seed for request in engine.requests]
    assert None not in seeds
    assert len(set(seeds)) > 1
    assert chat.generate("hi").seed is None
    engine.close()


@pytest.mark.parametrize("keep", [True, False])
def test_cancelled_turn_enters_the_history_only_when_kept(keep: bool) -> None:
    """Cancelling leaves the history alone; keep=True adds the partial answer, properly closed."""
    chat, engine = make_chat(Answer(HELLO), ENDLESS, Answer(HELLO))
    chat.generate("hi")
    before = (chat.messages, chat.token_ids)
    stream = chat.stream("more")
    next(stream)
    stream.cancel(keep=keep)
    reply = stream.drain()
    assert reply.finish_reason == "cancelled"
    if keep:
        assert chat.messages[-1] == Message("assistant", reply.text)
        assert chat.token_ids[-1 - len(reply.token_ids) : -1] == reply.token_ids
        assert chat.token_ids[-1] == MINI.official.token_to_id("<|end|>")
    else:
        assert (chat.messages, chat.token_ids) == before
    chat.generate("next")
    engine.close()


def test_failed_turn_leaves_the_history_and_frees_the_chat() -> None:
    """After an engine's error the chat is as before and takes the next turn."""
    failing = Answer(HELLO[:-1], error=RuntimeError("boom"))
    chat, engine = make_chat(Answer(HELLO), failing, Answer(HELLO))
    chat.generate("hi")
    before = (chat.messages, chat.token_ids)
    with pytest.raises(GenerationError, match="boom"):
        chat.generate("more")
    assert (chat.messages, chat.token_ids) == before
    assert chat.generate("more").text == "hello"
    engine.close()


def test_abandoned_turn_frees_the_chat() -> None:
    """A stream that nobody holds any more gives the chat back, its history unchanged."""
    chat, engine = make_chat(ENDLESS, Answer(HELLO))
    stream = chat.stream("hi")
    next(stream)
    del stream
    gc.collect()
    assert chat.messages == ()
    assert chat.generate("hi").text == "hello"
    engine.close()


def test_second_turn_while_one_is_open_is_a_state_error() -> None:
    """One turn at a time: the second, and a reset, are refused until the first is closed."""
    chat, engine = make_chat(ENDLESS, Answer(HELLO))
    stream = chat.stream("hi")
    next(stream)
    with pytest.raises(StateError, match="still open"):
        chat.generate("again")
    with pytest.raises(StateError, match="still open"):
        chat.reset()
    stream.close()
    assert chat.generate("again").text == "hello"
    assert len(engine.requests) == 2
    engine.close()


def test_agenerate_gives_the_reply() -> None:
    """The asynchronous turn equals the other one."""
    chat, engine = make_chat(Answer(HELLO))
    assert asyncio.run(chat.agenerate("hi")).text == "hello"
    assert [one.content for one in chat.messages] == ["hi", "hello"]
    engine.close()


def test_cancelled_task_leaves_the_history_and_frees_the_chat() -> None:
    """Cancelling the task that awaits an answer ends it; the chat takes the next turn."""
    chat, engine = make_chat(ENDLESS, Answer(HELLO))

    async def run() -> None:
        task = asyncio.ensure_future(chat.agenerate("hi"))
        while not engine.requests:
            await asyncio.sleep(0.002)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    gc.collect()
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            answer = chat.generate("hi").text
        except StateError:  # the cancelled turn is not given back yet
            assert time.monotonic() < deadline
            time.sleep(0.002)
        else:
            break
    assert answer == "hello"
    assert len(chat.messages) == 2
    engine.close()


def test_many_chats_on_one_model_are_never_mixed() -> None:
    """32 threads with a chat each: every chat hears its own words."""

    def parrot(request: TokenRequest) -> Answer:
        users = [index for index, one in enumerate(request.prompt_ids) if one == user_id]
        return Answer([*request.prompt_ids[users[-1] + 1 : -1]])  # its last message and its end

    user_id = MINI.official.token_to_id("<|user|>")
    engine = FakeEngine(parrot)
    model = make_model(engine)
    heard: dict[int, list[str]] = {}

    def talk(number: int) -> None:
        chat = Phi3Chat(model)
        heard[number] = [chat.generate(f"chat {number} turn {turn}").text for turn in range(3)]

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_SECONDS)
    assert heard == {one: [f"chat {one} turn {turn}" for turn in range(3)] for one in range(32)}
    engine.close()


def test_fork_goes_on_independently() -> None:
    """Two forks share the past and nothing else."""
    chat, engine = make_chat(*[Answer(HELLO)] * 4, system="Be brief.")
    chat.options = GenerationOptions(max_new_tokens=50)
    chat.generate("hi")
    twin = chat.fork()
    assert (twin.messages, twin.token_ids, twin.options) == (
        chat.messages,
        chat.token_ids,
        chat.options,
    )
    twin.generate("to the twin")
    assert len(twin.messages) == 5
    assert len(chat.messages) == 3
    chat.reset()
    assert len(twin.messages) == 5
    engine.close()


def test_fork_of_an_open_turn_has_the_finished_turns() -> None:
    """A fork taken amid an answer does not wait for it and does not hold it."""
    chat, engine = make_chat(ENDLESS, Answer(HELLO))
    stream = chat.stream("hi")
    next(stream)
    twin = chat.fork()
    stream.close()
    assert twin.messages == ()
    assert twin.generate("hi").text == "hello"
    engine.close()


def test_reset_keeps_the_system_message() -> None:
    """After a reset the next prompt is that of a new chat."""
    chat, engine = make_chat(Answer(HELLO), Answer(HELLO), system="Be brief.")
    chat.generate("hi")
    chat.reset()
    assert chat.messages == (Message("system", "Be brief."),)
    chat.generate("hi")
    assert engine.requests[0].prompt_ids == engine.requests[1].prompt_ids
    engine.close()


@pytest.mark.parametrize("message", ["", "a\udc80b"])
def test_message_that_is_no_text_is_refused(message: str) -> None:
    """Empty messages and lone surrogates never reach the engine, and the chat stays free."""
    chat, engine = make_chat(Answer(HELLO))
    with pytest.raises(PromptError, match=r"empty|lone surrogate"):
        chat.stream(message)
    assert chat.generate("hi").text == "hello"
    engine.close()


def test_unknown_option_is_refused_before_anything_starts() -> None:
    """A misspelt option costs nothing and leaves the chat free."""
    chat, engine = make_chat(Answer(HELLO))
    misspelt = cast("Options", {"max_tokens": 5})
    with pytest.raises(OptionError, match="max_tokens"):
        chat.generate("hi", **misspelt)
    assert chat.generate("hi").text == "hello"
    engine.close()


def test_closed_model_is_a_state_error() -> None:
    """A chat on a closed model says so, each time, and its history stays."""
    chat, engine = make_chat(Answer(HELLO))
    chat.generate("hi")
    chat.model.close()
    chat.model.close()
    for _ in range(2):
        with pytest.raises(StateError, match="closed"):
            chat.generate("again")
    assert len(chat.messages) == 2
    engine.close()


def test_system_message_that_would_be_dropped_is_refused_at_once() -> None:
    """A chat whose model ignores system messages cannot be made with one."""
    engine = FakeEngine([Answer(HELLO)])
    with pytest.raises(PromptError, match="drops system messages"):
        Phi3Chat(make_model(engine, kit=MEDIUM), system="Be brief.")
    engine.close()


# ------------------------------------------------------------------------------- context
TURN_TOKENS = len(slow_prompt(("user", "hi"))) + len(HELLO)  # the history grows by this
PROMPT_TOKENS = len(slow_prompt(("user", "hi")))


def chat_with_turns(
    turns: int, context_tokens: int, system: str | None = None
) -> tuple[Phi3Chat, FakeEngine]:
    """Return a chat that has had ``turns`` turns of `TURN_TOKENS` each."""
    chat, engine = make_chat(
        *[Answer(HELLO)] * (turns + 3), context_tokens=context_tokens, system=system
    )
    for _ in range(turns):
        chat.generate("hi", max_new_tokens=len(HELLO))
    return chat, engine


def test_overflow_raises_with_the_three_numbers() -> None:
    """By default nothing is cut: the error says what there is and what would fit."""
    chat, engine = chat_with_turns(0, 30)
    with pytest.raises(ContextLengthError) as caught:
        chat.generate("hi", max_new_tokens=31 - PROMPT_TOKENS)
    error = caught.value
    assert (error.prompt_tokens, error.max_new_tokens, error.context_tokens) == (
        PROMPT_TOKENS,
        31 - PROMPT_TOKENS,
        30,
    )
    assert f"max_new_tokens={30 - PROMPT_TOKENS} at most" in str(error)
    reply = chat.generate("hi", max_new_tokens=30 - PROMPT_TOKENS)
    assert reply.max_new_tokens == 30 - PROMPT_TOKENS
    engine.close()


def test_clamp_takes_exactly_what_is_left() -> None:
    """Clamping lowers the limit to the room there is, and the reply says so."""
    chat, engine = chat_with_turns(0, PROMPT_TOKENS + 2)
    reply = chat.generate("hi", on_overflow="clamp")
    assert reply.max_new_tokens == engine.requests[0].max_new_tokens == 2
    engine.close()
    chat, engine = chat_with_turns(0, 4096)
    assert chat.generate("hi", on_overflow="clamp", max_new_tokens=7).max_new_tokens == 7
    engine.close()


def test_clamp_without_any_room_raises() -> None:
    """A prompt that fills the context leaves no room to clamp to."""
    chat, engine = chat_with_turns(0, PROMPT_TOKENS)
    with pytest.raises(ContextLengthError, match="Shorten the conversation") as caught:
        chat.generate("hi", on_overflow="clamp", max_new_tokens=5)
    assert caught.value.max_new_tokens == 5
    engine.close()


@pytest.mark.parametrize("system", [None, "Be brief."])
@pytest.mark.parametrize("dropped", [0, 1, 2, 3])
def test_drop_oldest_drops_whole_turns_and_no_more_than_needed(
    dropped: int, system: str | None
) -> None:
    """Exactly as many of the oldest turns go as must; the system message stays; the reply says."""
    fixed = len(slow_prompt(*([("system", system)] if system else []), ("user", "hi")))
    context = fixed + 3 * TURN_TOKENS + 10
    chat, engine = chat_with_turns(3, context, system)
    limit = 10 + dropped * TURN_TOKENS
    reply = chat.generate("hi", on_overflow="drop_oldest", max_new_tokens=limit)
    assert reply.dropped_turns == dropped
    turns = [("user", "hi"), ("assistant", "hello")] * (3 - dropped)
    head = [("system", system)] if system else []
    assert engine.requests[-1].prompt_ids == slow_prompt(*head, *turns, ("user", "hi"))
    assert reply.usage.prompt_tokens == context - limit
    assert len(chat.messages) == len(head) + 2 * (4 - dropped)
    engine.close()


def test_drop_oldest_raises_where_even_the_last_message_does_not_fit() -> None:
    """When nothing is left to drop, the numbers are those of the shortest prompt."""
    chat, engine = chat_with_turns(2, PROMPT_TOKENS + 2 * TURN_TOKENS + 10)
    before = chat.messages
    with pytest.raises(ContextLengthError) as caught:
        chat.generate("hi", on_overflow="drop_oldest", max_new_tokens=10 + 2 * TURN_TOKENS + 1)
    assert caught.value.prompt_tokens == PROMPT_TOKENS
    assert chat.messages == before
    engine.close()


def test_turns_are_dropped_only_when_the_turn_is_kept() -> None:
    """A cancelled turn that had to make room leaves the old turns in the history."""
    engine = FakeEngine([Answer(HELLO), ENDLESS])
    chat = Phi3Chat(make_model(engine, context_tokens=PROMPT_TOKENS + TURN_TOKENS + 5))
    chat.generate("hi", max_new_tokens=len(HELLO))
    with chat.stream("hi", on_overflow="drop_oldest", max_new_tokens=TURN_TOKENS) as stream:
        next(stream)
    assert stream.reply.dropped_turns == 1
    assert len(chat.messages) == 2
    engine.close()


# ------------------------------------------------------------------------------- model
def test_complete_honours_control_tokens() -> None:
    """A raw prompt reaches the engine as the unmodified tokenizer encodes it."""
    engine = FakeEngine([Answer(HELLO)])
    reply = make_model(engine).complete("<|user|>\nhi<|end|>\n<|assistant|>\n")
    assert reply.text == "hello"
    assert engine.requests[0].prompt_ids == slow_prompt(("user", "hi"))
    engine.close()


def test_complete_refuses_an_empty_prompt() -> None:
    """There is nothing to continue."""
    engine = FakeEngine([Answer(HELLO)])
    with pytest.raises(PromptError, match="empty"):
        make_model(engine).complete("")
    engine.close()


@pytest.mark.parametrize(
    "call",
    [
        lambda chat: chat.generate(""),
        lambda chat: chat.generate("hi", max_new_tokens=0),
        lambda chat: chat.generate("hi", max_new_tokens=10**6),
        lambda chat: chat.model.complete(""),
        lambda chat: chat.model.generate_batch([[]])[0].reply,
    ],
)
def test_every_misuse_is_one_of_ours(call: Callable[[Phi3Chat], object]) -> None:
    """``except Phi3OVError`` catches each deliberate refusal."""
    chat, engine = make_chat(Answer(HELLO))
    with pytest.raises(Phi3OVError):
        call(chat)
    engine.close()
