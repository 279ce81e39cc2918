"""The server on the worker engine: a killed child, leaving clients, equal answers, SIGTERM."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import phi3ov
from phi3ov.server import ServerSettings, create_app
from tests.engine.conftest import EXACT, Zoo
from tests.engine.truth import prompt_text
from tests.inside import child_of
from tests.unit.server.serving import listening, wait_until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kills with POSIX signals")

ROW = "phi-4"
PATH = "/v1/chat/completions"


class Running:
    """A model behind a server.

    Attributes:
        model: The model.
        client: A client of the server.
        url: The server's address.
        host: The application's host.
    """

    def __init__(self, model: phi3ov.Phi3Model, client: httpx.Client, url: str, host: Any) -> None:
        self.model, self.client, self.url, self.host = model, client, url, host

    def ask(self, seed: int = 0, **fields: Any) -> httpx.Response:
        """Ask for an answer."""
        return self.client.post(PATH, json=body(seed) | fields)

    def is_idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        load = self.model.load
        return not (load.running or load.waiting or self.host.running)

    def kill_engine(self) -> None:
        """Kill the worker as the out-of-memory killer does."""
        child = child_of(self.model)
        os.kill(child.process.pid, signal.SIGKILL)
        child.process.wait()


def body(seed: int = 0) -> dict[str, Any]:
    """Return a request of 20 words that differs with the seed."""
    return {"messages": [{"role": "user", "content": prompt_text(20, seed)}], "max_tokens": 16}


@pytest.fixture(scope="module")
def running(zoo: Zoo) -> Iterator[Running]:
    """A tiny model on the worker engine."""
    limits = phi3ov.RequestLimits(max_running=4, max_waiting=64)
    folder = zoo.artifact(ROW)
    with phi3ov.load_model(
        folder, engine="worker", device="CPU", config=EXACT, limits=limits
    ) as model:
        app = create_app(model, settings=ServerSettings(model_name="m"))
        with listening(app) as url, httpx.Client(base_url=url, timeout=60) as client:
            yield Running(model, client, url, app.state.host)


def test_sixteen_clients_get_the_answers_they_would_get_alone(running: Running) -> None:
    """Streamed or whole, side by side, none mixed with another."""
    answers: dict[int, str] = {}

    def ask(seed: int) -> None:
        response = running.ask(seed, stream=seed % 2 == 0)
        if seed % 2:
            answers[seed] = response.json()["choices"][0]["message"]["content"]
            return
        lines = [line[6:] for line in response.text.split("\n\n") if line.startswith("data: {")]
        answers[seed] = "".join(
            json.loads(line)["choices"][0]["delta"].get("content", "") for line in lines
        )

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(16):
        messages = [phi3ov.Message("user", prompt_text(20, seed))]
        assert answers[seed] == running.model.generate(messages, max_new_tokens=16).text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("tokens", [0, 1, 20])
def test_a_killed_engine_costs_one_error(running: Running, tokens: int, stream: bool) -> None:
    """While it reads the prompt, at the first token, in the middle; the next request works."""
    failed: list[httpx.Response] = []
    long = {"stream": stream, "max_tokens": 900}
    asking = threading.Thread(target=lambda: failed.append(running.ask(**long)))
    asking.start()
    wait_until(lambda: bool(running.host.running))
    if tokens:
        (answers,) = tuple(running.host.running)
        tokens_seen = answers.streams[0].token_streams[0]
        wait_until(lambda: len(tokens_seen.put_at) >= tokens)
    running.kill_engine()
    asking.join()
    (response,) = failed
    if response.status_code == 500:  # nothing was sent yet
        assert response.json()["error"]["code"] == "engine_crashed"
        assert response.headers["x-should-retry"] == "true"
    else:
        assert stream
        lines = [line for line in response.text.split("\n\n") if line]
        assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "engine_crashed"
        assert sum('"error"' in line for line in lines) == 1
    assert running.ask().status_code == 200
    wait_until(running.is_idle)


def test_an_engine_killed_between_requests_costs_nothing(running: Running) -> None:
    """Idle: the next request starts a new one, and both /health and the answer say so."""
    expected = running.ask(1).json()["choices"][0]["message"]["content"]
    running.kill_engine()
    wait_until(lambda: running.client.get("/health").json()["status"] == "restarting")
    assert running.ask(1).json()["choices"][0]["message"]["content"] == expected
    assert running.client.get("/health").status_code == 200


def test_a_killed_engine_costs_each_waiting_request_one_error(running: Running) -> None:
    """Four run and four wait: eight errors that may be retried, and nothing hangs."""
    failed: list[httpx.Response] = []
    threads = [
        threading.Thread(target=lambda seed=seed: failed.append(running.ask(seed, max_tokens=900)))
        for seed in range(8)
    ]
    for thread in threads:
        thread.start()
    wait_until(lambda: running.model.load.waiting == 4 and running.model.load.running == 4)
    running.kill_engine()
    for thread in threads:
        thread.join()
    assert [response.status_code for response in failed] == [500] * 8
    assert {response.json()["error"]["code"] for response in failed} == {"engine_crashed"}
    assert running.ask().status_code == 200
    wait_until(running.is_idle)


def test_sixteen_clients_that_leave_at_random_leave_nothing(running: Running) -> None:
    """Queued, reading or decoding, streamed or not: all free within a second of the last."""
    randomness = random.Random(5)
    host, _, port = running.url.removeprefix("http://").partition(":")

    def visit(seconds: float, fields: dict[str, Any]) -> None:
        content = json.dumps(fields).encode()
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            head = f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            head += f"content-length: {len(content)}\r\n\r\n"
            connection.sendall(head.encode() + content)
            time.sleep(seconds)

    threads = []
    for seed in range(16):
        fields = body(seed) | {"max_tokens": 900, "stream": randomness.random() < 0.5}
        threads.append(threading.Thread(target=visit, args=(randomness.random(), fields)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_until(running.is_idle, 1.0)
    assert running.ask().status_code == 200


def test_those_beyond_the_limit_wait_and_their_answers_say_how_long(running: Running) -> None:
    """Four run at once: of eight, four have waited for another's end, and four have not."""
    found: list[dict[str, float]] = []
    threads = [
        threading.Thread(
            target=lambda seed=seed: found.append(
                running.ask(seed, max_tokens=200).json()["timings"]
            )
        )
        for seed in range(8)
    ]
    for thread in threads:
        thread.start()
    wait_until(lambda: running.model.load.waiting == 4)
    for thread in threads:
        thread.join()
    queued = sorted(timings["queue_seconds"] for timings in found)
    soonest = min(timings["total_seconds"] for timings in found)
    assert queued[3] < soonest / 2
    assert queued[4] > soonest / 2
    assert all(timings["queue_seconds"] < timings["first_token_seconds"] for timings in found)


