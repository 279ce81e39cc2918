"""An answer while it is being made: it ends, always, and says how."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

from phi3ov.answer.options import GenerationOptions, Options
from phi3ov.answer.reply import Reply
from phi3ov.answer.stream import ReplyStream
from phi3ov.answer.token_stream import TokenRequest, TokenStream
from phi3ov.engine.protocol import Engine, EngineState
from phi3ov.engine.serial import SerialEngine, _serve, _State
from phi3ov.errors import GenerationError, StateError
from phi3ov.model import Phi3Model
from phi3ov.runtime.limits import RequestLoad

from .fakes import MINI, Answer, FakeEngine, answer_ids, make_model

HELLO = answer_ids("hello the user")
PROMPT = tuple(MINI.chat.encode_raw("<|user|>\nhi<|end|>\n<|assistant|>\n"))
WAIT_SECONDS = 20


class Ends:
    """Records which of a stream's callbacks were called."""

    def __init__(self) -> None:
        self.kept: list[bool] = []
        self.aborts = 0

    def attach(self, stream: ReplyStream) -> None:
        """Note how ``stream`` ends, without keeping it alive."""
        watched = weakref.ref(stream)

        def note(kept: Reply | None) -> None:
            ended = watched()
            with contextlib.suppress(StateError):
                if ended is not None:
                    _ = ended.reply  # raises where it failed
                    self.kept.append(kept is not None)
                    return
            self.aborts += 1

        stream.on_end(note)


def open_stream(
    answer: Answer, ends: Ends | None = None, options: Options | None = None
) -> tuple[ReplyStream, FakeEngine, Phi3Model]:
    """Start one answer on an engine of its own."""
    engine = FakeEngine([answer])
    model = make_model(engine)
    chosen = GenerationOptions().changed(options or {})
    stream = model.stream_ids(PROMPT, options=chosen)
    if ends is not None:
        ends.attach(stream)
    return stream, engine, model


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until ``condition`` holds; fail after a generous time."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.002)


def wait_until_idle(engine: FakeEngine) -> None:
    """Wait until the engine's thread has let go of its request, then close the engine."""
    wait_for(lambda: engine.load.running == 0)
    engine.close()


def test_pieces_joined_are_the_reply() -> None:
    """The pieces joined equal the reply's text, and every piece holds something."""
    stream, engine, _model = open_stream(Answer(HELLO))
    pieces = list(stream)
    assert "".join(pieces) == stream.reply.text == "hello the user"
    assert len(pieces) > 1
    assert all(pieces)
    engine.close()


@pytest.mark.parametrize("chunk_tokens", [1, 2, 3, 100])
def test_reply_does_not_depend_on_the_engines_chunks(chunk_tokens: int) -> None:
    """However many ids an engine puts at once, the reply is the same."""
    ends = Ends()
    stream, engine, _model = open_stream(Answer(HELLO, chunk_tokens=chunk_tokens), ends)
    reply = stream.drain()
    assert (reply.text, reply.token_ids) == ("hello the user", HELLO[:-1])
    assert (reply.finish_reason, reply.stopped_by) == ("stop", "<|end|>")
    assert reply.usage.completion_tokens == len(HELLO)
    assert (ends.kept, ends.aborts) == ([True], 0)
    engine.close()


def test_ids_after_the_stop_are_not_part_of_the_answer() -> None:
    """What an engine puts behind a stop string, in the same chunk, is left out."""
    ids = answer_ids("hello the user says", stop=None)
    stream, engine, _model = open_stream(Answer(ids, chunk_tokens=100), options={"stop": ("the",)})
    reply = stream.drain()
    assert (reply.text, reply.finish_reason, reply.stopped_by) == ("hello ", "stop", "the")
    assert reply.usage.completion_tokens == len(reply.token_ids) < len(ids)
    engine.close()


