"""Clients that leave, queues that are full, readers that are slow, and the end of the server."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import threading
import time
from functools import partial
from typing import Any

import httpx
import pytest

from phi3ov.runtime.limits import RequestLimits
from phi3ov.server import ServerSettings
from tests.unit.fakes import Answer, answer_ids

from .serving import NAME, Served, always, says, serving, wait_until

ENDLESS = Answer(token_ids=answer_ids("one two", stop=None), endless=True)
HELLO = [{"role": "user", "content": "Hello"}]


def open_request(served: Served, **fields: Any) -> socket.socket:
    """Send a request and return the open connection, its answer unread."""
    body = json.dumps({"messages": HELLO} | fields).encode()
    host, _, port = served.url.removeprefix("http://").partition(":")
    connection = socket.create_connection((host, int(port)), timeout=10)
    connection.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json"
        b"\r\ncontent-length: " + str(len(body)).encode() + b"\r\n\r\n" + body
    )
    return connection


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("state", ["queued", "reading", "generating"])
def test_a_client_that_leaves_frees_its_place(stream: bool, state: str) -> None:
    """In the queue, while the prompt is read, and between tokens; streamed or not."""
    gate = threading.Event()
    reading = Answer(token_ids=answer_ids("late"), gate=gate)
    answers = {"queued": ENDLESS, "reading": reading, "generating": ENDLESS}
    with serving([answers[state], says("fine"), says("fine")]) as served:
        first = open_request(served)
        wait_until(lambda: len(served.engine.requests) == 1)
        if state == "queued":
            second = open_request(served, stream=stream)
            wait_until(lambda: served.app.state.host.model.load.waiting == 1)
            second.close()
            wait_until(lambda: served.app.state.host.model.load.waiting == 0, 1.0)
        first.close()
        wait_until(served.is_idle, 1.0)
        assert served.chat().json()["choices"][0]["message"]["content"] == "fine"
        left = 2 if state == "queued" else 1
        assert served.metric("phi3ov:http_requests_client_disconnected_total") == left


def test_sixteen_clients_that_leave_at_random_leave_nothing() -> None:
    """Running and waiting are 0 within a second of the last one's leaving."""
    randomness = random.Random(3)
    limits = RequestLimits(max_waiting=64)
    with serving(lambda _request: ENDLESS, limits=limits) as served:

        def visit(seconds: float, stream: bool) -> None:
            connection = open_request(served, stream=stream)
            time.sleep(seconds)
            connection.close()

        threads = [
            threading.Thread(target=visit, args=(randomness.random(), randomness.random() < 0.5))
            for _ in range(16)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wait_until(served.is_idle, 1.0)


def test_a_full_queue_is_exact_and_says_when_to_come_back() -> None:
    """With 1 running and 4 waiting, 12 requests at once are 5 answers and 7 times 429."""
    gate = threading.Event()
    slow = Answer(token_ids=answer_ids("fine"), gate=gate)
    with serving(lambda _request: slow, limits=RequestLimits(max_waiting=4)) as served:
        opened = [open_request(served) for _ in range(12)]
        wait_until(lambda: served.metric("phi3ov:num_requests_waiting") == 4)
        statuses = []

        def read(connection: socket.socket) -> None:
            statuses.append(connection.recv(100).split(b" ")[1])

        readers = [threading.Thread(target=read, args=(each,)) for each in opened]
        for reader in readers:
            reader.start()
        wait_until(lambda: len(statuses) == 7)
        refused = served.chat()
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
        assert int(refused.headers["retry-after"]) >= 1
        gate.set()
        for reader in readers:
            reader.join()
        for connection in opened:
            connection.close()
        assert sorted(statuses) == [b"200"] * 5 + [b"429"] * 7


def test_retry_after_is_measured() -> None:
    """The number follows the durations of the last answers and the length of the queue."""
    with serving(always("fine")) as served:
        host = served.app.state.host
        assert host.retry_after_seconds() == 1
        for _ in range(5):
            host.note_duration(7.4)
        assert host.retry_after_seconds() == 8
        host.note_duration(10**6)
        assert host.retry_after_seconds() == 8  # one slow answer does not change the median
        for _ in range(64):
            host.note_duration(10**6)
        assert host.retry_after_seconds() == 60


def test_a_slow_reader_blocks_no_other() -> None:
    """A client that reads nothing is disconnected, and meanwhile others are answered."""
    long = Answer(token_ids=(*answer_ids("word " * 800, stop=None), *answer_ids("")))
    settings = ServerSettings(model_name=NAME, write_timeout_seconds=0.5)
    with serving(lambda _request: long, settings=settings) as served:
        slow = [open_request(served, stream=True, logprobs=False) for _ in range(4)]
        started = time.monotonic()
        assert served.chat(max_tokens=5).status_code == 200
        assert time.monotonic() - started < 5
        wait_until(served.is_idle, 5)
        for connection in slow:
            connection.close()


def test_draining_finishes_what_has_begun_and_refuses_the_rest() -> None:
    """New requests and /health are 503; what runs goes on until the limit, then keeps its text."""
    gate = threading.Event()
    short = Answer(token_ids=answer_ids("fine"), gate=gate)
    with serving([short, ENDLESS]) as served:
        host = served.app.state.host
        answers: list[httpx.Response] = []

        def ask(**fields: Any) -> threading.Thread:
            thread = threading.Thread(target=lambda: answers.append(served.chat(**fields)))
            thread.start()
            return thread

        first = ask()
        wait_until(lambda: len(served.engine.requests) == 1)
        second = ask()
        wait_until(lambda: host.model.load.waiting == 1)
        draining = threading.Thread(target=lambda: asyncio.run(host.drain(1.0)))
        draining.start()
        wait_until(lambda: host.state == "draining")
        health = httpx.get(f"{served.url}/health")
        assert (health.status_code, health.json()["status"]) == (503, "draining")
        refused = httpx.post(
            f"{served.url}/v1/chat/completions", json={"messages": HELLO}, timeout=5
        )
        assert refused.json()["error"]["code"] == "server_draining"
        gate.set()
        for thread in (first, draining, second):
            thread.join()
        assert [answer.status_code for answer in answers] == [200, 200], answers[-1].text
        texts = [answer.json()["choices"][0] for answer in answers]
        assert texts[0]["message"]["content"] == "fine"
        assert texts[1]["stopped_by"] == "shutdown"
        assert texts[1]["message"]["content"].startswith("one")


def test_a_request_that_is_encoded_when_its_client_leaves_is_cancelled() -> None:
    """No answer is left without an owner."""
    with serving(lambda _request: ENDLESS) as served:
        text = "word " * 700
        for _ in range(8):
            open_request(served, messages=[{"role": "user", "content": text}]).close()
        time.sleep(0.1)
        wait_until(served.is_idle, 2.0)


def test_the_time_in_the_queue_is_told_from_the_time_of_reading() -> None:
    """In the answer's timings and in the metrics: the second waits, and the first does not."""
    gate = threading.Event()
    slow = Answer(token_ids=answer_ids("fine"), gate=gate)
    with serving([slow, says("fine")]) as served:
        answers: list[dict[str, Any]] = []
        threads = []

        def waits(count: int) -> bool:
            return bool(served.app.state.host.model.load.waiting == count)

        for waiting in (0, 1):
            thread = threading.Thread(target=lambda: answers.append(served.chat().json()))
            thread.start()
            threads.append(thread)
            wait_until(partial(waits, waiting))
            wait_until(lambda: len(served.engine.requests) == 1)
        time.sleep(0.3)
        gate.set()
        for thread in threads:
            thread.join()
        first, second = sorted(
            (answer["timings"] for answer in answers), key=lambda t: t["queue_seconds"]
        )
        assert first["queue_seconds"] < 0.2
        assert first["first_token_seconds"] >= 0.3
        assert 0.3 <= second["queue_seconds"] <= second["first_token_seconds"]
        assert served.metric("phi3ov:request_queue_time_seconds_count") == 2
        assert served.metric("phi3ov:request_queue_time_seconds_sum") == pytest.approx(
            first["queue_seconds"] + second["queue_seconds"], abs=0.01
        )
        assert served.metric("phi3ov:request_prefill_time_seconds_sum") >= 0.3
