"""Batches: every conversation has its own outcome, whatever the others do to the engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phi3ov import (
    BatchProgress,
    BatchRequest,
    EngineCrashedError,
    GenerationError,
    Message,
    OptionError,
    Phi3Model,
    PromptError,
    QueueFullError,
    Reply,
    RequestLimits,
    StateError,
)
from phi3ov.answer.token_stream import TokenRequest, TokenStream
from phi3ov.batch.runner import Conversation
from phi3ov.engine.protocol import Engine, EngineState
from phi3ov.runtime.limits import RequestLoad

from .fakes import MINI, Answer, FakeEngine, answer_ids, make_model

HELLO = answer_ids("hello the user")


class Crowd(Engine):
    """Answers several requests at once, each with its own prompt; a poisoned one crashes it.

    Attributes:
        most: The most requests that were open at the same time.
    """

    load = RequestLoad(running=0, waiting=0, waiting_tokens=0)
    state: EngineState = "ready"

    def __init__(self, max_running: int, *, poison: str = "poison") -> None:
        self.max_running = max_running
        self.most = 0
        self._poison = poison
        self._open: dict[int, TokenStream] = {}
        self._lock = threading.Lock()
        self._count = 0

    def submit(
        self, request: TokenRequest, *, timeout_seconds: float | None = None, wait: bool = False
    ) -> TokenStream:
        """Answer on a thread of its own, later requests sooner."""
        stream = TokenStream(request, timeout_seconds=timeout_seconds)
        with self._lock:
            self._count += 1
            self._open[self._count] = stream
            self.most = max(self.most, len(self._open))
            threading.Thread(target=self._answer, args=(self._count, stream)).start()
        return stream

    def _answer(self, number: int, stream: TokenStream) -> None:
        text = MINI.chat.decode(stream.request.prompt_ids)
        time.sleep(0.002 * (number % 3))
        with self._lock:
            if number not in self._open:
                return  # an earlier crash took it
            if self._poison in text:
                for one in self._open.values():
                    one.end(EngineCrashedError("it died"))
                self._open.clear()
            else:
                stream.begun = True
                for token_id in answer_ids(text):
                    stream.put([token_id])
                stream.end()
                del self._open[number]

    def close(self) -> None:
        """Nothing to free."""


def ask(text: str) -> list[Message]:
    """Return a conversation of one message."""
    return [Message("user", text)]


def crowd(max_running: int, **options: str) -> tuple[Phi3Model, Crowd]:
    """Return a model on a crowd."""
    engine = Crowd(max_running, **options)
    return make_model(engine), engine  # type: ignore[arg-type]


def test_results_are_in_the_order_of_the_conversations() -> None:
    """Each conversation gets its own reply, at its own place, however the answers overtake."""
    model, engine = crowd(4)
    results = model.generate_batch([ask(f"number {number}") for number in range(50)])
    assert [one.index for one in results] == list(range(50))
    for number, one in enumerate(results):
        assert f"number {number}" in one.reply.text
    assert engine.most > 1


def test_as_completed_yields_what_is_there_first() -> None:
    """A slow first answer does not hold the others back; each comes once."""
    slow, gate = ask("slow"), threading.Event()

    class Slow(Crowd):
        def _answer(self, number: int, stream: TokenStream) -> None:
            if number == 1:
                gate.wait(60)
            super()._answer(number, stream)

    model = make_model(Slow(2))  # type: ignore[arg-type]
    results = model.iter_batch([slow, *(ask("quick") for _ in range(9))])
    first = [next(results).index for _ in range(9)]
    gate.set()
    assert sorted(first) == list(range(1, 10))
    assert [one.index for one in results] == [0]


def test_one_that_fails_does_not_lose_the_others() -> None:
    """Each kind of failure is the outcome of its own conversation, with its own type."""

    def answer(request: TokenRequest) -> Answer:
        broken = len(request.prompt_ids) == len(MINI.chat.encode_prompt(ask("fail")))
        return Answer(HELLO[:2], error=RuntimeError("boom")) if broken else Answer(HELLO)

    batch: list[Conversation] = [
        ask("hi there you"),
        [],
        [Message("assistant", "a")],
        ask("long " * 99),
        ask("fail"),
        BatchRequest(messages=ask("hi there you"), options={"max_new_tokens": 0}),
        BatchRequest(messages=ask("hi there you"), options={"max_new_tokens": 3}),
        ask("hi there you"),
    ]
    with make_model(FakeEngine(answer), context_tokens=50) as model:
        results = model.generate_batch(batch, max_new_tokens=20)
    kinds = [type(one.error) for one in results]
    reply, none = results[0].reply, type(None)
    assert reply.text == results[7].reply.text == "hello the user"
    assert results[6].reply.finish_reason == "length"
    assert kinds[:3] == [none, PromptError, PromptError]
    assert issubclass(kinds[3], PromptError)
    assert (kinds[4], kinds[5]) == (GenerationError, OptionError)
    assert isinstance(results[4].outcome, GenerationError)
    assert results[4].outcome.partial_text
    with pytest.raises(GenerationError, match="boom"):
        _ = results[4].reply


@settings(deadline=None, max_examples=30)
@given(
    poisoned=st.sets(st.integers(0, 19), max_size=2),
    running=st.integers(1, 6),
    in_order=st.booleans(),
)
def test_only_the_conversation_that_crashes_the_engine_fails(
    poisoned: set[int], running: int, in_order: bool
) -> None:
    """Those that were in the engine with it are asked again and answered."""
    model, _engine = crowd(running)
    batch = [ask("poison" if number in poisoned else f"no {number}") for number in range(20)]
    results = list(model.iter_batch(batch, in_order=in_order))
    assert sorted(one.index for one in results) == list(range(20))
    assert not in_order or results == sorted(results, key=lambda one: one.index)
    for one in results:
        assert (one.error is not None) == (one.index in poisoned)
        assert one.error is None or isinstance(one.error, EngineCrashedError)
        assert one.error is not None or f"no {one.index}" in one.reply.text


def test_an_engine_that_crashes_on_everything_ends_the_batch() -> None:
    """A machine without memory does not turn a thousand conversations into a thousand errors."""
    model, engine = crowd(4, poison="")
    with pytest.raises(EngineCrashedError):
        list(model.iter_batch(ask("hi") for _ in range(1000)))
    assert engine._count < 20


@pytest.mark.parametrize("in_order", [True, False])
def test_memory_is_bounded(in_order: bool) -> None:
    """A generator is taken from only as results are: a hundred thousand are never held."""
    taken = 0

    def endless() -> Iterator[list[Message]]:
        nonlocal taken
        while True:
            taken += 1
            yield ask(f"number {taken}")

    model, engine = crowd(3)
    results = model.iter_batch(endless(), in_order=in_order)
    for given_back in range(1, 100):
        assert isinstance(next(results).outcome, Reply)
        assert taken - given_back <= 12
    results.close()  # type: ignore[attr-defined]
    assert engine.most <= 12


def test_leaving_the_loop_cancels_the_rest() -> None:
    """The engine is free at once for what comes next."""
    short = len(MINI.chat.encode_prompt(ask("a")))

    def answer(request: TokenRequest) -> Answer:
        return Answer(HELLO, endless=len(request.prompt_ids) > short)

    with make_model(FakeEngine(answer)) as model:
        for result in model.iter_batch([ask("a"), ask("a b c d e"), ask("a b c d e f")]):
            assert result.index == 0
            break
        assert model.complete("hi").finish_reason == "stop"


def test_progress_counts_every_result() -> None:
    """Before each result; the total is known where the conversations have a length."""
    seen: list[BatchProgress] = []
    with make_model(FakeEngine(lambda _request: Answer(HELLO))) as model:
        model.generate_batch([ask("a"), [], ask("b")], progress=seen.append)
        assert [(one.done, one.total) for one in seen] == [(1, 3), (2, 3), (3, 3)]
        assert seen[-1].failed == 1
        model.generate_batch(iter([ask("a")]), progress=seen.append)
        assert seen[-1] == BatchProgress(done=1, failed=0, total=None)


def test_options_are_checked_before_anything_starts() -> None:
    """An option that fits no conversation is not an outcome."""
    with make_model(FakeEngine([])) as model, pytest.raises(OptionError, match="max_new_tokens"):
        model.iter_batch([ask("a")], max_new_tokens=0)


def test_a_full_queue_is_waited_for_unless_asked() -> None:
    """Others may fill the engine; a batch gets its turn after them."""
    gate = threading.Event()
    engine = FakeEngine(lambda _request: Answer(HELLO, gate=gate), RequestLimits(max_waiting=0))
    with make_model(engine) as model:
        other = engine.submit(TokenRequest(prompt_ids=(5,), max_new_tokens=9, stop_ids=frozenset()))
        refused = model.generate_batch([ask("a")], on_full_queue="raise")
        assert isinstance(refused[0].error, QueueFullError)
        threading.Timer(0.02, gate.set).start()
        assert all(
            one.reply.text == "hello the user" for one in model.generate_batch([ask("a")] * 5)
        )
        assert sum(map(len, other)) == len(HELLO)


def test_time_limits_are_each_conversations_own() -> None:
    """One that takes too long is a reply that says so."""
    answers = iter([Answer(HELLO[:-1], endless=True), Answer(HELLO)])
    with make_model(FakeEngine(lambda _request: next(answers))) as model:
        results = model.generate_batch([ask("a"), ask("b")], timeout_seconds=0.2)
    assert [one.reply.finish_reason for one in results] == ["timeout", "stop"]


def test_a_closed_model_ends_the_batch() -> None:
    """With an error, and not with a cancelled reply for each of the rest."""
    engine = FakeEngine(lambda _request: Answer(HELLO[:-1], endless=True))
    model = make_model(engine)
    threading.Timer(0.05, model.close).start()
    with pytest.raises(StateError, match="closed"):
        model.generate_batch([ask("a")] * 3)


def test_results_are_values() -> None:
    """They compare and can be replaced."""
    with make_model(FakeEngine([Answer(HELLO)])) as model:
        (one,) = model.generate_batch([ask("a")])
    assert replace(one, index=1) != one
    assert one.error is None


@pytest.mark.parametrize(
    ("conversation", "said"),
    [
        ("hello", "messages='hello' is of type str"),
        (None, "messages=None is of type NoneType"),
        (5, "is of type int"),
        ({"role": "user", "content": "hi"}, "is of type dict, not a list of Message"),
        (Message("user", "hi"), "is of type Message, not a list of Message"),
        ([{"role": "user", "text": "hi"}], r"messages\[0\].text='hi' is not a field"),
        ([*ask("hi"), None], r"messages\[1\]=None is of type NoneType"),
        (["hi"], r"messages\[0\]='hi' is of type str"),
        (iter(ask("hi")), "is of type list_iterator"),
    ],
    ids=lambda one: one[:30] if isinstance(one, str) else type(one).__name__,
)
def test_what_is_no_conversation_fails_alone(conversation: Any, said: str) -> None:
    """Its result says what it is and what it should be; those beside it are answered."""
    with make_model(FakeEngine(lambda _request: Answer(HELLO))) as model:
        first, bad, last = model.generate_batch([ask("a"), conversation, ask("b")])
    assert (first.reply.text, last.reply.text) == ("hello the user", "hello the user")
    with pytest.raises(PromptError, match=said):
        _ = bad.reply


def test_options_of_a_request_that_are_no_mapping_are_refused() -> None:
    """Where the request is made."""
    with pytest.raises(OptionError, match="options=5 must be a mapping"):
        BatchRequest(messages=ask("a"), options=5)  # type: ignore[arg-type]
