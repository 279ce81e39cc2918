"""Lists of messages, raw prompts and token ids through `Phi3Model`; chats that begin with one."""

from __future__ import annotations

import asyncio
import copy
import pickle
import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import phi3ov
from phi3ov import (
    BatchRequest,
    GenerationOptions,
    Message,
    OptionError,
    Phi3Chat,
    PromptError,
    RequestLimits,
    StateError,
)
from phi3ov.answer.token_stream import TokenRequest

from .fakes import KITS, MINI, PHI4_MINI_KIT, Answer, FakeEngine, Kit, answer_ids, make_model

HELLO = answer_ids("hello the user")
QUESTION = [{"role": "user", "content": "hi"}]
TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)


def echo(_request: TokenRequest) -> Answer:
    """Answer the same to everything."""
    return Answer(HELLO)


def answer_in_place(kit: Kit, text: str) -> list[int]:
    """Return the ids of an answer's text where it stands in a prompt."""
    ids = kit.chat.encode_message(Message("assistant", text))
    return ids[len(kit.chat.opening) : len(ids) - len(kit.chat.closing)]


def test_messages_are_answered_by_every_door() -> None:
    """Generate, stream and agenerate give one answer; messages and dictionaries one prompt."""
    engine = FakeEngine(echo)
    with make_model(engine) as model:
        replies = [
            model.generate(QUESTION),
            model.generate([Message("user", "hi")]),
            model.stream(QUESTION).drain(),
            asyncio.run(model.agenerate(QUESTION)),
            model.stream(QUESTION, options=GenerationOptions(max_new_tokens=9)).drain(),
        ]
    assert {reply.text for reply in replies} == {"hello the user"}
    assert {request.prompt_ids for request in engine.requests} == {
        tuple(MINI.chat.encode_prompt([Message("user", "hi")]))
    }
    assert [request.max_new_tokens for request in engine.requests] == [1024] * 4 + [9]


@given(data=st.data(), kit=st.sampled_from(KITS))
def test_ids_are_those_of_the_tokenizer_and_of_a_chat_that_grew(
    data: st.DataObject, kit: Kit
) -> None:
    """One conversation has the same ids by `encode_prompt`, as messages and grown turn by turn."""
    turns = data.draw(st.lists(st.tuples(TEXTS, TEXTS), max_size=3))
    question = data.draw(TEXTS)
    keeps_system = kit.chat_format.system_messages == "kept"
    system = data.draw(st.none() | TEXTS) if keeps_system else None
    stop = sorted(kit.chat.stop_tokens)[0]
    answers = [answer_in_place(kit, text) for _, text in turns]
    engine = FakeEngine([Answer((*ids, stop)) for ids in [*answers, [], []]])
    messages = [Message("system", system)] if system is not None else []
    with make_model(engine, kit=kit) as model:
        chat = Phi3Chat(model, system=system)
        for (asked, _), ids in zip(turns, answers, strict=True):
            reply = chat.generate(asked)
            assert reply.token_ids == tuple(ids)
            messages += [Message("user", asked), Message("assistant", reply.text)]
        given_history = Phi3Chat(model, messages=messages)
        chat.generate(question)
        model.generate([*messages, Message("user", question)])
    grown, alone = engine.requests[-2:]
    expected = tuple(kit.chat.encode_prompt([*messages, Message("user", question)]))
    assert alone.prompt_ids == expected
    written = [message.content for message in messages if message.role == "assistant"]
    canonical = [answer_in_place(kit, text) for text in written] == answers
    if canonical:  # an answer's text may encode otherwise than the ids that the model chose
        assert grown.prompt_ids == expected
        assert given_history.token_ids == expected[: len(given_history.token_ids)]


def test_a_chat_goes_on_from_a_given_history() -> None:
    """Its next prompt is that of the whole list of messages."""
    history = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
    ]
    engine = FakeEngine(echo)
    with make_model(engine) as model:
        chat = Phi3Chat(model, messages=history)
        chat.generate("and now?")
        model.generate([*history, {"role": "user", "content": "and now?"}])
        assert engine.requests[0].prompt_ids == engine.requests[1].prompt_ids
        assert [message.role for message in chat.messages] == [
            "system",
            "user",
            "assistant",
            "user",
            "assistant",
        ]
        with pytest.raises(OptionError, match=r"system='x' contradicts messages\[0\]"):
            Phi3Chat(model, messages=history, system="x")
        with pytest.raises(PromptError, match=r"messages\[0\]\.role is 'user'; a history ends"):
            Phi3Chat(model, messages=QUESTION)


