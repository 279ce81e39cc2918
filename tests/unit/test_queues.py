"""The queues between threads: nothing that one of them says is lost, however they meet."""

from __future__ import annotations

import queue
import threading
from collections import deque
from typing import Any

import pytest

from phi3ov.engine import TokenRequest, TokenStream
from phi3ov.engine.serial import SerialEngine
from phi3ov.engine.worker_child import WorkerChild, WorkerStream
from phi3ov.engine.worker_protocol import Cancel, Command, Submit

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
    child = WorkerChild.__new__(WorkerChild)
    outbox: queue.SimpleQueue[Command | None] = queue.SimpleQueue()

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
    child.outbox, child.streams = outbox, {1: stream}
    child._limit, child._sent, child._unsent = 1, set(), deque([1])
    child._lock = threading.RLock()
    child._send_more()
    said = [outbox.get_nowait() for _ in range(outbox.qsize())]
    assert isinstance(said[0], Submit)
    assert Cancel(number=1) in said[1:]
