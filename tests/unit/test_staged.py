"""A grammar that applies from one token on: two requests that a reader sees as one stream."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable

import pytest

from phi3ov.answer.stages import Rest, Stage, UntilToken
from phi3ov.answer.token_stream import TokenRequest, TokenStream
from phi3ov.engine.staged import submit_staged
from phi3ov.errors import GenerationError, QueueFullError, StateError
from phi3ov.runtime.limits import RequestLimits

from .fakes import Answer, FakeEngine

STOP, AFTER = 9, 7
REQUEST = TokenRequest(
    prompt_ids=(1, 2), max_new_tokens=10, stop_ids=frozenset({STOP}), grammar="answer ::= x"
)


def script(*answers: Answer) -> FakeEngine:
    """Return an engine that gives the answers in turn."""
    engine = FakeEngine(answers)
    engine.takes_grammars = True
    return engine


def stages() -> list[Stage]:
    """Return those of an answer whose grammar applies from the token on."""
    return [UntilToken(AFTER), Rest(REQUEST.grammar)]


def test_without_the_token_there_is_one_request_without_grammar() -> None:
    """The answer ends as it would have, and the engine never gets the grammar."""
    engine = script(Answer([3, 4, STOP], cached_tokens=1))
    stream = submit_staged(engine, REQUEST, stages())
    assert [token_id for chunk in stream for token_id in chunk] == [3, 4, STOP]
    assert stream.cached_tokens == 1
    [asked] = engine.requests
    assert (asked.grammar, asked.stop_ids) == (None, frozenset({STOP, AFTER}))
    assert stream.request == REQUEST
    engine.close()


def test_from_the_token_on_the_grammar_applies() -> None:
    """The second request goes on exactly where the first ended, with what is left of the limit."""
    engine = script(Answer([3, AFTER, 5], cached_tokens=2), Answer([5, AFTER, STOP]))
    stream = submit_staged(engine, REQUEST, stages())
    assert [token_id for chunk in stream for token_id in chunk] == [3, AFTER, 5, AFTER, STOP]
    _, second = engine.requests
    assert second.prompt_ids == (1, 2, 3, AFTER)
    assert (second.max_new_tokens, second.stop_ids) == (8, frozenset({STOP}))
    assert second.grammar == REQUEST.grammar
    assert stream.cached_tokens == 2
    assert len(stream.put_at) == 5
    engine.close()


def test_the_limit_holds_for_both_parts() -> None:
    """At the limit nothing follows the token."""
    engine = script(Answer([3] * 9 + [AFTER]))
    stream = submit_staged(engine, REQUEST, stages())
    assert sum(map(len, stream)) == 10
    assert len(engine.requests) == 1
    engine.close()


def test_a_second_part_waits_for_its_place() -> None:
    """Requests that came meanwhile go first; a full queue does not refuse an answer half-way."""
    gate = threading.Event()
    engine = FakeEngine(
        [Answer([AFTER], gate=gate), Answer([4, STOP]), Answer([5, STOP])],
        limits=RequestLimits(max_waiting=1),
    )
    engine.takes_grammars = True
    stream = submit_staged(engine, REQUEST, stages())
    other = engine.submit(REQUEST)
    with pytest.raises(QueueFullError):
        submit_staged(engine, REQUEST, stages())
    gate.set()
    assert list(stream) == [[AFTER], [5], [STOP]]
    assert list(other) == [[4], [STOP]]
    engine.close()


def wait_until(true: Callable[[], bool]) -> None:
    """Wait for another thread."""
    deadline = time.monotonic() + 5
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("in_second", [False, True])
def test_cancelling_ends_either_part(in_second: bool) -> None:
    """The engine is free for others at once."""
    first = Answer([3, AFTER]) if in_second else Answer([3], endless=True)
    rest = [Answer([4], endless=True)] if in_second else []
    engine = script(first, *rest, Answer([5, STOP]))
    stream = submit_staged(engine, REQUEST, stages())
    read = [next(stream) for _ in range(3 if in_second else 1)]
    stream.cancel()
    assert list(stream) == []
    assert read[-1] == ([4] if in_second else [3])
    assert list(engine.submit(REQUEST)) == [[5], [STOP]]
    engine.close()


def test_the_time_is_that_of_both_parts() -> None:
    """It ends the second part, and the stream says so."""
    engine = script(Answer([3, AFTER]), Answer([4], endless=True))
    stream = submit_staged(engine, REQUEST, stages(), timeout_seconds=0.3)
    assert [token_id for chunk in stream for token_id in chunk] == [3, AFTER, 4]
    assert stream.timed_out
    engine.close()


@pytest.mark.parametrize("in_second", [False, True])
def test_a_failure_of_either_part_is_the_streams(in_second: bool) -> None:
    """With the engine's own words."""
    answers = [Answer([AFTER])] if in_second else []
    engine = script(*answers, Answer([3], error=RuntimeError("no memory")))
    stream = submit_staged(engine, REQUEST, stages())
    with pytest.raises(GenerationError, match="no memory"):
        list(stream)
    engine.close()


def test_a_model_that_is_closed_half_way_ends_the_stream() -> None:
    """Nothing waits for a second part that cannot come."""
    gate = threading.Event()
    engine = script(Answer([3, AFTER], gate=gate), Answer([4, STOP]))
    stream = submit_staged(engine, REQUEST, stages())
    engine.close()
    assert list(stream) == []
    with pytest.raises(StateError):
        submit_staged(engine, REQUEST, stages())


def test_an_open_stream_does_not_keep_the_engine() -> None:
    """An engine that nothing else holds is closed."""
    engine = script(Answer([3], endless=True))
    stream: TokenStream = submit_staged(engine, REQUEST, stages())
    assert next(stream) == [3]
    del engine
    gc.collect()
    assert list(stream) == []


def test_readers_are_woken_for_both_parts() -> None:
    """`read` without waiting, after each wake, sees everything: what async readers do."""
    engine = script(Answer([3, AFTER]), Answer([4, STOP]))
    seen: list[int] = []
    ended = threading.Event()
    stream = submit_staged(engine, REQUEST, stages())

    def wake() -> None:
        while chunk := stream.read():
            seen.extend(chunk)
        if chunk is None:
            ended.set()

    stream.add_listener(wake)
    stream.add_listener(wake, only_end=True)
    wake()
    wait_until(ended.is_set)
    assert seen == [3, AFTER, 4, STOP]
    engine.close()


def test_probabilities_follow_their_tokens() -> None:
    """Those of the second part stand behind those of the first."""

    def answer(request: TokenRequest) -> Answer:
        return Answer([3, AFTER] if request.grammar is None else [5, STOP])

    class Probable(FakeEngine):
        def submit(
            self,
            request: TokenRequest,
            *,
            timeout_seconds: float | None = None,
            wait: bool = False,
        ) -> TokenStream:
            stream = super().submit(request, timeout_seconds=timeout_seconds, wait=wait)
            stream.logprobs += [-0.5, -1.5] if request.grammar is None else [-2.5, -3.5]
            return stream

    engine = Probable(answer)
    engine.takes_grammars = True
    stream = submit_staged(engine, REQUEST, stages())
    assert sum(map(len, stream)) == 4
    assert stream.logprobs == [-0.5, -1.5, -2.5, -3.5]
    engine.close()
