"""The chat model for LangChain, with a scripted engine: what goes in, and what comes back.

LangChain's own suites run over it in ``tests/clients``, with a real model.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.exceptions import ContextOverflowError, OutputParserException
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    trim_messages,
)
from langchain_core.messages.tool import invalid_tool_call
from langchain_core.tools import tool
from pydantic import BaseModel, ValidationError

import phi3ov
from phi3ov import ContextLengthError, Message, OptionError, PromptError, ToolCall
from phi3ov.answer.token_stream import TokenRequest
from phi3ov.integrations.langchain import ChatPhi3
from phi3ov.integrations.langchain.messages import read_messages
from phi3ov.prompt.tools import describe_calls

from .fakes import MINI, PHI4_MINI_KIT, Answer, FakeEngine, Kit, answer_ids, make_model
from .grammar_sampler import GrammarSampler

HELLO = Answer(answer_ids("hello the user"), cached_tokens=2)


@tool
def now(zone: str) -> str:
    """Return the time."""
    return zone


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


class City(BaseModel):
    """A city."""

    name: str


def echo(_request: TokenRequest) -> Answer:
    """Answer the same to everything."""
    return HELLO


def make_chat(
    fake: FakeEngine | None = None, *, kit: Kit = MINI, context_tokens: int = 4096, **fields: Any
) -> ChatPhi3:
    """Return a chat model around a fake engine that takes grammars."""
    engine = FakeEngine(echo) if fake is None else fake
    engine.takes_grammars = True
    return ChatPhi3(model=make_model(engine, kit=kit, context_tokens=context_tokens), **fields)


def calling(*calls: ToolCall) -> FakeEngine:
    """Return an engine that writes calls behind the token that opens them."""
    ids = answer_ids(describe_calls(calls), kit=PHI4_MINI_KIT, stop="<|/tool_call|>")
    end = answer_ids("", kit=PHI4_MINI_KIT)
    return FakeEngine(lambda _request: Answer((*ids, *end)))


def answering(text: str) -> FakeEngine:
    """Return an engine that answers ``text``."""
    return FakeEngine(lambda _request: Answer(answer_ids(text)))


def whole(chunks: list[Any]) -> AIMessageChunk:
    """Return the sum of a stream's chunks."""
    total = chunks[0]
    for chunk in chunks[1:]:
        total += chunk
    assert isinstance(total, AIMessageChunk)
    return total


# --- answers --------------------------------------------------------------------------------


def test_every_door_gives_one_answer() -> None:
    """Invoke, stream and both coroutines give one text, usage and reason."""
    chat = make_chat()

    async def read_stream() -> list[Any]:
        return [chunk async for chunk in chat.astream("hi")]

    streamed = list(chat.stream("hi"))
    messages = [
        chat.invoke("hi"),
        whole(streamed),
        asyncio.run(chat.ainvoke("hi")),
        whole(asyncio.run(read_stream())),
    ]
    assert len(streamed) > 2
    for message in messages:
        assert message.content == "hello the user"
        usage = message.usage_metadata
        assert usage is not None
        assert usage["output_tokens"] == len(HELLO.token_ids)
        assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
        assert usage["input_token_details"] == {"cache_read": 2}
        said = message.response_metadata
        assert (said["finish_reason"], said["model_name"]) == ("stop", "no-such-folder")
    assert [getattr(chunk, "chunk_position", None) for chunk in streamed[-2:]] == [None, "last"]


def test_a_batch_of_coroutines_leaves_the_loop_free() -> None:
    """Requests that wait for a place in the queue do not block the event loop."""
    gate = threading.Event()
    engine = FakeEngine(
        lambda _request: Answer(HELLO.token_ids, gate=gate),
        limits=phi3ov.RequestLimits(max_waiting=1),
    )
    chat = make_chat(engine)

    async def ask() -> list[AIMessage]:
        asked = asyncio.ensure_future(chat.abatch(["hi"] * 9))
        await asyncio.sleep(0.05)
        gate.set()
        return await asked

    assert [message.content for message in asyncio.run(ask())] == ["hello the user"] * 9


