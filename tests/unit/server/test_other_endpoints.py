"""Completions, responses, models, tokens, health, metrics and the page, on a scripted engine."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from phi3ov.errors import ArtifactError
from phi3ov.model import Phi3Model
from phi3ov.server import ServerSettings, create_app
from tests.unit.fakes import MINI, FakeEngine, answer_ids, make_model

from ..test_reasoning import MINI as REASONING
from .serving import NAME, Served, always, give_fingerprint, listening, says, serving, wait_until


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """A server that always says the same."""
    with serving(always("one two three")) as running:
        yield running


def complete(served: Served, **fields: Any) -> httpx.Response:
    """Ask for a completion."""
    return served.post("/v1/completions", fields)


def test_a_completion_continues_text_as_text(served: Served) -> None:
    """The prompt is encoded without a template, and its control tokens are text."""
    body = complete(served, prompt="a<|end|>b", max_tokens=5).json()
    assert body["object"] == "text_completion"
    assert served.engine.requests[-1].prompt_ids == tuple(MINI.chat.encode_text("a<|end|>b"))
    assert served.engine.requests[-1].max_new_tokens == 5
    complete(served, prompt="a")
    assert served.engine.requests[-1].max_new_tokens == 16


def test_a_server_may_honour_control_tokens() -> None:
    """Only where its owner says so."""
    settings = ServerSettings(model_name=NAME, allow_control_tokens=True)
    with serving(always("x"), settings=settings) as served:
        complete(served, prompt="<|user|>a<|end|>")
        assert served.engine.requests[-1].prompt_ids == tuple(
            MINI.chat.encode_raw("<|user|>a<|end|>")
        )


def test_completions_take_every_kind_of_prompt(served: Served) -> None:
    """Text, a list of texts, ids, a list of ids; each prompt has its choices in order."""
    ids = MINI.chat.encode_text("a b")
    for prompt, count in (("a b", 1), (["a b", "c"], 2), (ids, 1), ([ids, ids], 2)):
        body = complete(served, prompt=prompt, max_tokens=20).json()
        assert [choice["text"] for choice in body["choices"]] == ["one two three"] * count
    body = complete(served, prompt=["a", "b"], n=2, temperature=1, max_tokens=20).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert body["usage"]["prompt_tokens"] == 2 * len(MINI.chat.encode_text("a"))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [10**9]}, None),
        ({"prompt": "a", "best_of": 2}, "best_of"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "logprobs": 5}, "logprobs"),
        ({"prompt": "a", "logprobs": 1, "echo": True}, "echo"),
        ({"prompt": "a", "logprobs": 1, "echo": True, "max_tokens": 0}, "echo"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
    ],
)
def test_completions_refuse_by_field(
    served: Served, fields: dict[str, Any], param: str | None
) -> None:
    """What cannot be honoured is a 400."""
    response = complete(served, **fields)
    assert response.status_code == 400
    assert param is None or response.json()["error"]["param"] == param


def test_completions_echo_and_stream(served: Served) -> None:
    """The prompt comes before the text, in a stream as well."""
    fields: dict[str, Any] = {"prompt": "Say: ", "echo": True, "max_tokens": 20}
    assert complete(served, **fields).json()["choices"][0]["text"] == "Say: one two three"
    stream = complete(served, **fields, stream=True, stream_options={"include_usage": True}).text
    chunks = [json.loads(line[6:]) for line in stream.split("\n\n") if line.startswith("data: {")]
    texts = [chunk["choices"][0]["text"] for chunk in chunks if chunk["choices"]]
    assert "".join(texts) == "Say: one two three"
    assert chunks[-1]["usage"]["completion_tokens"] == len(answer_ids("one two three"))


def respond(served: Served, **fields: Any) -> httpx.Response:
    """Ask for a response."""
    return served.post("/v1/responses", fields)


def test_a_response_without_storage(served: Served) -> None:
    """Text or items in, one message out, and nothing is stored."""
    body = respond(served, input="Hello", instructions="Be brief.", metadata={"a": "b"}).json()
    assert (body["object"], body["status"], body["store"]) == ("response", "completed", False)
    assert body["output"][0]["content"][0]["text"] == "one two three"
    assert body["metadata"] == {"a": "b"}
    asked = served.engine.requests[-1].prompt_ids
    items = [
        {"role": "developer", "content": "Be brief."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello"}]},
    ]
    respond(served, input=items)
    assert served.engine.requests[-1].prompt_ids == asked


@pytest.mark.parametrize("tokens", [64, 20])
def test_thoughts_are_an_item_of_a_response(tokens: int) -> None:
    """Before the message, whole and streamed alike; cut off within them, there is no message."""
    text = "<think>one two three four five six seven</think>the answer"
    ids = answer_ids(text, kit=REASONING)
    thoughts = len(answer_ids(text.partition("</think>")[0] + "</think>", kit=REASONING)) - 1
    with serving(lambda _request: says(text, kit=REASONING), kit=REASONING) as served:
        body = respond(served, input="Hello", max_output_tokens=tokens).json()
        stream = respond(served, input="Hello", max_output_tokens=tokens, stream=True).text
    payloads = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
    reasoning, *others = body["output"]
    assert (reasoning["type"], reasoning["summary"]) == ("reasoning", [])
    if tokens > len(ids):
        assert reasoning["content"][0]["text"] == "one two three four five six seven"
        assert (reasoning["status"], body["status"]) == ("completed", "completed")
        assert others[0]["content"][0]["text"] == "the answer"
        assert body["usage"]["output_tokens_details"]["reasoning_tokens"] == thoughts
    else:
        assert (reasoning["status"], body["status"], others) == ("incomplete", "incomplete", [])
        assert body["usage"]["output_tokens_details"]["reasoning_tokens"] == tokens
    deltas = [item["delta"] for item in payloads if item["type"] == "response.reasoning_text.delta"]
    assert "".join(deltas) == reasoning["content"][0]["text"]
    done = [item["item"] for item in payloads if item["type"] == "response.output_item.done"]
    assert [item["type"] for item in done] == [item["type"] for item in body["output"]]
    assert [item.get("content") for item in done] == [item["content"] for item in body["output"]]
    added = [item for item in payloads if item["type"] == "response.output_item.added"]
    assert [item["output_index"] for item in added] == list(range(len(body["output"])))
    final = payloads[-1]["response"]["output"]
    assert [item["content"] for item in final] == [item["content"] for item in body["output"]]


def test_a_response_streams_typed_events(served: Served) -> None:
    """Event names equal the types, numbers follow each other, and the last holds the response."""
    text = respond(served, input="Hello", stream=True).text
    frames = [frame.split("\n") for frame in text.split("\n\n") if frame]
    payloads = [json.loads(data.removeprefix("data: ")) for _, data in frames]
    assert [name.removeprefix("event: ") for name, _ in frames] == [
        payload["type"] for payload in payloads
    ]
    assert [payload["sequence_number"] for payload in payloads] == list(range(len(payloads)))
    deltas = [item["delta"] for item in payloads if item["type"] == "response.output_text.delta"]
    assert "".join(deltas) == "one two three"
    assert payloads[-1]["type"] == "response.completed"
    assert payloads[-1]["response"]["output"][0]["content"][0]["text"] == "one two three"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": "a", "previous_response_id": "r"}, "previous_response_id"),
        ({"input": "a", "store": True}, "store"),
        ({"input": [{"type": "input_image"}]}, "input[0].type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0]",
        ),
        ({"input": "a", "truncation": "auto"}, "truncation"),
        ({"input": "a", "background": True}, "background"),
    ],
)
def test_responses_refuse_by_field(served: Served, fields: dict[str, Any], param: str) -> None:
    """What needs storage or another kind of model is a 400."""
    response = respond(served, **fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_models(served: Served) -> None:
    """The one model, in the list and by name; another name is a 404."""
    (model,) = served.client.get("/v1/models").json()["data"]
    assert (model["id"], model["object"], model["max_model_len"]) == (NAME, "model", 4096)
    assert served.client.get(f"/v1/models/{NAME}").json() == model
    response = served.client.get("/v1/models/other")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")


def test_tokens_there_and_back(served: Served) -> None:
    """Text and conversations to ids, and ids to text."""
    ids = served.post("/tokenize", {"prompt": "one two"}).json()
    assert ids == {"count": len(ids["tokens"]), "max_model_len": 4096, "tokens": ids["tokens"]}
    assert served.post("/detokenize", {"tokens": ids["tokens"]}).json() == {"prompt": "one two"}
    messages = [{"role": "user", "content": "Hello"}]
    served.chat()
    counted = served.post("/tokenize", {"messages": messages}).json()["tokens"]
    assert tuple(counted) == served.engine.requests[-1].prompt_ids
    assert served.post("/tokenize", {}).status_code == 400
    assert served.post("/detokenize", {"tokens": [-1]}).status_code == 400


def test_unknown_paths_and_methods_are_errors_in_the_same_shape(served: Served) -> None:
    """Also what the router itself refuses."""
    for response, status in (
        (served.client.get("/v2/nothing"), 404),
        (served.client.get("/v1/chat/completions"), 405),
        (served.client.post("/v1/chat/completions", content="{}"), 415),
    ):
        assert response.status_code == status
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_metrics_count_tokens_under_the_known_names(served: Served) -> None:
    """Dashboards made for vLLM find their names."""
    before = served.metric("phi3ov:generation_tokens_total")
    served.chat()
    after = served.metric("phi3ov:generation_tokens_total")
    assert after - before == len(answer_ids("one two three"))
    text = served.client.get("/metrics").text
    for name in (
        "num_requests_running",
        "num_requests_waiting",
        "prompt_tokens_total",
        "prefix_cache_hits_total",
        'request_success_total{finished_reason="stop"}',
        "time_to_first_token_seconds_bucket",
        "inter_token_latency_seconds_bucket",
        "e2e_request_latency_seconds_bucket",
    ):
        assert f"phi3ov:{name}" in text


def test_two_applications_in_one_process_count_apart() -> None:
    """Each has a registry of its own."""
    with serving(always("x")) as first, serving(always("x")) as second:
        first.chat()
        name = "phi3ov:request_success_total"
        assert (first.metric(name), second.metric(name)) == (1, 0)


def test_the_page_is_self_contained_and_may_run_nothing_else(served: Served) -> None:
    """No address outside, no inline handler; the policy allows its own script and style alone."""
    response = served.client.get("/")
    page = response.text
    assert response.headers["content-type"].startswith("text/html")
    assert not re.findall(r"""(?:src|href)=["'](?!data:,)""", page)
    assert "http://" not in page
    assert "https://" not in page
    assert not re.findall(r"\son\w+=", page)
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert policy.count("'sha256-") == 2
    assert '<html lang="en">' in page
    assert 'name="viewport"' in page
    for name in re.findall(r'<(?:textarea|input)[^>]* id="(\w+)"', page):
        wrapped = re.search(rf'<label[^>]*>[^<]+<(?:textarea|input)[^>]* id="{name}"', page)
        assert wrapped or f'<label for="{name}"' in page, name