def test_an_evaluation_tool_can_ask_what_it_always_asks(running: Running) -> None:
    """Token ids with log-probabilities, temperature 0 and a seed."""
    ids = running.client.post("/tokenize", json={"prompt": prompt_text(9)}).json()["tokens"]
    fields = {"prompt": ids, "max_tokens": 4, "temperature": 0, "seed": 1234, "logprobs": 1}
    choice = running.client.post("/v1/completions", json=fields).json()["choices"][0]
    assert len(choice["logprobs"]["token_logprobs"]) == 4
    assert all(logprob <= 0 for logprob in choice["logprobs"]["token_logprobs"])


@pytest.fixture
def command(zoo: Zoo, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Run ``phi3ov serve`` as a process of its own; give it and its address."""
    log = tmp_path / "log"
    arguments = ["serve", str(zoo.artifact(ROW)), "--port", "0", "--drain-seconds", "20"]
    with log.open("wb") as said:
        process = subprocess.Popen([sys.executable, "-m", "phi3ov", *arguments], stderr=said)
    try:
        wait_until(lambda: b"Listening on " in log.read_bytes(), 60)
        found = re.search(r"Listening on (http://\S+)\.", log.read_text(encoding="utf-8"))
        assert found is not None
        yield process, found.group(1)
    finally:
        process.kill()
        process.wait()


def test_the_command_listens_at_once_and_finishes_what_has_begun(
    command: tuple[subprocess.Popen[bytes], str],
) -> None:
    """/health is there before the model; SIGTERM lets an answer end, and refuses new ones."""
    process, url = command
    assert httpx.get(f"{url}/health").json()["status"] == "loading"
    wait_until(lambda: httpx.get(f"{url}/health").json()["status"] == "ready", 60)
    answers: list[httpx.Response] = []
    fields = body() | {"max_tokens": 900}
    asking = threading.Thread(
        target=lambda: answers.append(httpx.post(f"{url}{PATH}", json=fields, timeout=60))
    )
    asking.start()

    def running() -> bool:
        return "phi3ov:num_requests_running 1.0" in httpx.get(f"{url}/metrics").text

    wait_until(running)
    process.terminate()
    wait_until(lambda: httpx.get(f"{url}/health").json()["status"] == "draining")
    refused = httpx.post(f"{url}{PATH}", json=body())
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "server_draining")
    asking.join()
    (choice,) = answers[0].json()["choices"]
    assert choice["finish_reason"] in ("stop", "length")
    assert "stopped_by" not in choice
    assert process.wait(20) in (0, -signal.SIGTERM)


def test_a_folder_that_is_no_export_ends_the_command_at_once(tmp_path: Path) -> None:
    """Exit code 1 and the reason, not a server that never gets ready."""
    arguments = [sys.executable, "-m", "phi3ov", "serve", str(tmp_path), "--port", "0"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert str(tmp_path) in done.stderr
    assert "Traceback" not in done.stderr


def test_an_open_address_without_a_key_is_refused(zoo: Zoo) -> None:
    """Before anything listens."""
    arguments = [
        sys.executable,
        "-m",
        "phi3ov",
        "serve",
        str(zoo.artifact(ROW)),
        "--host",
        "0.0.0.0",
    ]
    clean = {name: value for name, value in os.environ.items() if name != "PHI3OV_API_KEY"}
    done = subprocess.run(
        arguments, capture_output=True, text=True, timeout=60, check=False, env=clean
    )
    assert (done.returncode, "--no-auth" in done.stderr) == (1, True)