def test_leaving_a_stream_cancels_its_answer() -> None:
    """An endless answer ends when its stream is closed, sync and async."""
    engine = FakeEngine(lambda _request: Answer(HELLO.token_ids[:2], endless=True))
    chat = make_chat(engine)
    stream = chat.stream("hi")
    next(stream)
    stream.close()  # type: ignore[attr-defined]  # a generator

    async def read_one() -> None:
        pieces = chat.astream("hi")
        await anext(pieces)
        await pieces.aclose()  # type: ignore[attr-defined]  # likewise

    asyncio.run(read_one())
    engine.close()  # waits for what runs
    assert len(engine.requests) == 2


def test_a_cancelled_coroutine_cancels_its_answer() -> None:
    """Also while it waits for the first token."""
    engine = FakeEngine(lambda _request: Answer(endless=True))
    chat = make_chat(engine)

    async def leave() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(chat.ainvoke("hi"), 0.05)

    asyncio.run(leave())
    engine.close()


def test_several_candidates_are_several_generations() -> None:
    """``n`` answers come back from ``generate``; a stream has one and says so."""
    chat = make_chat(temperature=1.0)
    result = chat.generate([[HumanMessage("hi")]], n=3)
    assert len(result.generations[0]) == 3
    with pytest.raises(OptionError, match="candidates=2 cannot be streamed"):
        list(chat.stream("hi", n=2))


def test_callbacks_see_the_pieces() -> None:
    """With ``streaming=True`` a callback hears each piece of ``invoke``."""
    from langchain_core.callbacks import BaseCallbackHandler

    heard: list[str] = []

    class Listener(BaseCallbackHandler):
        def on_llm_new_token(self, token: Any, **_said: Any) -> None:
            heard.append(token)

    answer = make_chat(streaming=True).invoke("hi", config={"callbacks": [Listener()]})
    assert "".join(heard) == answer.content == "hello the user"
    assert len(heard) > 1


# --- options --------------------------------------------------------------------------------


def test_options_reach_the_engine() -> None:
    """Fields, ``options`` and the arguments of a call; the call's win."""
    engine = FakeEngine(echo)
    chat = make_chat(engine, temperature=0.5, max_tokens=7, options={"top_k": 5, "seed": 3})
    chat.invoke("hi")
    chat.invoke("hi", max_tokens=4, top_k=2)
    first, second = engine.requests
    assert (first.max_new_tokens, first.sampling.top_k, first.sampling.seed) == (7, 5, 3)
    assert (second.max_new_tokens, second.sampling.top_k) == (4, 2)
    assert first.sampling.temperature == second.sampling.temperature == 0.5


def test_a_stop_string_ends_the_answer() -> None:
    """Of the field, and of the call instead; an empty list of the call means none."""
    chat = make_chat(stop=["user"])
    assert chat.invoke("hi").content == "hello the "
    assert chat.invoke("hi", stop=["the"]).content == "hello "
    assert chat.invoke("hi", stop=[]).content == "hello the user"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"options": {"max_tokens": 5}}, "'max_tokens' is not an option"),
        ({"options": {"temperature": 0.5}}, "repeats the field 'temperature'"),
        ({"options": {"top_p": 0.5}}, "top_p=0.5 has no effect at temperature=0.0"),
        ({"engine": "worker"}, "a model that is loaded already"),
        ({"temperature": -1}, "temperature=-1"),
    ],
)
def test_a_wrong_option_is_refused_when_it_is_given(fields: dict[str, Any], says: str) -> None:
    """Not when the first question is asked."""
    with pytest.raises((OptionError, ValidationError), match=says):
        make_chat(**fields)


def test_unknown_fields_and_arguments_are_refused() -> None:
    """LangChain's default is to ignore them."""
    with pytest.raises(ValidationError, match="temprature"):
        make_chat(temprature=1.0)
    with pytest.raises(OptionError, match="Did you mean top_k"):
        make_chat().invoke("hi", topk=4)


def test_what_every_application_sets_is_accepted() -> None:
    """``max_retries`` and ``api_key`` change nothing, and the key is not printed."""
    chat = make_chat(max_retries=2, api_key="secret-key")
    assert "secret-key" not in repr(chat)


def test_too_long_a_prompt_is_an_error_of_both_libraries() -> None:
    """LangChain's middleware and phi3ov's callers catch the same error."""
    chat = make_chat(context_tokens=8)
    with pytest.raises(ContextOverflowError) as caught:
        chat.invoke("hello " * 20)
    assert isinstance(caught.value, ContextLengthError)
    assert caught.value.context_tokens == 8


