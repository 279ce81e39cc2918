"""The worker killed and the program interrupted in each phase: no hang, no zombie, no orphan."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import phi3ov
from phi3ov import EngineCrashedError, Message, Phi3Chat
from phi3ov.artifact.folder import MODEL_BIN
from phi3ov.engine.protocol import EngineName
from tests.inside import child_of

from .conftest import LoadModel, Zoo
from .test_worker import is_running, kill, pid_of, start, wait_until
from .truth import prompt_text

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kills with POSIX signals")

ENGINES: tuple[EngineName, ...] = ("pipeline", "worker")
ROW = "phi-4"
LONG = 900


def test_killed_before_all_prompts_are_read(zoo: Zoo, load: LoadModel) -> None:
    """Those without a token yet fail with nothing, those with some keep them; then all is well."""
    model = load(zoo.artifact(ROW), engine="worker")
    chats = [Phi3Chat(model) for _ in range(6)]
    streams = [chats[0].stream(prompt_text(20), max_new_tokens=LONG)]
    begun = next(streams[0])
    os.kill(pid_of(model), signal.SIGSTOP)  # it reads none of the prompts that follow
    streams += [
        chat.stream(prompt_text(LONG, seed), max_new_tokens=50)
        for seed, chat in enumerate(chats[1:])
    ]
    kill(model)
    partial = []
    for stream in streams:
        with pytest.raises(EngineCrashedError, match="SIGKILL") as caught:
            stream.drain()
        partial.append(caught.value.partial_text)
    assert partial[0].startswith(begun)
    assert partial[1:] == [""] * 5
    assert all(chat.messages == () for chat in chats)
    assert len(chats[-1].generate(prompt_text(9), max_new_tokens=5).token_ids) == 5


_WAIT_FOR_EVER = """
import pathlib, time

pathlib.Path(__file__).with_name("started").touch()
time.sleep(600)
"""


def test_killed_while_it_loads_again(
    zoo: Zoo, load: LoadModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request that started the new child fails with it; the next starts another."""
    model = load(zoo.artifact(ROW), engine="worker")
    chat = Phi3Chat(model)
    kill(model)
    (tmp_path / "sitecustomize.py").write_text(_WAIT_FOR_EVER, encoding="utf-8")
    with monkeypatch.context() as patched:
        patched.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
        stream = chat.stream(prompt_text(9), max_new_tokens=5)
        wait_until((tmp_path / "started").exists)
        kill(model)
        with pytest.raises(EngineCrashedError):
            stream.drain()
    assert len(chat.generate(prompt_text(9), max_new_tokens=5).token_ids) == 5


