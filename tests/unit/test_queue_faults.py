"""Queues and streams under cancelling, signals, Ctrl-C and forks."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
import weakref
from types import FrameType
from typing import Any

import pytest

from phi3ov import Phi3Chat, QueueFullError, RequestLimits, StateError
from phi3ov.answer.stream import ReplyStream
from phi3ov.answer.token_stream import TokenRequest, TokenStream

from .fakes import Answer, FakeEngine, answer_ids, make_model

HELLO = answer_ids("hello the user")


def request_of(number: int, tokens: int = 1) -> TokenRequest:
    """Return a request whose prompt begins with a number."""
    return TokenRequest(prompt_ids=(number,) * tokens, max_new_tokens=50, stop_ids=frozenset({-1}))


def test_cancelled_requests_do_not_pile_up_behind_a_long_answer() -> None:
    """Clients that connect and leave while one answer runs hold no memory and no place."""
    engine = FakeEngine(lambda _request: Answer([7], endless=True), RequestLimits(max_waiting=2))
    running = engine.submit(request_of(0))
    left: list[weakref.ref[TokenStream]] = []
    for number in range(5000):
        stream = engine.submit(request_of(number))
        stream.cancel()
        left.append(weakref.ref(stream))
    del stream
    engine.submit(request_of(1)).cancel()
    assert engine.load.waiting == 0
    gc.collect()
    assert sum(ref() is not None for ref in left) == 0
    running.cancel()
    engine.close()


def test_prompt_tokens_bound_the_queue_as_well() -> None:
    """A long prompt is refused where it would wait, and taken where nothing runs."""
    gate = threading.Event()
    limits = RequestLimits(max_waiting_tokens=100)
    engine = FakeEngine(lambda _request: Answer([7], gate=gate), limits)
    first = engine.submit(request_of(0, tokens=500))  # nothing runs: it does not wait
    while engine.load.running == 0:
        time.sleep(0.001)
    waiting = engine.submit(request_of(1, tokens=60))
    assert (engine.load.running, engine.load.waiting, engine.load.waiting_tokens) == (1, 1, 60)
    with pytest.raises(QueueFullError, match=r"^60 prompt tokens of 2 requests .*waiting_tokens="):
        engine.submit(request_of(2, tokens=41))
    also = engine.submit(request_of(3, tokens=40))
    waiting.cancel()
    assert engine.load.waiting_tokens == 40
    gate.set()
    assert [list(stream) for stream in (first, waiting, also)] == [[[7]], [], [[7]]]
    engine.close()


def test_candidates_enter_an_idle_model_together() -> None:
    """One call is one request to the queue, however many candidates it draws."""
    gate = threading.Event()
    engine = FakeEngine(lambda _request: Answer(HELLO, gate=gate), RequestLimits(max_waiting=2))
    with make_model(engine) as model:
        stream = Phi3Chat(model).stream("hi", temperature=1.0, candidates=8)
        with pytest.raises(QueueFullError):
            Phi3Chat(model).stream("hi")
        gate.set()
        assert len(stream.drain().candidates) == 8
        assert [len(list(candidate)) for candidate in stream.candidates] == [0] * 8


def test_candidates_can_be_read_as_streams_of_their_own() -> None:
    """Each has its text and its reply; together they are the whole stream's."""
    engine = FakeEngine(lambda _request: Answer(HELLO))
    with make_model(engine) as model:
        stream = model.stream(
            [{"role": "user", "content": "hi"}], temperature=1.0, candidates=3, seed=5
        )
        texts = ["".join(candidate) for candidate in stream.candidates]
        assert texts == ["hello the user"] * 3
        assert stream.drain().candidates == tuple(each.reply for each in stream.candidates)
        assert [each.reply.seed for each in stream.candidates] == [5, 6, 7]


def test_looking_at_a_stream_changes_nothing() -> None:
    """``cancelled`` and ``timed_out`` are read by engines under their locks."""
    stream = TokenStream(request_of(1), timeout_seconds=0.001)
    calls: list[str] = []
    stream.add_listener(lambda: calls.append("chunk"))
    stream.add_listener(lambda: calls.append("end"), only_end=True)
    time.sleep(0.01)
    assert stream.cancelled
    assert stream.remaining_seconds == 0
    assert not stream.timed_out
    assert calls == []
    stream.expire()
    assert stream.timed_out
    assert calls == ["chunk", "end"]


def test_a_chunk_that_an_interrupt_swallowed_does_not_hang_the_reader(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ctrl-C may come after the queue has given a chunk and before the reader has it."""
    stream = TokenStream(request_of(1))
    stream.put([5])
    stream.end()
    take = stream._next_chunk

    def interrupted(wait_seconds: float) -> Any:
        take(wait_seconds)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(stream, "_next_chunk", interrupted)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                stream.read()
    assert stream.read() is None


@pytest.mark.parametrize("deed", ["wait_for_end", "read", "put", "end", "cancel"])
def test_a_signal_handler_may_cancel_at_any_moment(deed: str) -> None:
    """Python runs a handler between any two lines; each of them cancels the stream here.

    A lock that is not reentrant would be taken twice by one thread, and the test would not end.
    """
    stream = TokenStream(request_of(1), timeout_seconds=0.05)
    at_work, signals = False, 0

    def handler(_frame: FrameType, _event: str, _argument: object) -> Any:
        nonlocal at_work, signals
        if not at_work and signals < 200:  # each wakes the reader once more
            at_work, signals = True, signals + 1
            stream.cancel()
            at_work = False
        return handler

    arguments = {"put": ([1],)}.get(deed, ())
    former = sys.gettrace()
    sys.settrace(handler)
    try:
        getattr(stream, deed)(*arguments)
    finally:
        sys.settrace(former)
    assert stream.cancelled


def test_ctrl_c_after_the_stream_was_made_leaves_the_chat_usable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The caller gets the KeyboardInterrupt, and the turn is given back once."""
    on_end = ReplyStream.on_end

    def interrupt(stream: ReplyStream, call: Any) -> None:
        on_end(stream, call)
        raise KeyboardInterrupt

    engine = FakeEngine(lambda _request: Answer(HELLO))
    with make_model(engine) as model:
        chat = Phi3Chat(model)
        with monkeypatch.context() as patched:
            patched.setattr(ReplyStream, "on_end", interrupt)
            with pytest.raises(KeyboardInterrupt):
                chat.stream("hi")
        gc.collect()
        assert chat.messages == ()
        assert chat.generate("hi").text == "hello the user"


def test_a_forked_child_is_told_at_once() -> None:
    """The model's threads do not exist there: without the check a request would wait for ever."""
    if sys.platform == "win32":
        pytest.skip("the system has no fork")
    with make_model(FakeEngine(lambda _request: Answer(HELLO))) as model:
        child = os.fork()
        if child == 0:
            try:
                model.generate([{"role": "user", "content": "hi"}])
            except StateError as error:
                os._exit(0 if "forked child" in str(error) else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert model.generate([{"role": "user", "content": "hi"}]).text == "hello the user"