def test_a_cache_keeps_answers_of_different_options_apart() -> None:
    """Its key holds the options and the model."""
    keys = {
        str(make_chat(**fields).asdict()) for fields in ({}, {"max_tokens": 3}, {"stop": ["a"]})
    }
    assert len(keys) == 3


# --- messages -------------------------------------------------------------------------------


def test_messages_become_the_prompt_that_the_library_makes() -> None:
    """Adjacent ones of a role are joined, parts too, and thoughts and blocks of calls left out."""
    engine = FakeEngine(echo)
    chat = make_chat(engine)
    chat.invoke(
        [
            SystemMessage("a"),
            SystemMessage("b"),
            HumanMessage([{"type": "text", "text": "c"}, "d"], name="me"),
            AIMessage(
                [{"type": "reasoning", "reasoning": "x"}, {"type": "text", "text": "e"}],
                additional_kwargs={"reasoning_content": "y"},
            ),
            ChatMessage(content="f", role="user"),
        ]
    )
    expected = [
        Message("system", "a\n\nb"),
        Message("user", "c\nd"),
        Message("assistant", "e"),
        Message("user", "f"),
    ]
    assert engine.requests[0].prompt_ids == tuple(MINI.chat.encode_prompt(expected))


def test_results_are_put_into_the_order_of_the_calls() -> None:
    """LangGraph may give them in the order in which they ended."""
    calls = [
        {"name": "add", "args": {"a": 1, "b": 2}, "id": "x", "type": "tool_call"},
        {"name": "now", "args": {"zone": "UTC"}, "id": "y", "type": "tool_call"},
    ]
    read = read_messages(
        [
            HumanMessage("?"),
            AIMessage([{"type": "tool_use", "id": "x"}], tool_calls=calls),
            ToolMessage("12:00", tool_call_id="y"),
            ToolMessage([{"type": "text", "text": "3"}], tool_call_id="x"),
        ]
    )
    assert [message.content for message in read[2:]] == ["3", "12:00"]
    assert read[1].tool_calls == (
        ToolCall(name="add", arguments={"a": 1, "b": 2}, id="x"),
        ToolCall(name="now", arguments={"zone": "UTC"}, id="y"),
    )


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (HumanMessage([{"type": "image_url", "image_url": "x"}]), r"messages\[0\].content\[0\]"),
        (ChatMessage(content="a", role="critic"), "ChatMessage is not a message"),
        (FunctionMessage(content="a", name="f"), "FunctionMessage is not a message"),
        (
            AIMessage(
                "",
                invalid_tool_calls=[invalid_tool_call(name="f", args="{", id="x", error=None)],
            ),
            "invalid_tool_calls holds the call 'f'",
        ),
    ],
)
def test_what_a_prompt_cannot_hold_is_refused(message: BaseMessage, says: str) -> None:
    """Nothing is left out without an error."""
    with pytest.raises(PromptError, match=says):
        make_chat().invoke([message])


@given(st.lists(st.sampled_from(["hi", "hello the user", "<|end|>", "é"]), min_size=1, max_size=5))
def test_token_counts_are_those_of_the_prompt(texts: list[str]) -> None:
    """Counting needs no engine and is exact, with and without a system message."""
    engine = FakeEngine(echo)
    chat = make_chat(engine)
    kinds = (HumanMessage, AIMessage)
    messages: list[BaseMessage] = [kinds[index % 2](text) for index, text in enumerate(texts)]
    if len(messages) % 2 == 0:
        messages.insert(0, SystemMessage("be brief"))
        messages.append(HumanMessage("hi"))
    chat.invoke(messages)
    assert chat.get_num_tokens_from_messages(messages) == len(engine.requests[0].prompt_ids)
    assert chat.get_num_tokens(texts[0]) == len(MINI.chat.encode_text(texts[0]))


def test_token_counts_hold_the_tools() -> None:
    """Descriptions stand in the system message."""
    engine = FakeEngine(lambda _request: Answer(answer_ids("hello", kit=PHI4_MINI_KIT)))
    chat = make_chat(engine, kit=PHI4_MINI_KIT)
    question: list[BaseMessage] = [HumanMessage("hi")]
    chat.bind_tools([now]).invoke(question)
    counted = chat.get_num_tokens_from_messages(question, tools=[now])
    assert counted == len(engine.requests[0].prompt_ids)