def test_stop_string_cancels_the_engine() -> None:
    """The engine does not go on after a stop string that it knows nothing of."""
    answer = Answer(answer_ids("hello the user", stop=None), endless=True)
    stream, engine, _model = open_stream(answer, options={"stop": ("user",)})
    assert stream.drain().stopped_by == "user"
    wait_until_idle(engine)


def test_finish_reason_length_and_counts() -> None:
    """At the token limit the answer is incomplete and says so."""
    stream, engine, _model = open_stream(
        Answer(HELLO[:-1] * 9, cached_tokens=2), options={"max_new_tokens": 3}
    )
    reply = stream.drain()
    assert (reply.finish_reason, reply.stopped_by) == ("length", None)
    assert reply.token_ids == HELLO[:3]
    assert reply.usage.completion_tokens == 3
    assert reply.usage.prompt_tokens == len(PROMPT)
    assert reply.usage.cached_tokens == 2
    assert reply.max_new_tokens == 3
    engine.close()


def test_timings_are_ordered_and_rates_not_negative() -> None:
    """The first token comes before the last; one token alone has no rate."""
    stream, engine, _model = open_stream(Answer(HELLO))
    timings = stream.drain().timings
    assert 0 <= timings.first_token_seconds <= timings.total_seconds
    assert timings.tokens_per_second > 0
    engine.close()
    stream, engine, _model = open_stream(Answer(HELLO[-1:]))
    assert stream.drain().timings.tokens_per_second == 0.0
    engine.close()


def test_timings_are_those_of_the_engine_not_of_a_late_reader() -> None:
    """An answer that lay there for a while before it was read did not take longer."""
    stream, engine, _model = open_stream(Answer(HELLO))
    (tokens,) = stream.token_streams
    tokens.wait_for_end()
    late = time.perf_counter()
    timings = stream.drain().timings
    assert tokens.asked_at + timings.total_seconds < late
    engine.close()


@pytest.mark.parametrize(("stop", "wakes_up"), [((), False), (("never",), True)])
def test_generate_reads_no_token_before_the_end_unless_one_may_end_it(
    stop: tuple[str, ...], wakes_up: bool
) -> None:
    """A reader that wakes up for every token slows the next one down; a stop string needs it."""
    gate = threading.Event()
    stream, engine, _model = open_stream(Answer(HELLO, gate=gate), options={"stop": stop})
    taken = 0
    (tokens,) = stream.token_streams
    read = tokens.read

    def count(wait_seconds: float = 0.0) -> list[int] | None:
        nonlocal taken
        taken += not gate.is_set()
        return read(wait_seconds)

    tokens.read = count  # type: ignore[method-assign]
    reader = threading.Thread(target=stream.drain)
    reader.start()
    time.sleep(0.05)
    gate.set()
    reader.join(WAIT_SECONDS)
    assert (taken > 0) == wakes_up
    assert stream.reply.text == "hello the user"
    engine.close()


@pytest.mark.parametrize(("stop", "calls"), [((), 1), (("never",), len(HELLO) + 1)])
def test_a_listener_is_called_when_the_answer_may_have_ended(
    stop: tuple[str, ...], calls: int
) -> None:
    """With the end, or with every token where a stop string may be in it."""
    gate = threading.Event()
    stream, engine, _model = open_stream(Answer(HELLO, gate=gate), options={"stop": stop})
    wakes: list[bool] = []
    stream.add_listener(lambda: wakes.append(True))
    gate.set()
    stream.token_streams[0].wait_for_end()
    wait_for(lambda: len(wakes) >= calls)
    assert len(wakes) == calls  # before anything is read, which may cancel and so tell again
    assert stream.poll()
    engine.close()


def test_held_back_text_comes_with_the_last_piece() -> None:
    """The beginning of a stop string that never came is shown when the answer ends."""
    stream, engine, _model = open_stream(Answer(HELLO), options={"stop": ("user!",)})
    assert "".join(stream) == stream.reply.text == "hello the user"
    assert stream.reply.stopped_by == "<|end|>"
    engine.close()


