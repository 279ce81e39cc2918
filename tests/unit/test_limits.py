"""Time limits, bounded queues, and readers that do without threads: on the scripted engine."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from phi3ov import (
    GenerationOptions,
    OptionError,
    Phi3Chat,
    Phi3Model,
    QueueFullError,
    RequestLimits,
    load_model,
)
from phi3ov.answer.token_stream import TokenRequest

from .fakes import Answer, FakeEngine, answer_ids, make_model

HELLO = answer_ids("hello the user")
SOON = 0.05
"""Seconds: long enough for the scripted tokens, short enough to wait for."""


def request_of(number: int) -> TokenRequest:
    """Return a request that carries a number."""
    return TokenRequest(prompt_ids=(number,), max_new_tokens=50, stop_ids=frozenset({-1}))


# --- time ----------------------------------------------------------------------------------------


def test_time_that_is_over_ends_the_answer_and_forgets_the_turn() -> None:
    """The reply holds what there was; engine and chat are free for the next turn."""
    engine = FakeEngine([Answer(HELLO[:-1], endless=True), Answer(HELLO)])
    with make_model(engine) as model:
        chat = Phi3Chat(model)
        reply = chat.generate("hi", timeout_seconds=SOON)
        assert (reply.finish_reason, reply.text) == ("timeout", "hello the user")
        assert chat.messages == ()
        assert chat.generate("hi", timeout_seconds=60).finish_reason == "stop"


def test_a_turn_whose_time_is_over_is_kept_on_purpose() -> None:
    """With on_timeout="keep" the partial answer enters the history; cancelling still drops."""
    engine = FakeEngine(lambda _request: Answer(HELLO[:-1], endless=True))
    with make_model(engine) as model:
        chat = Phi3Chat(model, options=GenerationOptions(timeout_seconds=SOON, on_timeout="keep"))
        chat.generate("hi")
        assert [message.content for message in chat.messages] == ["hi", "hello the user"]
        stream = chat.stream("more", timeout_seconds=60)
        next(stream)
        stream.close()
        assert stream.reply.finish_reason == "cancelled"
        assert len(chat.messages) == 2


def test_time_runs_while_a_request_waits() -> None:
    """One that waits behind an endless answer ends in time, with nothing."""
    engine = FakeEngine(lambda _request: Answer(HELLO[:-1], endless=True))
    with make_model(engine) as model:
        first = Phi3Chat(model).stream("hi")
        next(first)
        reply = Phi3Chat(model).generate("hi", timeout_seconds=SOON)
        assert (reply.finish_reason, reply.text, reply.usage.completion_tokens) == (
            "timeout",
            "",
            0,
        )
        assert len(engine.requests) == 1
        first.close()


def test_the_engine_stops_in_time_even_if_nobody_reads() -> None:
    """A stream that its reader has left alone does not hold the engine up."""
    engine = FakeEngine([Answer([7], endless=True), Answer([8])])
    unread = engine.submit(request_of(1), timeout_seconds=SOON)
    assert list(engine.submit(request_of(2))) == [[8]]
    assert list(unread) == [[7]]
    assert unread.timed_out
    engine.close()


def test_an_answer_that_came_in_time_may_be_read_later() -> None:
    """The limit is the engine's, not the reader's."""
    engine = FakeEngine([Answer(HELLO)])
    with make_model(engine) as model:
        stream = Phi3Chat(model).stream("hi", timeout_seconds=SOON)
        while engine.load.running or engine.load.waiting:
            time.sleep(0.001)
        time.sleep(2 * SOON)
        assert stream.drain().finish_reason == "stop"


def test_an_asynchronous_reader_is_released_in_time() -> None:
    """As a reader that blocks; also where the engine says nothing at all."""
    engine = FakeEngine([Answer([], endless=True)])
    with make_model(engine) as model:
        reply = asyncio.run(Phi3Chat(model).agenerate("hi", timeout_seconds=SOON))
        assert (reply.finish_reason, reply.text) == ("timeout", "")


# --- queue ---------------------------------------------------------------------------------------


def test_a_full_queue_refuses_or_waits() -> None:
    """By default the request is refused with the numbers; one that says so waits its turn."""
    gate = threading.Event()
    engine = FakeEngine(
        lambda request: Answer([request.prompt_ids[0]], gate=gate), RequestLimits(max_waiting=2)
    )
    streams = [engine.submit(request_of(number)) for number in range(3)]
    with pytest.raises(QueueFullError, match=r"^3 requests .*on_full_queue='wait'"):
        engine.submit(request_of(9))
    streams += [engine.submit(request_of(number), wait=True) for number in (3, 4)]
    with pytest.raises(QueueFullError, match=r"^5 requests"):
        engine.submit(request_of(9))
    streams[1].cancel()  # what is cancelled takes no place
    with pytest.raises(QueueFullError, match=r"^4 requests"):
        engine.submit(request_of(9))
    gate.set()
    assert [list(stream) for stream in streams] == [[[0]], [], [[2]], [[3]], [[4]]]
    assert list(engine.submit(request_of(5))) == [[5]]
    assert [request.prompt_ids[0] for request in engine.requests] == [0, 2, 3, 4, 5]
    engine.close()


def test_the_options_choose_between_waiting_and_the_error() -> None:
    """A chat's request that is refused leaves the chat as it was."""
    gate = threading.Event()
    engine = FakeEngine(lambda _request: Answer(HELLO, gate=gate), RequestLimits(max_waiting=0))
    with make_model(engine) as model:
        first, second = Phi3Chat(model), Phi3Chat(model)
        running = first.stream("hi")
        with pytest.raises(QueueFullError):
            second.generate("hi")
        waiting = second.stream("hi", on_full_queue="wait")
        gate.set()
        assert running.drain().text == waiting.drain().text == "hello the user"


