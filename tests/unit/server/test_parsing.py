"""Bytes to typed requests: whatever comes in, the answer is a request or a named 4xx."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phi3ov.server.chat import ChatExchange
from phi3ov.server.completions import CompletionExchange
from phi3ov.server.errors import ApiError
from phi3ov.server.fields import ENDPOINTS, Endpoint
from phi3ov.server.parsing import parse_request
from phi3ov.server.responses import ResponsesExchange
from phi3ov.server.schemas import ChatRequest, CompletionRequest, ResponsesRequest
from phi3ov.server.settings import ServerSettings

from .serving import says, serving

SETTINGS = ServerSettings()
HELLO = [{"role": "user", "content": "Hello"}]


def refused(body: bytes | dict[str, Any], **settings: Any) -> ApiError:
    """Return why a chat request is refused."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(ApiError) as caught:
        parse_request(data, "chat", ChatRequest, ServerSettings(**settings))
    return caught.value


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": "Hello"}, "messages"),
        ({"messages": HELLO, "max_tokens": "5"}, "max_tokens"),
        ({"messages": HELLO, "max_tokens": 5.5}, "max_tokens"),
        ({"messages": HELLO, "stream": 1}, "stream"),
        ({"messages": HELLO, "stop": ["a", 1]}, "stop[1]"),
        ({"messages": HELLO, "stream_options": {"usage": True}}, "stream_options.usage"),
        ({"messages": HELLO, "response_format": {"type": "xml"}}, "response_format.type"),
        ({"messages": HELLO, "n": True}, "n"),
        ({}, "messages"),
    ],
)
def test_a_wrong_type_names_the_field(fields: dict[str, Any], param: str) -> None:
    """Nothing is coerced, and the error names the place within the request."""
    error = refused(fields)
    assert (error.status, error.param) == (400, param)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"5", b'{"messages": NaN}', b'{"a": "\\ud800"}', b"\xff", b'{"a": 1e999}'],
)
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    """Broken JSON, other encodings and numbers that JSON has not are 400."""
    assert (refused(body).status, refused(body).code) == (400, "invalid_json")


@pytest.mark.parametrize("depth", [100, 5000, 500_000])
def test_deep_nesting_is_refused(depth: int) -> None:
    """However deep, it ends in an error with a code, not in a recursion error."""
    body = b'{"messages": ' + b"[" * depth + b"]" * depth + b"}"
    assert refused(body).code == "too_deep"


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
NAMES = st.sampled_from(
    ["messages", "n", "stop", "tools", "tool_choice", "response_format", "stream_options"]
)


@given(st.dictionaries(NAMES | st.text(max_size=8), JSON_VALUES, max_size=6))
def test_any_json_object_is_a_request_or_a_named_error(fields: dict[str, Any]) -> None:
    """No body reaches an error that has no code."""
    body = json.dumps(fields).encode("utf-8", "surrogatepass")
    with suppress(ApiError):
        parsed = parse_request(body, "chat", ChatRequest, SETTINGS)
        ChatExchange(parsed.request, SETTINGS)


GOOD: list[tuple[bytes, Endpoint]] = [
    (
        b'{"model":"phi3","messages":[{"role":"user","content":"Hi"}],"n":2,"temperature":1,"stop":["a"]}',
        "chat",
    ),
    (b'{"messages":[{"role":"user","content":"Hi"}],"stream":true,"seed":7}', "chat"),
    (b'{"prompt":["a","b"],"max_tokens":3,"logprobs":1,"echo":false}', "completions"),
    (
        b'{"input":[{"role":"user","content":[{"type":"input_text","text":"a"}]}],'
        b'"text":{"format":{"type":"json_schema","name":"x","schema":{}}}}',
        "responses",
    ),
]


def damaged_bodies(count: int) -> Iterator[tuple[bytes, Endpoint]]:
    """Yield good requests with a few bytes changed, left out or put in at random."""
    randomness = random.Random(1)
    for _ in range(count):
        body, endpoint = randomness.choice(GOOD)
        damaged = bytearray(body)
        for _ in range(randomness.randint(1, 2)):
            place = randomness.randrange(len(damaged))
            action = randomness.random()
            if action < 0.4:
                damaged[place] = randomness.randrange(256)
            elif action < 0.7:
                del damaged[place]
            else:
                damaged[place:place] = randomness.choice([b"null", b"[", b"}", b'"', b"1e9", b"-"])
        yield bytes(damaged), endpoint


def test_ten_thousand_damaged_bodies_are_requests_or_named_errors() -> None:
    """Every one is read or refused with an `ApiError`."""
    kinds: dict[Endpoint, tuple[Any, Any]] = {
        "chat": (ChatRequest, ChatExchange),
        "completions": (CompletionRequest, CompletionExchange),
        "responses": (ResponsesRequest, ResponsesExchange),
    }
    read = 0
    for body, endpoint in damaged_bodies(10_000):
        kind, exchange = kinds[endpoint]
        with suppress(ApiError):
            parsed = parse_request(body, endpoint, kind, SETTINGS)
            exchange(parsed.request, SETTINGS)
            read += 1
    assert read > 100  # some damage only changes a letter of a text


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ten_thousand_damaged_bodies_give_no_500() -> None:
    """Sent to a server on one connection: each is answered, none with an error of the server."""
    statuses: Counter[int] = Counter()
    with serving(lambda asked: says("{}" if asked.grammar else "one two")) as served:
        for body, endpoint in damaged_bodies(10_000):
            answer = served.client.post(
                ENDPOINTS[endpoint], content=body, headers={"content-type": "application/json"}
            )
            statuses[answer.status_code] += 1
            if answer.status_code != 200:
                assert answer.json()["error"]["code"], body
            assert '"internal_error"' not in answer.text, body
        assert served.is_idle()
    assert set(statuses) <= {200, 400, 404}, statuses
    assert min(statuses[200], statuses[400]) > 100