def test_trim_messages_counts_parts_of_a_conversation() -> None:
    """A part may begin with an answer, which no prompt does."""
    history = [HumanMessage("hello " * 50), AIMessage("hello"), HumanMessage("hi")]
    kept = trim_messages(history, max_tokens=20, token_counter=make_chat(), start_on="human")
    assert [message.content for message in kept] == ["hi"]


# --- tools ----------------------------------------------------------------------------------


def test_a_call_is_guided_and_read() -> None:
    """Whole and streamed; the grammar holds the arguments, and the id is new each time."""
    engine = calling(ToolCall(name="now", arguments={"zone": "é"}))
    chat = make_chat(engine, kit=PHI4_MINI_KIT).bind_tools([now, add], tool_choice="now")
    called = chat.invoke("?")
    streamed = whole(list(chat.stream("?")))
    for message in (called, streamed):
        assert [(call["name"], call["args"]) for call in message.tool_calls] == [
            ("now", {"zone": "é"})
        ]
        assert message.response_metadata["finish_reason"] == "tool_calls"
        assert message.content == ""
    assert called.tool_calls[0]["id"] != streamed.tool_calls[0]["id"]
    grammar = engine.requests[0].grammar
    assert grammar is not None
    assert "zone" in grammar
    assert "add" not in grammar


@pytest.mark.parametrize(
    ("choice", "tools", "forced"),
    [
        (None, [now, add], False),
        ("auto", [now, add], False),
        (False, [now], False),
        ("any", [now, add], True),
        (True, [now, add], True),
        ("required", [now], True),
        ({"type": "function", "function": {"name": "add"}}, [now, add], True),
    ],
)
def test_choices_are_langchains(choice: Any, tools: list[Any], forced: bool) -> None:
    """A forced call begins with the token that opens calls."""
    engine = calling(ToolCall(name="now", arguments={"zone": "a"}))
    chat = make_chat(engine, kit=PHI4_MINI_KIT)
    chat.bind_tools(tools, tool_choice=choice).invoke("?")
    opening = PHI4_MINI_KIT.official.token_to_id("<|tool_call|>")
    assert (engine.requests[0].prompt_ids[-1] == opening) == forced


def test_a_single_tool_is_called_once() -> None:
    """With one tool ``any`` is its name, so the grammar ends after one call."""
    engine = calling(ToolCall(name="now", arguments={"zone": "a"}))
    chat = make_chat(engine, kit=PHI4_MINI_KIT)
    for choice in ("any", "now"):
        chat.bind_tools([now], tool_choice=choice).invoke("?")
    chat.bind_tools([now, add], tool_choice="any").invoke("?")
    once, named, several = (request.grammar for request in engine.requests)
    assert once == named != several


def test_a_tool_without_parameters_takes_none() -> None:
    """LangChain describes it as any object, and the model would invent arguments."""

    @tool
    def ping() -> str:
        """Answer."""
        return "pong"

    engine = calling(ToolCall(name="ping", arguments={}))
    make_chat(engine, kit=PHI4_MINI_KIT).bind_tools([ping], tool_choice="any").invoke("?")
    sampler = GrammarSampler(engine.requests[0].grammar or "")
    drawn = {sampler.draw(random.Random(seed)) for seed in range(20)}
    assert {json.dumps(json.loads(text)[0]["arguments"]) for text in drawn} == {"{}"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"tool_choice": "later"}, "'later' names none of the tools: now, add"),
        ({"parallel_tool_calls": False}, "needs a tool_choice that names a tool"),
        ({"parallel_tool_calls": False, "tool_choice": "any"}, "names a tool"),
    ],
)
def test_what_cannot_be_enforced_is_refused(arguments: dict[str, Any], says: str) -> None:
    """When the tools are bound."""
    with pytest.raises(OptionError, match=says):
        make_chat(kit=PHI4_MINI_KIT).bind_tools([now, add], **arguments)