def test_reply_before_the_end_is_a_state_error() -> None:
    """An unfinished answer has no reply, and the message says what to do."""
    stream, engine, _model = open_stream(Answer(HELLO))
    assert next(stream)
    assert not stream.done
    with pytest.raises(StateError, match="has not ended yet; read it to its end"):
        _ = stream.reply
    stream.close()
    engine.close()


def test_finished_stream_stays_finished() -> None:
    """Reading on, cancelling and closing after the end change nothing."""
    ends = Ends()
    stream, engine, _model = open_stream(Answer(HELLO), ends)
    reply = stream.drain()
    stream.cancel(keep=True)
    stream.close()
    assert list(stream) == []
    assert stream.reply is reply
    assert ends.kept == [True]
    engine.close()


@pytest.mark.parametrize("keep", [True, False])
def test_cancel_from_another_thread_ends_the_iteration(keep: bool) -> None:
    """A reader that waits is released; the reply holds what there was."""
    ends = Ends()
    stream, engine, _model = open_stream(Answer(HELLO[:-1], endless=True), ends)
    shown: list[str] = []

    def read() -> None:
        shown.extend(stream)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    wait_for(lambda: "".join(shown) == "hello the user")
    stream.cancel(keep=keep)
    reader.join(WAIT_SECONDS)
    assert not reader.is_alive()
    assert (stream.reply.finish_reason, stream.reply.text) == ("cancelled", "hello the user")
    assert ends.kept == [keep]
    engine.close()


def test_close_while_another_thread_reads_ends_both() -> None:
    """The end reaches the thread that waits for a piece and the one that closes, once each."""
    for _ in range(20):
        ends = Ends()
        stream, engine, _model = open_stream(Answer(HELLO[:4], endless=True), ends)
        started = threading.Event()

        def read(stream: ReplyStream = stream, started: threading.Event = started) -> None:
            for _piece in stream:
                started.set()

        def close(stream: ReplyStream = stream) -> None:
            stream.close()

        threads = [threading.Thread(target=one, daemon=True) for one in (read, close)]
        threads[0].start()
        assert started.wait(WAIT_SECONDS)
        threads[1].start()
        for thread in threads:
            thread.join(WAIT_SECONDS)
            assert not thread.is_alive()
        assert ends.kept == [False]
        engine.close()


def test_close_frees_the_engine_and_keeps_the_wish() -> None:
    """`close` waits for the engine to let go; a partial answer that shall be kept is kept."""
    for keep in (False, True):
        ends = Ends()
        stream, engine, _model = open_stream(Answer(HELLO[:4], endless=True), ends)
        next(stream)
        if keep:
            stream.cancel(keep=True)
        stream.close()
        assert stream.done
        assert ends.kept == [keep]
        engine.close()


def test_with_block_cancels_at_its_end() -> None:
    """Leaving a ``with`` block early leaves no answer running."""
    ends = Ends()
    opened, engine, _model = open_stream(Answer(HELLO[:4], endless=True), ends)
    with opened as stream:
        next(stream)
    assert stream.reply.finish_reason == "cancelled"
    assert ends.kept == [False]
    engine.close()


def test_abandoned_stream_cancels_the_engine() -> None:
    """Dropping the last reference ends the answer and frees its owner."""
    ends = Ends()
    stream, engine, _model = open_stream(Answer(HELLO[:4], endless=True), ends)
    next(stream)
    del stream
    gc.collect()
    assert (ends.aborts, ends.kept) == (1, [])
    wait_until_idle(engine)


def test_engines_error_carries_what_there_was() -> None:
    """A failure amid the answer reaches the reader as GenerationError with the partial text."""
    ends = Ends()
    cause = RuntimeError("out of memory")
    stream, engine, _model = open_stream(Answer(HELLO[:-1], error=cause), ends)
    with pytest.raises(GenerationError, match="out of memory") as caught:
        stream.drain()
    assert caught.value.partial_text == "hello the user"
    assert caught.value.__cause__ is cause
    assert (ends.aborts, ends.kept) == (1, [])
    assert stream.done
    with pytest.raises(StateError, match="failed"):
        _ = stream.reply
    assert list(stream) == []
    engine.close()