def test_a_dead_child_leaves_no_zombie(zoo: Zoo, load: LoadModel) -> None:
    """The system forgets each child that was killed, and the last when the model is closed."""
    model = load(zoo.artifact(ROW), engine="worker")
    pids = []
    for _ in range(3):
        pids.append(pid_of(model))
        kill(model)
        model.complete("abc", max_new_tokens=2)
    pids.append(pid_of(model))
    model.close()
    for pid in pids:
        with pytest.raises(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def test_a_batch_survives_the_death_of_its_worker(zoo: Zoo, load: LoadModel) -> None:
    """Conversations that were in it are asked again; every answer is the one without a death."""
    model = load(zoo.artifact(ROW), engine="worker")
    batch = [[Message("user", prompt_text(10, seed))] for seed in range(12)]
    expected = [one.reply.token_ids for one in model.generate_batch(batch, max_new_tokens=30)]
    results = model.iter_batch(batch, max_new_tokens=30)
    answers: dict[int, tuple[int, ...]] = {}
    for result in results:
        if not answers:
            kill(model)
        answers[result.index] = result.reply.token_ids
    assert [answers[index] for index in range(12)] == expected


_FAILING_STEP = """
from phi3ov.engine.worker.batch import Batch

step, steps = Batch.step, []

def fail_once(batch):
    steps.append(None)
    if len(steps) > 60:
        raise RuntimeError("Check failed in native code")
    return step(batch)

Batch.step = fail_once
"""


def test_an_exception_in_the_workers_step_is_a_crash_that_tells_why(
    zoo: Zoo, load: LoadModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Open answers keep their partial text, and the next request starts a new child."""
    (tmp_path / "sitecustomize.py").write_text(_FAILING_STEP, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    model = load(zoo.artifact(ROW), engine="worker", warm_up=False)
    with pytest.raises(EngineCrashedError, match="Check failed in native code") as raised:
        model.complete("abc", max_new_tokens=200)
    assert raised.value.partial_text
    monkeypatch.delenv("PYTHONPATH")
    assert len(model.complete("abc", max_new_tokens=100).token_ids) == 100


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="asks the system what is mapped")
@pytest.mark.parametrize("engine", ["pipeline", "paged", "transformers"])
def test_a_closed_model_lets_its_weights_go(engine: EngineName, zoo: Zoo) -> None:
    """While the closed model is still held, as a service holds the one that it replaces."""
    weights = zoo.artifact(ROW) / MODEL_BIN

    def mapped() -> bool:
        return str(weights.resolve()) in Path("/proc/self/maps").read_text(encoding="utf-8")

    gc.collect()  # what earlier tests left in cycles
    assert not mapped()
    model = phi3ov.load_model(zoo.artifact(ROW), device="CPU", engine=engine)
    reply = model.complete("abc", max_new_tokens=4)
    assert mapped()
    model.close()
    assert not mapped()
    assert len(reply.token_ids) == 4


@pytest.mark.parametrize("engine", ["pipeline", "worker"])
def test_clearing_the_cache_clears_what_was_queued_before_it(
    engine: EngineName, zoo: Zoo, load: LoadModel
) -> None:
    """It takes its turn, so that nothing of the requests before it is left."""
    model = load(zoo.artifact(ROW), engine=engine)
    prompt = prompt_text(100, 3)
    first = start(model, prompt_text(20), 400)
    second = start(model, prompt, 4)
    model.clear_cache()
    assert first.drain().finish_reason == second.drain().finish_reason == "length"
    assert model.complete(prompt, max_new_tokens=4).usage.cached_tokens == 0


def test_close_while_threads_generate(zoo: Zoo, load: LoadModel) -> None:
    """Every thread comes back, with a cancelled reply or an error, and none hangs."""
    model = load(zoo.artifact(ROW), engine="worker")

    def ask(seed: int) -> str:
        try:
            reply = Phi3Chat(model).generate(prompt_text(20, seed), max_new_tokens=900)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is named
            return type(error).__name__
        return reply.finish_reason

    with ThreadPoolExecutor(16) as threads:
        asked = [threads.submit(ask, seed) for seed in range(16)]
        child = child_of(model)
        wait_until(lambda: len(child.streams) == 16)
        model.close()
        assert {one.result(timeout=60) for one in asked} <= {"cancelled", "StateError"}


_INTERRUPTED = """
import psutil
import asyncio, os, signal, sys, threading
import phi3ov

def interrupt_at_first_token(read=phi3ov.ReplyStream.read):
    def read_and_interrupt(stream, *, wait=False):
        piece = read(stream, wait=wait)
        if piece and not told:
            told.append(1)
            os.kill(os.getpid(), signal.SIGINT)
        return piece
    phi3ov.ReplyStream.read = read_and_interrupt

told = []
interrupt_at_first_token()
model = phi3ov.load_model(sys.argv[1], device="CPU", engine=sys.argv[2])
chat = phi3ov.Phi3Chat(model)
try:
    if sys.argv[3] == "asyncio":
        asyncio.run(chat.agenerate("Tell me everything.", max_new_tokens=900))
    else:
        chat.generate("Tell me everything.", max_new_tokens=900)
except KeyboardInterrupt:
    print("interrupted", len(chat.messages))
print(len(chat.generate("abc", max_new_tokens=5).token_ids))
if sys.argv[2] == "worker":
    print(*(child.pid for child in psutil.Process().children()))
"""


@pytest.mark.parametrize("how", ["plain", "asyncio"])
@pytest.mark.parametrize("engine", ENGINES)
def test_ctrl_c_ends_the_answer_and_leaves_the_chat_usable(
    engine: EngineName, how: str, zoo: Zoo
) -> None:
    """KeyboardInterrupt gets out, the history is as it was, the next turn is answered."""
    done = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED, str(zoo.artifact(ROW)), engine, how],
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stderr) == (0, "")
    said = done.stdout.split("\n")
    assert said[:2] == ["interrupted 0", "5"]
    assert engine == "pipeline" or not is_running(int(said[2]))


_UNHANDLED = """
import psutil
import os, signal, sys
import phi3ov

model = phi3ov.load_model(sys.argv[1], device="CPU", engine=sys.argv[2])
stream = phi3ov.Phi3Chat(model).stream("Tell me everything.", max_new_tokens=900)
next(stream)
print(*(child.pid for child in psutil.Process().children()) or [0], flush=True)
os.kill(os.getpid(), getattr(signal, sys.argv[3]))
stream.drain()
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL", "SIGABRT"])
def test_whatever_kills_the_program_ends_the_worker(name: str, zoo: Zoo) -> None:
    """Ctrl-C that nobody catches, termination, the out-of-memory killer, a native abort."""
    done = subprocess.run(
        [sys.executable, "-c", _UNHANDLED, str(zoo.artifact(ROW)), "worker", name],
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == -getattr(signal, name)
    wait_until(lambda: not is_running(int(done.stdout)))


def test_a_task_that_is_cancelled_while_the_worker_dies_ends(zoo: Zoo, load: LoadModel) -> None:
    """Two ends at once are still one end, and the loop closes."""
    model = load(zoo.artifact(ROW), engine="worker")
    chat = Phi3Chat(model)
    child = child_of(model)

    async def run() -> None:
        task = asyncio.create_task(chat.agenerate(prompt_text(20), max_new_tokens=900))
        await asyncio.sleep(0.05)
        os.kill(child.process.pid, signal.SIGKILL)
        task.cancel()
        with pytest.raises((asyncio.CancelledError, EngineCrashedError)):
            await task

    asyncio.run(run())
    child.process.wait()
    assert chat.messages == ()
    assert len(chat.generate(prompt_text(9), max_new_tokens=5).token_ids) == 5