def test_an_open_answer_is_continued_in_its_own_turn() -> None:
    """The prompt ends within the assistant's message, and the reply holds what follows."""
    engine = FakeEngine([Answer(answer_ids(" the user"))])
    messages = [*QUESTION, {"role": "assistant", "content": "hello"}]
    with make_model(engine) as model:
        reply = model.generate(messages, continue_last=True)
        assert engine.requests[0].prompt_ids == tuple(
            MINI.chat.encode_prompt(
                [Message("user", "hi"), Message("assistant", "hello")], continue_last=True
            )
        )
        assert reply.token_ids == answer_ids(" the user")[:-1]
        with pytest.raises(PromptError, match=r"messages\[1\].role is 'assistant'"):
            model.generate(messages)
        with pytest.raises(PromptError, match="only an assistant message can be continued"):
            model.generate(QUESTION, continue_last=True)


@pytest.mark.parametrize("cut", range(1, len(HELLO) - 1))
def test_a_cut_answer_goes_on_with_exact_ids(cut: int) -> None:
    """Wherever it was cut, both parts joined are the text of the whole; the history too."""
    rest = Answer(HELLO[cut:])
    engine = FakeEngine([Answer(HELLO), rest, Answer(HELLO), rest, Answer(HELLO)])
    with make_model(engine) as model:
        first = model.generate(QUESTION, max_new_tokens=cut)
        more = model.stream_ids((*first.prompt_ids, *first.token_ids)).drain()
        assert first.finish_reason == "length"
        assert engine.requests[1].prompt_ids == (*first.prompt_ids, *HELLO[:cut])
        assert first.token_ids + more.token_ids == HELLO[:-1]

        chat = Phi3Chat(model)
        cut_off = chat.generate("hi", max_new_tokens=cut)
        added = chat.stream_more().drain()
        assert engine.requests[3].prompt_ids == engine.requests[1].prompt_ids
        assert cut_off.text + added.text == "hello the user" == chat.messages[-1].content
        whole = Phi3Chat(model)
        whole.generate("hi")
        assert chat.token_ids == whole.token_ids


def test_there_must_be_an_answer_to_continue() -> None:
    """A new chat has none, and the refusal leaves it free."""
    with make_model(FakeEngine(echo)) as model:
        chat = Phi3Chat(model)
        with pytest.raises(StateError, match="no answer to continue"):
            chat.stream_more()
        assert chat.generate("hi").text == "hello the user"


def test_raw_prompts_and_ids_are_streamed() -> None:
    """`complete` is `stream_prompt` drained, and both are `stream_ids` of the prompt's ids."""
    engine = FakeEngine(echo)
    with make_model(engine) as model:
        prompt = "<|user|>\nhi<|end|>\n<|assistant|>\n"
        pieces = list(model.stream_prompt(prompt))
        assert "".join(pieces) == model.complete(prompt).text == "hello the user"
        assert len(pieces) > 1
        model.stream_ids(MINI.chat.encode_raw(prompt)).drain()
        assert len({request.prompt_ids for request in engine.requests}) == 1
        with pytest.raises(PromptError, match=r"token_ids holds 999999, and the model's ids go"):
            model.stream_ids([1, 999_999])
        with pytest.raises(PromptError, match="token_ids holds -1"):
            model.stream_ids([-1])


def test_old_turns_of_messages_can_be_dropped() -> None:
    """``on_overflow="drop_oldest"`` leaves whole turns out, never the system message."""
    engine = FakeEngine(echo)
    system = Message("system", "be brief")
    turns = [Message("user", "hi"), Message("assistant", "hello")] * 6
    kept = len(MINI.chat.encode_prompt([system, *turns[:4], Message("user", "now")]))
    with make_model(engine, context_tokens=kept + 10) as model:
        reply = model.generate(
            [system, *turns, Message("user", "now")], on_overflow="drop_oldest", max_new_tokens=10
        )
    assert reply.dropped_turns == 4
    assert engine.requests[0].prompt_ids == tuple(
        MINI.chat.encode_prompt([system, *turns[:4], Message("user", "now")])
    )