def test_engines_own_generation_error_is_not_wrapped() -> None:
    """An engine that already speaks phi3ov's language is passed on as it is."""
    error = GenerationError("the cache is full")
    stream, engine, _model = open_stream(Answer(error=error))
    with pytest.raises(GenerationError) as caught:
        stream.drain()
    assert caught.value is error
    engine.close()


def test_error_while_closing_is_not_raised() -> None:
    """`close` cleans up; an engine that fails meanwhile aborts the turn in silence."""
    ends = Ends()
    stream, engine, _model = open_stream(
        Answer(HELLO[:4], endless=True, error=RuntimeError("late")), ends
    )
    next(stream)
    stream.close()
    assert (ends.aborts, ends.kept) == (1, [])
    engine.close()


def test_engine_that_just_ends_is_an_error() -> None:
    """An answer without a stop token, short of its limit, is never passed off as complete."""
    ends = Ends()
    stream, engine, _model = open_stream(Answer(HELLO[:2]), ends)
    with pytest.raises(GenerationError, match="ended after 2 tokens without a stop token"):
        stream.drain()
    assert ends.aborts == 1
    engine.close()


@pytest.mark.parametrize("piece_by_piece", [True, False])
def test_ctrl_c_while_waiting_cancels_the_answer(piece_by_piece: bool) -> None:
    """A KeyboardInterrupt in the reader passes through and leaves no answer running."""

    class Interrupted(TokenStream):
        def wait_for_end(self) -> None:
            raise KeyboardInterrupt

        def read(self, _wait_seconds: float = 0.0) -> list[int] | None:
            if not self.cancelled:
                raise KeyboardInterrupt
            return None

    class Once(Engine):
        max_running = 1
        load = RequestLoad(running=0, waiting=0, waiting_tokens=0)
        state: EngineState = "ready"

        def submit(
            self, request: TokenRequest, *, timeout_seconds: float | None = None, wait: bool = False
        ) -> TokenStream:
            return Interrupted(request)

        def close(self) -> None:
            """Nothing runs."""

    ends = Ends()
    model = make_model(Once())  # type: ignore[arg-type]
    stream = model.stream_ids(PROMPT)
    ends.attach(stream)
    with pytest.raises(KeyboardInterrupt):
        next(stream) if piece_by_piece else stream.drain()
    assert stream.reply.finish_reason == "cancelled"
    assert ends.kept == [False]


# ------------------------------------------------------------------------------- async
def test_async_iteration_gives_the_same_pieces() -> None:
    """``async for`` reads the same text as ``for``."""
    stream, engine, _model = open_stream(Answer(HELLO))

    async def read() -> list[str]:
        return [piece async for piece in stream]

    assert "".join(asyncio.run(read())) == stream.reply.text == "hello the user"
    engine.close()


def test_event_loop_goes_on_while_a_piece_is_awaited() -> None:
    """Waiting for the engine does not block other tasks: one of them lets it go on."""
    gate = threading.Event()
    stream, engine, _model = open_stream(Answer(HELLO, gate=gate))

    async def read() -> str:
        async def open_gate() -> None:
            gate.set()

        reading = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.01)
        await open_gate()
        return await reading

    assert asyncio.run(asyncio.wait_for(read(), WAIT_SECONDS)).strip()
    stream.close()
    engine.close()


def test_cancelled_task_leaves_its_with_block() -> None:
    """A task cancelled inside ``with`` and ``async for`` ends at once, and so does the answer."""
    ends = Ends()
    opened, engine, _model = open_stream(Answer(HELLO[:4], endless=True), ends)
    seen = threading.Event()

    async def read() -> None:
        with opened as stream:
            async for _ in stream:
                seen.set()

    async def run() -> None:
        task = asyncio.ensure_future(read())
        while not seen.is_set():
            await asyncio.sleep(0.002)
        await asyncio.sleep(0.02)  # the task waits in the engine's queue now
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    in_time = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    in_time.start()
    in_time.join(WAIT_SECONDS)
    assert not in_time.is_alive()
    assert opened.done
    assert ends.kept == [False]
    engine.close()