def test_a_model_that_loads_is_said_and_requests_wait_for_it() -> None:
    """The server listens at once: 503 with Retry-After until the model is there."""
    may_load = threading.Event()
    made: list[Phi3Model] = []

    def load() -> Phi3Model:
        may_load.wait(10)
        model = make_model(FakeEngine(always("x")))
        give_fingerprint(model)
        made.append(model)
        return model

    with listening(create_app(Path("folder"), load=load)) as url:
        with httpx.Client(base_url=url, timeout=10) as client:
            health = client.get("/health")
            assert (health.status_code, health.json()["status"]) == (503, "loading")
            body = {"messages": [{"role": "user", "content": "a"}]}
            refused = client.post("/v1/chat/completions", json=body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_loading")
            assert "retry-after" in refused.headers
            may_load.set()
            wait_until(lambda: client.get("/health").status_code == 200)
            assert client.post("/v1/chat/completions", json=body).status_code == 200
            assert client.get("/v1/models").json()["data"][0]["id"] == "folder"
    assert made[0].state == "closed"  # who loads it closes it


def test_a_model_that_cannot_be_loaded_is_said() -> None:
    """/health says failed, and requests are 503."""

    def load() -> Phi3Model:
        raise ArtifactError("broken")

    app = create_app("folder", load=load)
    with listening(app) as url, httpx.Client(base_url=url) as client:
        wait_until(lambda: client.get("/health").json()["status"] == "failed")
        body = {"messages": [{"role": "user", "content": "a"}]}
        response = client.post("/v1/chat/completions", json=body)
        assert (response.status_code, response.json()["error"]["code"]) == (503, "model_failed")
    assert isinstance(app.state.host.failure, ArtifactError)
