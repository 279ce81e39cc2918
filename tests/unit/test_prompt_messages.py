"""OpenAI-shaped messages: each is read as it is, or refused by number and field."""

from __future__ import annotations

import copy
import json
import pickle
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phi3ov.errors import Phi3OVError, PromptError
from phi3ov.prompt.dictionaries import ChatMessage, read_messages
from phi3ov.prompt.messages import Ending, Message, check_order
from phi3ov.prompt.tools import ToolCall

USER: ChatMessage = {"role": "user", "content": "Hello"}
CALL: dict[str, Any] = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'},
}
CALLING: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT: dict[str, Any] = {"role": "tool", "tool_call_id": "call_1", "content": "3"}


def test_a_conversation_with_everything_is_read() -> None:
    """Every role and field of the protocol that a prompt can hold gives the same as `Message`."""
    parts = [{"type": "text", "text": text} for text in ("Be", "brief.")]
    conversation: list[Any] = [
        {"role": "developer", "content": parts},
        {"role": "user", "content": "1 + 2?", "name": "Ann"},
        {**CALLING, "refusal": None, "audio": None, "annotations": [], "function_call": None},
        {**RESULT, "name": "add"},
        {"role": "assistant", "content": "3", "tool_calls": [], "reasoning_content": "Easy."},
        Message("user", "Thanks"),
    ]  # fmt: skip
    call = ToolCall(name="add", arguments={"a": 1, "b": 2}, id="call_1")
    assert read_messages(conversation) == (
        Message("system", "Be\nbrief."),
        Message("user", "1 + 2?", name="Ann"),
        Message("assistant", "", tool_calls=(call,)),
        Message("tool", "3", tool_call_id="call_1", name="add"),
        Message("assistant", "3"),
        Message("user", "Thanks"),
    )


@pytest.mark.parametrize("arguments", [None, "", "{}", {}])
def test_a_call_without_arguments_has_none(arguments: object) -> None:
    """Null, an empty string and an empty object are the same, as a string or not."""
    call = {**CALL, "function": {"name": "now", "arguments": arguments}}
    read = read_messages([USER, {**CALLING, "tool_calls": [call]}, RESULT])
    assert read[1].tool_calls == (ToolCall(name="now", arguments={}, id="call_1"),)