def test_a_stream_that_failed_can_be_left() -> None:
    """Leaving it, in either way, does not hide the error behind another one."""
    stream, engine, _model = open_stream(Answer(HELLO[:1], error=RuntimeError("boom")))
    with pytest.raises(GenerationError, match="boom"):
        stream.drain()
    stream.close()
    asyncio.run(stream.aclose())
    engine.close()


def test_cancelled_task_respects_an_earlier_wish_to_keep() -> None:
    """Cancelling the task does not take back ``cancel(keep=True)``."""
    ends = Ends()
    stream, engine, _model = open_stream(Answer(endless=True), ends)
    stream._keep_partial = True

    async def run() -> None:
        task = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    stream.close()
    assert ends.kept == [True]
    engine.close()


# ------------------------------------------------------------------------------- engine
def request_of(number: int) -> TokenRequest:
    """Return a request that carries a number."""
    return TokenRequest(prompt_ids=(number,), max_new_tokens=50, stop_ids=frozenset({-1}))


def echo(request: TokenRequest) -> Answer:
    """Answer with the prompt, thirty times."""
    return Answer([request.prompt_ids[0]] * 30)


def test_requests_are_served_first_come_first_served() -> None:
    """Requests queue in the order in which they were submitted."""
    gate = threading.Event()
    engine = FakeEngine(lambda request: Answer([request.prompt_ids[0]], gate=gate))
    streams = [engine.submit(request_of(number)) for number in range(30)]
    gate.set()
    for number, stream in enumerate(streams):
        assert list(stream) == [[number]]
    assert [request.prompt_ids for request in engine.requests] == [(one,) for one in range(30)]
    engine.close()