def test_a_model_without_tools_says_so() -> None:
    """The profile says it, and so does the error of a call."""
    chat = make_chat()
    assert chat.profile is not None
    assert chat.profile["tool_calling"] is False
    assert make_chat(kit=PHI4_MINI_KIT).profile == {**chat.profile, "tool_calling": True}
    with pytest.raises(PromptError, match="of the family only Phi-4-mini"):
        chat.bind_tools([now]).invoke("?")


# --- schemas --------------------------------------------------------------------------------

PARIS = '{"name": "Paris"}'


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_every_method_is_guided(method: str) -> None:
    """Classes give instances, schemas dictionaries; the grammar is one."""
    engine = answering(PARIS)
    chat = make_chat(engine)
    assert chat.with_structured_output(City, method=method).invoke("?") == City(name="Paris")
    schema = City.model_json_schema()
    assert chat.with_structured_output(schema, method=method).invoke("?") == {"name": "Paris"}
    last = None
    for last in chat.with_structured_output(City, method=method, strict=True).stream("?"):
        assert isinstance(last, City)
    assert last == City(name="Paris")
    (grammar,) = {request.grammar for request in engine.requests}
    assert grammar is not None
    assert "name" in grammar


@pytest.mark.parametrize("schema", [City, City.model_json_schema()])
def test_an_answer_that_was_cut_off_is_no_value(schema: Any) -> None:
    """LangChain's parser would close the string and the brace."""
    chat = make_chat(answering(PARIS), max_tokens=6)
    with pytest.raises(OutputParserException, match="was cut off"):
        chat.with_structured_output(schema).invoke("?")
    with pytest.raises(OutputParserException, match="was cut off"):
        list(chat.with_structured_output(schema).stream("?"))
    both = chat.with_structured_output(schema, include_raw=True).invoke("?")
    assert isinstance(both, dict)
    assert both["parsed"] is None
    assert isinstance(both["parsing_error"], OutputParserException)
    assert both["raw"].response_metadata["finish_reason"] == "length"


def test_the_raw_answer_comes_beside_the_value() -> None:
    """With ``include_raw``."""
    both = make_chat(answering(PARIS)).with_structured_output(City, include_raw=True).invoke("?")
    assert isinstance(both, dict)
    assert (both["parsed"], both["parsing_error"]) == (City(name="Paris"), None)
    assert json.loads(both["raw"].content) == {"name": "Paris"}


@pytest.mark.parametrize(
    ("asked", "schema"),
    [
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "json_schema", "json_schema": {"schema": City.model_json_schema()}}, None),
        ({"type": "text"}, "none"),
    ],
)
def test_openais_response_format_is_read(asked: dict[str, Any], schema: Any) -> None:
    """LangChain's agents bind it."""
    engine = answering(PARIS)
    make_chat(engine).invoke("?", response_format=asked)
    direct = answering(PARIS)
    expected = City.model_json_schema() if schema is None else schema
    with make_model(direct) as model:
        direct.takes_grammars = True
        model.generate([Message("user", "?")], json_schema=None if expected == "none" else expected)
    assert engine.requests[0].grammar == direct.requests[0].grammar


@pytest.mark.parametrize("asked", [{"type": "xml"}, "json", {"type": "json_schema"}])
def test_another_response_format_is_refused(asked: Any) -> None:
    """By name."""
    with pytest.raises(OptionError, match="response_format="):
        make_chat().invoke("?", response_format=asked)


def test_a_schema_beside_tools_is_refused() -> None:
    """A call would not fit it."""
    chat = make_chat(kit=PHI4_MINI_KIT).bind_tools([now], response_format={"type": "json_object"})
    with pytest.raises(OptionError, match="A schema together with tools"):
        chat.invoke("?")
    with pytest.raises(OptionError, match="method='prose'"):
        make_chat().with_structured_output(City, method="prose")


# --- the rest -------------------------------------------------------------------------------


def test_a_loaded_model_stays_its_owners() -> None:
    """``close`` leaves it open."""
    with make_chat() as chat:
        pass
    assert chat.invoke("hi").content == "hello the user"


def test_without_langchain_the_error_names_the_command() -> None:
    """And the module itself can be imported."""
    code = (
        "import sys; sys.modules['langchain_core'] = None\n"
        "import phi3ov.integrations.langchain as made, phi3ov\n"
        "try: made.ChatPhi3\n"
        "except phi3ov.MissingDependencyError as error: print(error.command)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == 'pip install "phi3ov[langchain]"'