BAD_MESSAGES: list[tuple[object, str]] = [
    (5, r"messages\[1\]=5 is of type int"),
    ({}, r"messages\[1\]\.role=None"),
    ({"role": "function", "content": "a"}, r"messages\[1\]\.role='function'"),
    ({"role": ["user"], "content": "a"}, r"messages\[1\]\.role=\['user'\]"),
    ({"role": "assistant"}, r"messages\[1\]\.content is missing"),
    ({"role": "assistant", "content": None}, r"messages\[1\]\.content is missing"),
    ({"role": "assistant", "content": 5}, r"messages\[1\]\.content=5 is not a string or a list"),
    (
        {"role": "assistant", "content": ["a"]},
        r"messages\[1\]\.content\[0\]='a' is not a text part",
    ),
    (
        {"role": "assistant", "content": [{"type": "image_url", "image_url": {"url": "a"}}]},
        r"messages\[1\]\.content\[0\]=.* is not a text part: the models of this family read text",
    ),
    (
        {"role": "assistant", "content": [{"type": "input_audio", "input_audio": {}}]},
        r"messages\[1\]\.content\[0\]=",
    ),
    (
        {"role": "assistant", "content": [{"type": "text"}]},
        r"messages\[1\]\.content\[0\]\.text=None",
    ),
    (
        {"role": "assistant", "content": [{"type": "text", "text": "a", "bold": True}]},
        r"messages\[1\]\.content\[0\]\.bold",
    ),
    ({"role": "assistant", "content": "a\ud800"}, r"messages\[1\]: .*lone surrogate at index 1"),
    ({"role": "assistant", "content": "a", "images": ["b"]}, r"messages\[1\]\.images=\['b'\]"),
    ({"role": "assistant", "content": "a", "audio": {"id": "b"}}, r"messages\[1\]\.audio="),
    ({"role": "assistant", "content": "a", "refusal": "no"}, r"messages\[1\]\.refusal='no'"),
    ({"role": "assistant", "content": "a", "name": 5}, r"messages\[1\]: name=5"),
    ({"role": "assistant", "content": "a", "name": "\ud800"}, r"messages\[1\]: .*lone surrogate"),
    (
        {"role": "assistant", "content": "a", "tool_call_id": "b"},
        r"messages\[1\]: tool_call_id='b'",
    ),
    ({"role": "assistant", "content": "a", "tool_calls": 5}, r"messages\[1\]\.tool_calls=5"),
    ({**CALLING, "tool_calls": [5]}, r"messages\[1\]\.tool_calls\[0\]=5"),
    ({**CALLING, "tool_calls": [CALL, CALL]}, r"messages\[1\]: tool_calls have the ids"),
    ({**CALLING, "tool_calls": [{**CALL, "type": "custom"}]}, r"tool_calls\[0\]\.type='custom'"),
    ({**CALLING, "tool_calls": [{**CALL, "custom": 1}]}, r"tool_calls\[0\]\.custom"),
    ({**CALLING, "tool_calls": [{"id": "a"}]}, r"tool_calls\[0\]\.function=None"),
    ({**CALLING, "tool_calls": [{**CALL, "id": 5}]}, r"tool_calls\[0\]: id=5"),
    *(
        ({**CALLING, "tool_calls": [{**CALL, "function": function}]}, said)
        for function, said in [
            ({"name": "", "arguments": "{}"}, r"messages\[1\]\.tool_calls\[0\]: name=''"),
            ({"name": "a", "arguments": "{}", "strict": True}, r"\.function\.strict"),
            ({"name": "a", "arguments": "{"}, r"\.function\.arguments='\{' is not JSON"),
            ({"name": "a", "arguments": "[" * 99999}, r"\.function\.arguments=.* is not JSON"),
            ({"name": "a", "arguments": "[]"}, r"\.function\.arguments=\[\] is not a JSON object"),
            ({"name": "a", "arguments": '{"b": NaN}'}, r"\.arguments=.* NaN is not JSON"),
            ({"name": "a", "arguments": '{"b": 1e999}'}, r"tool_calls\[0\]: The call of 'a'"),
            ({"name": "a", "arguments": '{"b": "\\ud800"}'}, r"tool_calls\[0\]: The call of 'a'"),
        ]
    ),
    ({"role": "user", "content": "again"}, r"messages\[1\]\.role is 'user' where 'assistant'"),
    ({"role": "system", "content": "a"}, r"messages\[1\]\.role is 'system' where 'assistant'"),
    (RESULT, r"messages\[1\]\.role is 'tool', and no call before it"),
]


@pytest.mark.parametrize(("message", "said"), BAD_MESSAGES)
def test_what_no_prompt_can_hold_is_refused_by_number_and_field(message: Any, said: str) -> None:
    """The error names the message's position, counted from 0, and the field."""
    with pytest.raises(PromptError, match=said):
        read_messages([USER, message, USER])


@pytest.mark.parametrize(
    ("conversation", "said"),
    [
        ([], "conversation is empty"),
        ("Hello", "messages='Hello' is of type str"),
        (iter([USER]), "is of type list_iterator"),
        ([{"role": "assistant", "content": "a"}], r"messages\[0\]\.role is 'assistant'"),
        ([{"role": "user", "content": ""}], r"messages\[0\]\.content is empty"),
        ([{"role": "user", "content": []}], r"messages\[0\]\.content is empty"),
        ([Message("user", "")], r"messages\[0\]\.content is empty"),
        ([USER, CALLING], r"messages\[1\]\.role is 'assistant'; the last message must be"),
        (
            [USER, CALLING, {**RESULT, "tool_call_id": "other"}],
            r"messages\[2\]\.tool_call_id='other' is not the id 'call_1'",
        ),
        ([USER, CALLING, {**RESULT, "name": "sub"}], r"messages\[2\]\.name='sub'"),
        ([USER, CALLING, RESULT, RESULT], r"messages\[3\]\.role is 'tool', and no call"),
        ([USER, CALLING, RESULT, USER], r"messages\[3\]\.role is 'user' where 'assistant'"),
    ],
)
def test_orders_that_no_model_answers_are_refused(conversation: Any, said: str) -> None:
    """An assistant turn first, results without calls, empty questions and so on."""
    with pytest.raises(PromptError, match=said):
        read_messages(conversation)