def test_many_threads_never_get_each_others_ids() -> None:
    """32 threads at once: each reads its own answer, whole."""
    engine = FakeEngine(echo)
    results: dict[int, list[int]] = {}

    def work(number: int) -> None:
        for _ in range(5):
            results[number] = [one for chunk in engine.submit(request_of(number)) for one in chunk]
            assert results[number] == [number] * 30

    threads = [threading.Thread(target=work, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_SECONDS)
    assert results == {number: [number] * 30 for number in range(32)}
    engine.close()


def test_failed_request_does_not_harm_the_next() -> None:
    """The engine's thread survives what one request did to it."""
    engine = FakeEngine([Answer([1], error=RuntimeError("boom")), Answer([2])])
    first, second = engine.submit(request_of(0)), engine.submit(request_of(0))
    with pytest.raises(GenerationError, match="boom"):
        list(first)
    assert list(first) == []
    assert list(second) == [[2]]
    engine.close()


def test_request_cancelled_while_it_waits_never_runs() -> None:
    """A request that was cancelled in the queue costs the model nothing."""
    gate = threading.Event()
    engine = FakeEngine(lambda request: Answer([request.prompt_ids[0]], gate=gate))
    first, second = engine.submit(request_of(1)), engine.submit(request_of(2))
    second.cancel()
    gate.set()
    assert (list(first), list(second)) == ([[1]], [])
    assert [request.prompt_ids for request in engine.requests] == [(1,)]
    engine.close()


def test_close_ends_every_stream() -> None:
    """Closing ends the running and all waiting streams; nobody waits for ever."""
    engine = FakeEngine(lambda _request: Answer([7], endless=True))
    streams = [engine.submit(request_of(number)) for number in range(5)]
    assert next(streams[0]) == [7]
    engine.close()
    engine.close()
    assert [list(stream) for stream in streams] == [[]] * 5
    with pytest.raises(StateError, match="closed"):
        engine.submit(request_of(9))


def test_closed_model_ends_an_open_answer() -> None:
    """A reader of an answer that the model's end cut off is released; nothing is kept."""
    ends = Ends()
    stream, _engine, model = open_stream(Answer(HELLO[:4], endless=True), ends)
    next(stream)
    model.close()
    with contextlib.suppress(GenerationError):
        assert stream.drain().finish_reason == "cancelled"
    assert stream.done
    assert True not in ends.kept
    assert len(ends.kept) + ends.aborts == 1


def test_model_as_context_manager_closes_its_engine() -> None:
    """Behind the ``with`` block the model is closed."""
    with make_model(FakeEngine(echo)) as model:
        pass
    with pytest.raises(StateError, match="closed"):
        model.complete("hi", max_new_tokens=1)


def test_dropped_engine_ends_its_thread() -> None:
    """An engine that nobody holds any more cancels what runs and leaves no thread behind."""
    engine = FakeEngine(lambda _request: Answer([7], endless=True))
    stream = engine.submit(request_of(0))
    next(stream)
    thread = engine._thread
    del engine
    gc.collect()
    thread.join(WAIT_SECONDS)
    assert not thread.is_alive()
    assert list(stream) == []


def test_current_request_changes_under_the_lock_only() -> None:
    """`close` from another thread never meets a request that vanishes under its hands."""

    class Guard:
        def __init__(self) -> None:
            self.held = 0
            self._lock = threading.RLock()

        def __enter__(self) -> None:
            self._lock.acquire()
            self.held += 1

        def __exit__(self, *_exc: object) -> None:
            self.held -= 1
            self._lock.release()

    guard = Guard()
    seen: list[tuple[bool, bool]] = []

    class Watched(_State):
        def __setattr__(self, name: str, value: object) -> None:
            if name == "current" and hasattr(self, "watched"):
                seen.append((value is not None, guard.held > 0))
            super().__setattr__(name, value)

    state = Watched()
    state.lock = guard  # type: ignore[assignment]
    state.__dict__["watched"] = True
    state.waiting.append(TokenStream(request_of(1)))
    state.wake.put(None)
    state.wake.put(None)
    _serve(state, lambda _stream: setattr(state, "closing", True))
    assert seen == [(True, True), (False, True)]


def test_engine_thread_may_drop_the_engine_itself() -> None:
    """When the last reference goes on the engine's own thread, it does not wait for itself."""
    holder: list[SerialEngine] = []
    done = threading.Event()

    def run(stream: TokenStream) -> None:
        holder.clear()
        gc.collect()
        done.set()

    engine = SerialEngine(run, name="test")
    holder.append(engine)
    stream = engine.submit(request_of(1))
    thread = engine._thread
    del engine
    assert done.wait(WAIT_SECONDS)
    assert list(stream) == []
    thread.join(WAIT_SECONDS)
    assert not thread.is_alive()


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Run Python code in a process of its own, with warnings as errors."""
    root = Path(__file__).resolve().parents[2]

    def run(code: str) -> subprocess.CompletedProcess[str]:
        file = tmp_path / "script.py"
        file.write_text(f"import sys\nsys.path.insert(0, {str(root)!r})\n" + textwrap.dedent(code))
        return subprocess.run(
            [sys.executable, "-W", "error", str(file)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


def test_interpreter_exits_with_an_unread_stream_open(
    script: Callable[[str], subprocess.CompletedProcess[str]],
) -> None:
    """A script that ends, or fails, amid an answer exits at once, without a complaint."""
    result = script(
        """
        import phi3ov
        from tests.unit.fakes import Answer, FakeEngine, answer_ids, make_model
        engine = FakeEngine(lambda request: Answer(answer_ids("hello", stop=None), endless=True))
        chat = phi3ov.Phi3Chat(make_model(engine))
        stream = chat.stream("hi")
        print(next(stream))
        """
    )
    assert (result.returncode, result.stderr) == (0, "")
    piece = result.stdout.strip()
    assert piece
    assert "hello".startswith(piece)
