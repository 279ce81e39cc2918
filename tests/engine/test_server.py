"""The examples of servers, served for real: sixteen clients at once, and one that goes away."""

from __future__ import annotations

import asyncio
import importlib.util
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

import phi3ov
from phi3ov.runtime.limits import RequestLoad
from tests.inside import child_of

from .conftest import EXACT, Zoo
from .test_worker import wait_until
from .truth import prompt_text

EXAMPLES = Path(__file__).parents[2] / "examples"
ROW = "phi-4"


@pytest.fixture
def app(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example's application, on an exact model."""
    return application("fastapi_server", zoo, monkeypatch)


@pytest.fixture
def mounted(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The application that mounts the whole server, on an exact model."""
    return application("mounted_server", zoo, monkeypatch)


def application(name: str, zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import an example and return its application."""
    load_model = phi3ov.load_model

    def load_exact(path: str, **options: Any) -> phi3ov.Phi3Model:
        return load_model(path, device="CPU", config=EXACT, **options)

    monkeypatch.setenv("PHI3OV_MODEL", str(zoo.artifact(ROW)))
    monkeypatch.setattr(phi3ov, "load_model", load_exact)
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, name, module)
    spec.loader.exec_module(module)
    return module.app


@contextmanager
def serve(app: Any) -> Iterator[str]:
    """Serve ``app`` on a thread with an event loop of its own; give its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="on"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive())
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def conversation(question: str) -> list[dict[str, str]]:
    """Return the messages that a client with a past sends."""
    return [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Good day."},
        {"role": "user", "content": question},
    ]


def test_sixteen_clients_get_the_answers_they_would_get_alone(app: Any) -> None:
    """Streamed side by side, none mixed with another; a question that cannot be is refused."""
    questions = [prompt_text(20 + seed, seed) for seed in range(16)]

    async def ask(client: httpx.AsyncClient, url: str, question: str) -> str:
        body = {"messages": conversation(question), "max_new_tokens": 16}
        async with client.stream("POST", url, json=body) as response:
            assert response.status_code == 200
            return "".join([text async for text in response.aiter_text()])

    async def ask_all(url: str) -> list[str]:
        async with httpx.AsyncClient(timeout=60) as client:
            refused = await client.post(
                url, json={"messages": conversation("a"), "max_new_tokens": 10**6}
            )
            assert (refused.status_code, "context_tokens" in refused.text) == (422, True)
            return await asyncio.gather(*(ask(client, url, question) for question in questions))

    with serve(app) as address:
        answers = asyncio.run(ask_all(f"{address}/chat"))
        model = app.state.model
        for question, answer in zip(questions, answers, strict=True):
            *past, _ = conversation(question)
            chat = phi3ov.Phi3Chat(model, messages=past)
            assert answer == chat.generate(question, max_new_tokens=16).text


def test_a_client_that_goes_away_ends_its_answer(app: Any) -> None:
    """The engine is free again long before the answer would have ended."""
    with serve(app) as address:
        child = child_of(app.state.model)
        body = {"messages": conversation(prompt_text(20)), "max_new_tokens": 900}
        with httpx.stream("POST", f"{address}/chat", json=body, timeout=60) as response:
            next(response.iter_text())
            (stream,) = child.streams.values()
        wait_until(
            lambda: app.state.model.load == RequestLoad(running=0, waiting=0, waiting_tokens=0)
        )
        assert stream.cancelled
        assert app.state.model.complete("a", max_new_tokens=2).finish_reason == "length"


def test_a_mounted_server_answers_beside_the_applications_routes(mounted: Any) -> None:
    """Under its prefix: answers, streams, the page, and errors; the model is one and the same."""
    question = {"role": "user", "content": prompt_text(20)}
    body = {"messages": [question], "max_tokens": 8}
    with serve(mounted) as address, httpx.Client(base_url=address, timeout=60) as client:
        answer = client.post("/llm/v1/chat/completions", json=body).json()
        expected = mounted.state.model.generate([question], max_new_tokens=8).text
        assert answer["choices"][0]["message"]["content"] == expected
        stream = client.post("/llm/v1/chat/completions", json=body | {"stream": True}).text
        assert stream.endswith("data: [DONE]\n\n")
        assert client.get("/load").json() == {"running": 0, "waiting": 0}
        assert client.get("/llm/health").json() == {"status": "ready"}
        assert client.get("/llm/").headers["content-type"].startswith("text/html")
        refused = client.post("/llm/v1/chat/completions", json=body | {"max_tokens": 513})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "max_tokens")
