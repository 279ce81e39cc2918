"""Stopping on a real engine: cancelled, shared, closed and abandoned answers."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from phi3ov import GenerationError, Phi3Chat, Reply, StateError
from phi3ov.answer.token_stream import TokenStream
from phi3ov.engine.protocol import EngineName

from .conftest import LoadModel, Zoo
from .truth import greedy, prompt_text

ENGINES: tuple[EngineName, ...] = ("pipeline", "paged", "transformers")
ROW = "phi-4"
SHORT, FAR = 16, 900


class Tap:
    """Calls back on the engine's thread after each token that it hands over."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tokens = 0
        self.at = -1
        self.reached = threading.Event()
        self.go_on = threading.Event()
        put = TokenStream.put

        def put_and_wait(stream: TokenStream, token_ids: list[int]) -> None:
            put(stream, token_ids)
            self.tokens += len(token_ids)
            if self.tokens == self.at:
                self.reached.set()
                self.go_on.wait(60)

        monkeypatch.setattr(TokenStream, "put", put_and_wait)

    def hold_at(self, tokens: int) -> None:
        """Let the engine stop and wait after so many tokens from now."""
        self.tokens, self.at = 0, tokens
        self.reached.clear()
        self.go_on.clear()


@pytest.fixture
def tap(monkeypatch: pytest.MonkeyPatch) -> Tap:
    """A hand on the engine's thread."""
    return Tap(monkeypatch)


@pytest.mark.parametrize("engine", ENGINES)
def test_cancel_from_another_thread_stops_within_one_token(
    engine: EngineName, zoo: Zoo, load: LoadModel, tap: Tap
) -> None:
    """The engine makes no token after the one it was making; the next answer is right."""
    model = load(zoo.artifact(ROW), engine=engine)
    chat = Phi3Chat(model)
    for at in (1, 5):
        tap.hold_at(at)
        stream = chat.stream(prompt_text(40), max_new_tokens=FAR)
        assert tap.reached.wait(60)
        canceller = threading.Thread(target=stream.cancel)
        canceller.start()
        canceller.join()
        tap.go_on.set()
        reply = stream.drain()
        assert reply.finish_reason == "cancelled"
        assert tap.tokens == at
        assert reply.usage.completion_tokens == at
        assert chat.messages == ()
    prompt = prompt_text(60, seed=1)
    truth = greedy(zoo.checkpoint(ROW), model.tokenizer.encode_raw(prompt), SHORT)
    assert model.complete(prompt, max_new_tokens=SHORT).token_ids == truth


def test_what_a_cancelled_answer_left_in_the_cache_is_good(
    zoo: Zoo, load: LoadModel, tap: Tap
) -> None:
    """The same question again, and one that goes on from the kept part, are answered right."""
    model = load(zoo.artifact(ROW))
    chat = Phi3Chat(model)
    question = prompt_text(40)
    opened = model.tokenizer.encode_raw(
        f"<|im_start|>user<|im_sep|>{question}<|im_end|><|im_start|>assistant<|im_sep|>"
    )
    for keep in (False, True):
        tap.hold_at(7)
        stream = chat.stream(question, max_new_tokens=FAR)
        assert tap.reached.wait(60)
        stream.cancel(keep=keep)
        tap.go_on.set()
        assert stream.drain().token_ids == greedy(zoo.checkpoint(ROW), opened, 7)
    assert len(chat.messages) == 2
    reply = chat.generate(question, max_new_tokens=SHORT)
    closing = model.tokenizer.closing
    history = [*opened, *greedy(zoo.checkpoint(ROW), opened, 7), *closing]
    assert reply.token_ids == greedy(zoo.checkpoint(ROW), [*history, *opened], SHORT)


@pytest.mark.parametrize("engine", ENGINES)
def test_sixteen_threads_get_the_answers_they_would_get_alone(
    engine: EngineName, zoo: Zoo, load: LoadModel
) -> None:
    """Nothing of one request enters another's answer."""
    model = load(zoo.artifact(ROW), engine=engine)
    prompts = [prompt_text(20 + 3 * seed, seed) for seed in range(16)]
    truths = [
        greedy(zoo.checkpoint(ROW), model.tokenizer.encode_raw(prompt), SHORT) for prompt in prompts
    ]
    start = threading.Barrier(16)

    def ask(prompt: str) -> tuple[int, ...]:
        start.wait()
        return model.complete(prompt, max_new_tokens=SHORT).token_ids

    with ThreadPoolExecutor(16) as threads:
        assert list(threads.map(ask, prompts)) == truths


@pytest.mark.parametrize("engine", ENGINES)
def test_closing_the_model_ends_every_stream(
    engine: EngineName, zoo: Zoo, load: LoadModel, tap: Tap
) -> None:
    """The answer under way and those that wait end, as cancelled or with an error."""
    model = load(zoo.artifact(ROW), engine=engine)
    tap.hold_at(5)
    streams = [Phi3Chat(model).stream(prompt_text(30, seed), max_new_tokens=FAR) for seed in (1, 2)]

    def read(stream: object) -> Reply | GenerationError:
        assert hasattr(stream, "drain")
        try:
            reply: Reply = stream.drain()
        except GenerationError as error:
            return error
        return reply

    with ThreadPoolExecutor(3) as threads:
        outcomes = [threads.submit(read, stream) for stream in streams]
        assert tap.reached.wait(60)
        closing = threads.submit(model.close)
        while not streams[0].token_streams[0].cancelled:
            pass
        tap.go_on.set()
        closing.result(timeout=60)
        ended = [outcome.result(timeout=60) for outcome in outcomes]
    assert tap.tokens == 5
    for one in ended:
        assert isinstance(one, GenerationError) or one.finish_reason == "cancelled"
    with pytest.raises(StateError, match="closed"):
        model.complete("a", max_new_tokens=1)
    model.close()


def test_closing_while_nobody_reads_does_not_hang(zoo: Zoo, load: LoadModel) -> None:
    """A stream that nobody reads any more does not keep the model open."""
    model = load(zoo.artifact(ROW))
    stream = Phi3Chat(model).stream(prompt_text(30), max_new_tokens=FAR)
    closer = threading.Thread(target=model.close)
    closer.start()
    closer.join(60)
    assert not closer.is_alive()
    stream.close()


_LEAVE = """
import sys
import phi3ov

model = phi3ov.load_model(sys.argv[1], device="CPU", engine=sys.argv[2])
stream = phi3ov.Phi3Chat(model).stream("Tell me everything.", max_new_tokens=900)
next(stream)
print("under way", flush=True)
"""


@pytest.mark.parametrize("engine", ENGINES)
def test_the_interpreter_may_exit_in_the_middle_of_an_answer(engine: EngineName, zoo: Zoo) -> None:
    """No crash, no hang, return code 0."""
    done = subprocess.run(
        [sys.executable, "-c", _LEAVE, str(zoo.artifact(ROW)), engine],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "under way\n"
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "Fatal" not in done.stderr
