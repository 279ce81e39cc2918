"""An application on a scripted engine, behind a real socket: what the tests of this folder use."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn

from phi3ov.answer.token_stream import TokenRequest
from phi3ov.model import Phi3Model
from phi3ov.runtime.limits import RequestLimits
from phi3ov.server import ServerSettings, create_app
from tests.unit.fakes import MINI, Answer, FakeEngine, Kit, answer_ids, make_artifact, make_model

NAME = "phi3"

Script = Iterable[Answer] | Callable[[TokenRequest], Answer]


def says(text: str, *, kit: Kit = MINI, **more: Any) -> Answer:
    """Return an answer of this text."""
    return Answer(token_ids=answer_ids(text, kit=kit), **more)


def always(text: str) -> Callable[[TokenRequest], Answer]:
    """Return a script that gives every request the same answer."""
    return lambda _request: says(text)


class Served:
    """A running server.

    Attributes:
        url: Its address.
        client: A client of it.
        engine: Its engine.
        app: The application.
    """

    def __init__(self, url: str, client: httpx.Client, engine: FakeEngine, app: Any) -> None:
        self.url = url
        self.client = client
        self.engine = engine
        self.app = app

    def post(self, path: str, body: Any, **more: Any) -> httpx.Response:
        """Send JSON."""
        return self.client.post(path, json=body, **more)

    def chat(self, content: str = "Hello", **fields: Any) -> httpx.Response:
        """Ask for a chat answer."""
        messages = [{"role": "user", "content": content}]
        return self.post("/v1/chat/completions", {"messages": messages} | fields)

    def metric(self, name: str) -> float:
        """Return the value of a metric."""
        for line in self.client.get("/metrics").text.splitlines():
            if line.startswith((f"{name} ", f"{name}{{")):
                return float(line.rpartition(" ")[2])
        return 0.0

    def is_idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        load = self.app.state.host.model.load
        return not load.running and not load.waiting and not self.app.state.host.running


@contextmanager
def listening(app: Any, **config: Any) -> Iterator[str]:
    """Serve an application on a thread; give its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="on", **config))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive())
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def serving(
    answers: Script,
    *,
    settings: ServerSettings = ServerSettings(model_name=NAME),  # noqa: B008
    limits: RequestLimits = RequestLimits(),  # noqa: B008
    kit: Kit = MINI,
    headers: dict[str, str] | None = None,
    context_tokens: int = 4096,
    kind: type[FakeEngine] = FakeEngine,
) -> Iterator[Served]:
    """Serve a scripted engine of a kind."""
    engine = kind(answers, limits=limits)
    artifact = make_artifact(checksums={"openvino_model.bin": "0" * 64, "tokenizer.json": "1" * 64})
    with make_model(engine, kit=kit, artifact=artifact, context_tokens=context_tokens) as model:
        give_fingerprint(model)
        app = create_app(model, settings=settings)
        with (
            listening(app) as url,
            httpx.Client(base_url=url, timeout=20, headers=headers) as client,
        ):
            yield Served(url, client, engine, app)


def give_fingerprint(model: Phi3Model) -> None:
    """Set what is otherwise read from the artifact's files, which the fake has not."""
    from phi3ov.artifact.fingerprint import ModelFingerprint

    model.__dict__["fingerprint"] = ModelFingerprint(
        weights="abcdef0123456789", tokenizer="1", chat_format="phi3"
    )


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)