def test_a_turn_takes_the_results_of_the_last_calls() -> None:
    """They stand in the tool's own role, and stay with their question when turns are dropped."""
    kit = PHI4_MINI_KIT
    before, after = kit.chat.tool_call_ids or (0, 0)
    call = [before, *kit.chat.encode_text('[{"name": "clock", "arguments": {}}]'), after]
    stop = kit.official.token_to_id("<|end|>")
    engine = FakeEngine(
        [Answer((*call, stop)), Answer(answer_ids("noon", kit=kit)), Answer([stop])]
    )

    def clock() -> str:
        """Tell the time."""
        return "12:00"

    with make_model(engine, kit=kit) as model:
        chat = Phi3Chat(model, tools=[clock])
        (asked,) = chat.generate("What time is it?").tool_calls
        assert (asked.name, asked.arguments) == ("clock", {})
        assert chat.generate([Message("tool", clock())]).text == "noon"
        assert [message.role for message in chat.messages][1:] == [
            "user",
            "assistant",
            "tool",
            "assistant",
        ]
        again = Phi3Chat(model, messages=chat.messages, tools=[clock])
        assert len(again.messages) == len(chat.messages)
        with pytest.raises(PromptError, match="'tool', and no call before it waits"):
            chat.generate([Message("tool", "late")])
        chat.generate("thanks", on_overflow="drop_oldest")
    assert engine.requests[1].prompt_ids[: len(engine.requests[0].prompt_ids)] == (
        engine.requests[0].prompt_ids
    )


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "conversation is empty"),
        ("hi", "is of type str"),
        ([{"role": "user"}], r"messages\[0\].content"),
        ([{"role": "owner", "content": "x"}], r"messages\[0\].role"),
        ([{"role": "user", "content": ""}], r"messages\[0\].content is empty"),
        ([{"role": "user", "content": "\ud800"}], "surrogate"),
        ([{"role": "assistant", "content": "x"}, *QUESTION], r"messages\[0\].role"),
        ([*QUESTION, *QUESTION], r"messages\[1\].role is 'user' where 'assistant'"),
        ([*QUESTION, {"role": "tool", "content": "x", "tool_call_id": "1"}], r"messages\[1\]"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            r"messages\[0\].content\[0\]",
        ),
        ([*QUESTION, {"role": "assistant", "content": "x"}], r"messages\[1\].role"),
    ],
)
def test_what_cannot_be_answered_names_message_and_field(messages: Any, said: str) -> None:
    """Nothing reaches the engine."""
    engine = FakeEngine(echo)
    with make_model(engine) as model:
        with pytest.raises(PromptError, match=said):
            model.generate(messages)
        assert engine.requests == []
        assert model.load.running == model.load.waiting == 0


def test_a_history_beyond_the_context_and_a_very_long_list_are_refused() -> None:
    """100 000 messages are read and refused for their length, not for their number."""
    messages = [Message("user", "hi"), Message("assistant", "hello")] * 50_000
    with make_model(FakeEngine(echo)) as model, pytest.raises(phi3ov.ContextLengthError):
        model.generate([*messages, Message("user", "hi")])


def test_batches_take_dictionaries_and_tools() -> None:
    """A request of a batch has its own tools, which stand in its prompt alone."""
    kit = PHI4_MINI_KIT
    stop = kit.official.token_to_id("<|end|>")
    engine = FakeEngine(lambda _request: Answer([stop]))

    def clock() -> str:
        """Tell the time."""
        return ""

    with make_model(engine, kit=kit) as model:
        results = model.generate_batch([QUESTION, BatchRequest(messages=QUESTION, tools=[clock])])
    assert [result.error for result in results] == [None, None]
    plain, offered = engine.requests
    assert "clock" in kit.official.decode(list(offered.prompt_ids))
    assert "clock" not in kit.official.decode(list(plain.prompt_ids))


# --- values travel --------------------------------------------------------------------------------