def test_results_stand_in_the_order_of_their_calls_and_are_complete() -> None:
    """The format holds no ids, so order is all that ties a result to its call."""
    calls = tuple(ToolCall(name=name, arguments={}, id=name) for name in "ab")
    before = [Message("user", "go"), Message("assistant", "", tool_calls=calls)]
    first, second = (Message("tool", "1", tool_call_id=name) for name in "ab")
    check_order([*before, first, second])
    check_order([*before, Message("tool", "1"), Message("tool", "2")])
    check_order([*before, Message("user", "never mind")])
    with pytest.raises(PromptError, match=r"messages\[2\]\.tool_call_id='b' is not the id 'a'"):
        check_order([*before, second, first])
    with pytest.raises(PromptError, match=r"messages\[2\] is not the last result"):
        check_order([*before, first])
    with pytest.raises(PromptError, match=r"messages\[3\]\.role is 'assistant' where 'tool'"):
        check_order([*before, first, Message("assistant", "x"), Message("user", "y")])


@pytest.mark.parametrize(
    ("roles", "ending"),
    [
        (["user"], "question"),
        (["system", "user", "assistant", "user"], "question"),
        (["user", "assistant"], "answer"),
        ([], "history"),
        (["system"], "history"),
        (["system", "user", "assistant"], "history"),
    ],
)
def test_each_ending_accepts_its_own_conversations(roles: list[Any], ending: Ending) -> None:
    """And the other endings refuse them, but for an answer, which is a history too."""
    messages = [Message(role, "a") for role in roles]
    read_messages(messages, ends_with=ending)
    endings: list[Ending] = ["question", "answer", "history"]
    for other in endings:
        if other != ending and not (roles[-1:] == ["assistant"] and other != "question"):
            with pytest.raises(PromptError):
                read_messages(messages, ends_with=other)


def test_an_answer_with_calls_is_not_continued() -> None:
    """Its calls are complete, and what follows them is their result."""
    with pytest.raises(PromptError, match=r"messages\[1\]\.tool_calls are complete"):
        read_messages([USER, CALLING], ends_with="answer")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"role": "user", "tool_calls": [ToolCall(name="a", arguments={})]}, "tool_calls="),
        ({"role": "assistant", "tool_calls": [5]}, "must be a tuple of ToolCall"),
        ({"role": "assistant", "tool_calls": 5}, "must be a tuple of ToolCall"),
        ({"role": "assistant", "tool_call_id": "a"}, "belongs to a tool message"),
        ({"role": "tool", "tool_call_id": ""}, "tool_call_id=''"),
        ({"role": "user", "name": ""}, "name=''"),
    ],
)
def test_a_message_refuses_fields_of_another_role(fields: dict[str, Any], said: str) -> None:
    """Calls are the assistant's, an id of a call is a tool's."""
    with pytest.raises(PromptError, match=said):
        Message(content="a", **fields)


def test_messages_travel() -> None:
    """A message with calls can be pickled, copied, hashed, compared and printed."""
    call = ToolCall(name="add", arguments={"a": [1, {"b": None}]}, id="x")
    message = Message("assistant", "", tool_calls=[call])  # type: ignore[arg-type]  # a list too
    for twin in (pickle.loads(pickle.dumps(message)), copy.deepcopy(message), copy.copy(message)):
        assert twin == message
        assert hash(twin) == hash(message)
    assert message.tool_calls == (call,)
    assert repr(Message("user", "a")) == "Message(role='user', content='a')"
    assert eval(repr(message)) == message


def test_a_hundred_thousand_messages_are_read_quickly() -> None:
    """In time that grows with their number, as dictionaries and as messages."""
    dictionaries = [{"role": ("user", "assistant")[n % 2], "content": "a"} for n in range(100_001)]
    started = time.thread_time()
    messages = read_messages(dictionaries)
    read_messages(messages)
    assert time.thread_time() - started < 10  # 0.4 s without other work; not the clock on the wall
    assert len(messages) == 100_001


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["system", "user", "assistant", "tool", "developer"]) | JSON,
        "content": st.text() | JSON,
        "name": JSON,
        "tool_calls": st.lists(
            st.fixed_dictionaries(
                {},
                optional={
                    "id": JSON,
                    "type": st.just("function") | JSON,
                    "function": st.fixed_dictionaries(
                        {}, optional={"name": JSON, "arguments": JSON | JSON.map(json.dumps)}
                    )
                    | JSON,
                },
            )
        )
        | JSON,
        "tool_call_id": JSON,
        "x": JSON,
    },
)


@given(st.lists(FIELDS | JSON, max_size=4) | JSON)
def test_any_json_is_read_or_refused_by_a_typed_error(conversation: Any) -> None:
    """No other exception leaves `read_messages`, whatever a client sends."""
    try:
        read = read_messages(conversation)
    except Phi3OVError:
        return
    assert read[-1].role in ("user", "tool")
