"""The queues between threads: nothing that one of them says is lost, however they meet."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from phi3ov.answer.token_stream import TokenRequest, TokenStream
from phi3ov.engine.serial import SerialEngine
from phi3ov.engine.worker.parent import WorkerChild, WorkerStream
from phi3ov.engine.worker.protocol import (
    Cancel,
    Command,
    Forget,
    Progress,
    Submit,
    decode_command,
    encode,
)
from phi3ov.errors import GenerationError, OptionError, StateError

ASKED = TokenRequest(prompt_ids=(1,), max_new_tokens=1, stop_ids=frozenset())


def answer(stream: TokenStream) -> None:
    """Answer with one id."""
    stream.put([7])


class Interrupted:
    """Raises Ctrl-C once, where an object's method is called."""

    def __init__(self, wrapped: Any, method: str) -> None:
        self._wrapped = wrapped
        self._method = method

    def __getattr__(self, name: str) -> Any:
        if name == self._method:
            self._method = ""
            raise KeyboardInterrupt
        return getattr(self._wrapped, name)

    def __len__(self) -> int:
        return len(self._wrapped)

    def __iter__(self) -> Any:
        return iter(self._wrapped)


@pytest.mark.parametrize(("part", "method"), [("wake", "put"), ("waiting", "append")])
def test_ctrl_c_while_a_request_is_queued_leaves_the_engine_in_order(
    part: str, method: str
) -> None:
    """Each later request is answered, and none twice, wherever between the two it came."""
    engine = SerialEngine(answer, name="test")
    state = engine._state
    interrupted = Interrupted(getattr(state, part), method)
    setattr(state, part, interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.submit(ASKED)
    for _ in range(2):
        assert list(engine.submit(ASKED, timeout_seconds=20)) == [[7]]
    assert engine._thread.is_alive()
    engine.close()


def test_a_cancellation_that_overtakes_its_request_reaches_the_child() -> None:
    """Cancelled by another thread after the look and before the sending."""
    child = unstarted_child(limit=1)
    outbox = child.outbox

    class Racing(WorkerStream):
        looked = False

        @property
        def cancelled(self) -> bool:
            was, self.looked = self.looked, True
            if not was:
                return False
            self.cancel()
            return True

    stream = Racing(ASKED, 1, outbox, timeout_seconds=None)
    child.streams[1] = stream
    child._unsent.append((1, encode(Submit(number=1, request=ASKED))))
    child._send_more()
    said = commands_in(outbox)
    assert isinstance(said[0], Submit)
    assert Cancel(number=1) in said[1:]


def test_forgetting_the_cache_takes_its_turn_among_the_requests() -> None:
    """Those that wait in the parent for room go first, or their cache would outlive it."""
    child = unstarted_child(limit=1)
    for number in (1, 2):
        child.submit(number, ASKED, None)
    child.forget_cache()
    child.submit(3, ASKED, None)
    for number in (1, 2, 3):
        child._advance(Progress(number=number, token_ids=(7,), ended=True))
    said = commands_in(child.outbox)
    assert [getattr(one, "number", None) for one in said] == [1, 2, None, 3]
    assert isinstance(said[2], Forget)


def test_work_for_an_engines_thread_takes_its_turn_among_the_requests() -> None:
    """After those that were queued before it; one that was given up is not done."""
    done: list[object] = []
    go_on = threading.Event()

    def run(stream: TokenStream) -> None:
        go_on.wait(20)
        done.append(stream.request.max_new_tokens)

    engine = SerialEngine(run, name="test")
    requests = [replace(ASKED, max_new_tokens=number) for number in (1, 2, 3)]
    for request in requests[:2]:
        engine.submit(request)
    worker = threading.Thread(target=engine.do, args=(lambda: done.append("work"),))
    worker.start()
    while engine.load.waiting < 2:  # the first runs
        time.sleep(0.001)
    last = engine.submit(requests[2])
    go_on.set()
    worker.join()
    assert list(last) == []
    assert done == [1, 2, "work", 3]
    engine.close()


def test_a_closed_engine_frees_its_model_at_the_end_of_its_thread() -> None:
    """After what runs, on the thread that owns the model, once."""
    freed: list[str] = []
    engine = SerialEngine(
        answer, free=lambda: freed.append(threading.current_thread().name), name="test"
    )
    assert list(engine.submit(ASKED)) == [[7]]
    assert freed == []
    engine.close()
    engine.close()
    assert freed == ["phi3ov-test"]


def test_a_listener_that_fails_ends_neither_the_answer_nor_the_engine(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is called on the engine's thread, which serves others as well; the log has it."""
    go_on = threading.Event()

    def run(stream: TokenStream) -> None:
        go_on.wait(20)
        stream.put([7])

    def fail() -> None:
        raise ValueError("of a listener")

    engine = SerialEngine(run, name="test")
    stream = engine.submit(ASKED)
    stream.add_listener(fail)
    stream.add_listener(fail, only_end=True)
    go_on.set()
    assert list(stream) == [[7]]
    assert list(engine.submit(ASKED)) == [[7]]
    assert "of a listener" in caplog.text
    engine.close()


def unstarted_child(*, limit: int) -> WorkerChild:
    """Return the parent's side of a worker without a process, to see what it would say."""
    child = WorkerChild.__new__(WorkerChild)
    child.outbox, child.streams = queue.SimpleQueue(), {}
    child._limit, child._sent, child._unsent = limit, {}, deque()
    child._max_running = limit
    child._lock = threading.RLock()
    return child


def commands_in(outbox: queue.SimpleQueue[bytes | None]) -> list[Command]:
    """Return what was said to the child."""
    lines = [outbox.get_nowait() for _ in range(outbox.qsize())]
    return [decode_command(line) for line in lines if line is not None]


def test_a_task_takes_its_turn_and_what_it_raises_reaches_who_asked() -> None:
    """Errors of ours and the system's as they are, any other as a `GenerationError`."""
    order: list[str] = []
    engine = SerialEngine(lambda _stream: order.append("answer"), name="test")
    stream = engine.submit(ASKED)
    engine.do(lambda: order.append("task"))
    assert order == ["answer", "task"]
    assert stream.read() is None

    def fail(error: BaseException) -> None:
        raise error

    for error in (OSError("disk full"), OptionError("x=1 is wrong.")):
        with pytest.raises(type(error)) as caught:
            engine.do(partial(fail, error))
        assert caught.value is error
    with pytest.raises(GenerationError, match="The engine failed: 'k'") as wrapped:
        engine.do(partial(fail, KeyError("k")))
    assert isinstance(wrapped.value.__cause__, KeyError)
    engine.close()


def test_a_task_that_waits_when_the_model_is_closed_says_so() -> None:
    """It is neither done nor forgotten; and one that Ctrl-C ends is never begun."""
    running, go_on = threading.Event(), threading.Event()
    done: list[str] = []

    def run(_stream: TokenStream) -> None:
        running.set()
        go_on.wait()

    engine = SerialEngine(run, name="test")
    engine.submit(ASKED)
    running.wait()
    failed: list[StateError] = []

    def ask() -> None:
        try:
            engine.do(lambda: done.append("waiting"))
        except StateError as error:
            failed.append(error)

    waiting = threading.Thread(target=ask)
    waiting.start()
    while not engine.load.waiting:
        time.sleep(0.001)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TokenStream, "__next__", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            engine.do(lambda: done.append("interrupted"))
    closing = threading.Thread(target=engine.close)
    closing.start()
    waiting.join()
    go_on.set()
    closing.join()
    assert "closed while" in str(failed[0])
    assert done == []


def _interrupt(_stream: TokenStream) -> list[int]:
    raise KeyboardInterrupt