def public_values() -> Sequence[object]:
    """Return a value of each kind that a caller may hold."""
    engine = FakeEngine(echo)
    with make_model(engine) as model:
        reply = model.generate(QUESTION, temperature=1.0, candidates=2)
    return [
        reply,
        reply.usage,
        reply.timings,
        GenerationOptions(max_new_tokens=3, json_schema={"type": "integer"}),
        GenerationOptions(temperature=0.5).sampling,
        RequestLimits(max_waiting_tokens=5),
        Message("user", "hi"),
        BatchRequest(messages=[Message("user", "hi")]),
        phi3ov.RuntimeConfig(),
        phi3ov.RuntimeConfig(properties={"A": "b"}),
        phi3ov.Int4Compression(),
        phi3ov.PromptLookup(),
        phi3ov.DraftModel(path="x"),
        phi3ov.LoraAdapter(path="x"),
        phi3ov.Tool(name="a", description="b"),
        phi3ov.ToolCall(name="a", arguments={"b": [1]}),
        model.load,
        model.device,
        model.context,
    ]


@pytest.mark.parametrize("value", public_values(), ids=lambda value: type(value).__name__)
def test_a_value_can_be_pickled_copied_and_compared(value: object) -> None:
    """What comes back equals what was sent, and prints alike."""
    for twin in (pickle.loads(pickle.dumps(value)), copy.deepcopy(value), copy.copy(value)):
        assert twin == value
        assert repr(twin) == repr(value)


def test_a_loaded_model_does_not_travel_and_a_copied_chat_is_a_fork() -> None:
    """The error says what to send instead; a chat's copy goes on by itself."""
    with make_model(FakeEngine(echo)) as model:
        chat = Phi3Chat(model)
        chat.generate("hi")
        for twin in (copy.copy(chat), copy.deepcopy(chat)):
            assert twin.messages == chat.messages
            twin.generate("more")
            assert len(twin.messages) == len(chat.messages) + 2
        for loaded in (model, chat):
            with pytest.raises(TypeError, match="cannot be"):
                pickle.dumps(loaded)
        with pytest.raises(TypeError, match="cannot be copied or pickled"):
            copy.deepcopy(model)


def test_what_a_notebook_shows() -> None:
    """Model, chat and stream say what they are and in which state."""
    with make_model(FakeEngine(echo)) as model:
        chat = Phi3Chat(model)
        stream = chat.stream("hi")
        stream.drain()
        assert "on CPU, 4096 tokens of context, ready" in repr(model)
        assert repr(chat).startswith("<phi3ov.Phi3Chat: 1 turns, ")
        assert repr(stream) == "<phi3ov.ReplyStream: ended, finish_reason='stop'>"
    assert "closed" in repr(model)


def test_a_chats_options_must_be_options() -> None:
    """A dictionary is refused with what to write instead."""
    with make_model(FakeEngine(echo)) as model:
        with pytest.raises(OptionError, match=r"must be phi3ov.GenerationOptions, got .*\*\*opt"):
            Phi3Chat(model, options={"max_new_tokens": 3})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("max_tokens", "max_new_tokens"),
        ("n", "candidates"),
        ("response_format", "json_schema"),
        ("do_sample", "temperature"),
        ("temprature", "temperature"),
        ("max_new_token", "max_new_tokens"),
    ],
)
def test_foreign_and_misspelt_names_get_a_suggestion(name: str, meant: str) -> None:
    """Names of openai, transformers and llama.cpp are known; others are compared."""
    with make_model(FakeEngine(echo)) as model:
        with pytest.raises(OptionError, match=rf"'{name}' is not an option. Did you mean {meant}"):
            model.generate(QUESTION, **{name: 1})  # type: ignore[call-overload]


def test_random_conversations_leave_nothing_in_the_engine() -> None:
    """Whatever was refused, cancelled or answered, nothing runs or waits afterwards."""
    choose = random.Random(7)
    engine = FakeEngine(echo)
    with make_model(engine) as model:
        for _ in range(200):
            messages = [
                {
                    "role": choose.choice(["user", "assistant", "system", "tool", "x"]),
                    "content": choose.choice(["a", "", None, [], [{"type": "text", "text": "b"}]]),
                }
                for _ in range(choose.randrange(4))
            ]
            try:
                stream = model.stream(messages)
            except phi3ov.Phi3OVError:
                continue
            stream.close() if choose.random() < 0.5 else stream.drain()
        assert (model.load.running, model.load.waiting) == (0, 0)