def test_cancelled_while_it_waits_ends_at_once() -> None:
    """Its reader is not held up by the answer before it, which never ends."""
    engine = FakeEngine(lambda _request: Answer([7], endless=True))
    first, second = engine.submit(request_of(1)), engine.submit(request_of(2))
    next(first)
    reader = threading.Thread(target=lambda: list(second))
    reader.start()
    second.cancel()
    reader.join(60)
    assert not reader.is_alive()
    assert not first.cancelled
    engine.close()


@pytest.mark.parametrize(
    "numbers",
    [{"max_running": 0}, {"max_running": True}, {"max_waiting": -1}, {"max_waiting": None}],
)
def test_limits_name_what_is_wrong(numbers: dict[str, Any]) -> None:
    """Field and value."""
    ((name, value),) = numbers.items()
    with pytest.raises(OptionError, match=f"^{name}={value}"):
        RequestLimits(**numbers)


def test_engines_that_answer_one_by_one_refuse_more() -> None:
    """A number that would be ignored is an error that names the engine for it."""
    with pytest.raises(OptionError, match=r"max_running=4.*engine='worker'"):
        load_model("no-such-folder", limits=RequestLimits(max_running=4))


# --- asyncio -------------------------------------------------------------------------------------


def test_waiting_streams_hold_no_thread() -> None:
    """A hundred tasks wait behind one answer; the loop's executor is left to the application."""
    gate = threading.Event()
    engine = FakeEngine(lambda _request: Answer(HELLO, gate=gate))

    async def run(model: Phi3Model) -> list[str]:
        tasks = [asyncio.create_task(Phi3Chat(model).agenerate("hi")) for _ in range(100)]
        await asyncio.sleep(SOON)
        names = {thread.name for thread in threading.enumerate()}
        assert not any(name.startswith("asyncio") for name in names)
        gate.set()
        return [reply.text for reply in await asyncio.gather(*tasks)]

    with make_model(engine) as model:
        assert asyncio.run(run(model)) == ["hello the user"] * 100


def test_a_reader_that_lags_behind_leaves_the_loop_to_others() -> None:
    """Between any two pieces that are already there, other tasks get their turn."""
    engine = FakeEngine([Answer(HELLO)])

    async def run(model: Phi3Model) -> int:
        stream = Phi3Chat(model).stream("hi")
        while engine.load.running or engine.load.waiting:
            await asyncio.sleep(0.001)
        turns = pieces = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        other = asyncio.create_task(count())
        async for _ in stream:
            pieces += 1
            assert turns >= pieces
        other.cancel()
        return pieces

    with make_model(engine) as model:
        assert asyncio.run(run(model)) > 1


def test_async_with_ends_the_answer() -> None:
    """Leaving the block early cancels, and the chat is free again."""
    engine = FakeEngine([Answer(HELLO[:-1], endless=True), Answer(HELLO)])

    async def run(chat: Phi3Chat) -> str:
        async with chat.stream("hi") as stream:
            async for _ in stream:
                break
        assert stream.reply.finish_reason == "cancelled"
        return (await chat.agenerate("hi")).text

    with make_model(engine) as model:
        assert asyncio.run(run(Phi3Chat(model))) == "hello the user"


def test_a_thread_and_a_task_may_read_one_stream() -> None:
    """Between them they get every piece once, and both end."""
    engine = FakeEngine([Answer(HELLO)])

    async def run(chat: Phi3Chat) -> str:
        stream = chat.stream("hi")
        pieces: list[str] = []

        async def read() -> None:
            async for piece in stream:
                pieces.append(piece)

        await asyncio.gather(read(), asyncio.to_thread(pieces.extend, stream), read())
        assert sum(map(len, pieces)) == len("hello the user")
        return stream.reply.text

    with make_model(engine) as model:
        assert asyncio.run(run(Phi3Chat(model))) == "hello the user"
