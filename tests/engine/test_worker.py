"""The worker engine: many answers at once from a child process that may die at any moment."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import pytest

import phi3ov
from phi3ov import (
    DeviceError,
    EngineCrashedError,
    GenerationError,
    Message,
    Phi3Chat,
    Phi3Model,
    QueueFullError,
    StateError,
)
from phi3ov.answer.token_stream import TokenRequest, TokenStream
from phi3ov.engine.pinned import pinned_folder
from phi3ov.engine.protocol import EngineSetup
from phi3ov.engine.worker import process as worker_process
from phi3ov.engine.worker import protocol as worker_protocol
from phi3ov.engine.worker.engine import WorkerEngine
from phi3ov.runtime.rope import ContextChoice
from tests.inside import child_of, engine_of

from .checkpoints import BORDER
from .conftest import EXACT, LoadModel, Zoo
from .truth import greedy, prompt_text

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kills with POSIX signals")

ROW = "phi-4"
SHORT, FAR = 16, 900


def pid_of(model: Phi3Model) -> int:
    """Return the process id of the model's worker."""
    return child_of(model).process.pid


def kill(model: Phi3Model) -> None:
    """Kill the worker as the out-of-memory killer does, and wait until it is dead."""
    child = child_of(model)
    os.kill(child.process.pid, signal.SIGKILL)
    child.process.wait()


def is_running(pid: int) -> bool:
    """Whether there is such a process; one that only waits to be reaped is gone."""
    done = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], check=False, capture_output=True, text=True
    )
    return done.stdout.strip()[:1] not in ("", "Z")


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for something that happens by itself; the test's timeout ends it if it does not."""
    while not condition():
        time.sleep(0.01)


# --- the same answers -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "context"),
    [(ROW, None), ("phi-3-mini-4k", None), ("phi-3.5-mini", None), ("phi-3.5-mini", 512)],
)
def test_worker_equals_transformers(
    row: str, context: int | None, zoo: Zoo, load: LoadModel
) -> None:
    """With a sliding window, with short and with long factors, in chunks and from the cache."""
    model = load(zoo.artifact(row), engine="worker", context_tokens=context)
    pin: Any = {"short": "short", "long": "long"}.get(model.context.factors)
    longest = 40 if row == "phi-3.5-mini" and context is None else 100
    for seed in range(2):
        for length in (9, longest):
            prompt = prompt_text(length, seed)
            truth = greedy(zoo.checkpoint(row), model.tokenizer.encode_raw(prompt), SHORT, pin=pin)
            assert model.complete(prompt, max_new_tokens=SHORT).token_ids == truth


def test_an_answer_across_the_longrope_border_is_right_while_others_run(
    zoo: Zoo, load: LoadModel
) -> None:
    """Short and long requests in one batch do not change each other's factors."""
    model = load(zoo.artifact("phi-3.5-mini"), engine="worker", context_tokens=512)
    prompts = [prompt_text(length) for length in (10, BORDER - 5, 200)]
    truths = [
        greedy(
            zoo.checkpoint("phi-3.5-mini"),
            model.tokenizer.encode_raw(prompt),
            SHORT,
            pin="long",
        )
        for prompt in prompts
    ]
    streams = [start(model, prompt, SHORT) for prompt in prompts]
    assert [stream.drain().token_ids for stream in streams] == truths


def start(model: Phi3Model, prompt: str, max_new_tokens: int) -> phi3ov.ReplyStream:
    """Start a raw prompt."""
    return model.stream_prompt(prompt, max_new_tokens=max_new_tokens)


@pytest.mark.parametrize("count", [8, 32])
def test_many_at_once_get_the_answers_they_would_get_alone(
    count: int, zoo: Zoo, load: LoadModel
) -> None:
    """Threads that all start together, prompts and answers of various lengths."""
    model = load(zoo.artifact(ROW), engine="worker")
    prompts = [prompt_text(20 + 7 * seed, seed) for seed in range(count)]
    truths = [
        greedy(zoo.checkpoint(ROW), model.tokenizer.encode_raw(prompt), SHORT) for prompt in prompts
    ]
    together = threading.Barrier(count)

    def ask(index: int) -> tuple[int, ...]:
        together.wait()
        return model.complete(prompts[index], max_new_tokens=4 + index % 13).token_ids

    with ThreadPoolExecutor(count) as threads:
        answers = list(threads.map(ask, range(count)))
    assert answers == [truth[: 4 + index % 13] for index, truth in enumerate(truths)]


def test_a_seed_draws_the_same_alone_and_in_a_batch(zoo: Zoo, load: LoadModel) -> None:
    """The generator of random numbers belongs to the request."""
    model = load(zoo.artifact(ROW), engine="worker")
    prompt = [Message("user", prompt_text(30))]

    def draw(seed: int) -> tuple[int, ...]:
        replies = model.generate_batch([prompt], temperature=2.0, seed=seed, max_new_tokens=SHORT)
        return replies[0].reply.token_ids

    alone = [draw(seed) for seed in range(4)]
    assert len(set(alone)) == 4
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(draw, range(4))) == alone


def test_a_batch_comes_back_in_order(zoo: Zoo, load: LoadModel) -> None:
    """More conversations than there are places; as from the pipeline, one by one."""
    conversations = [[Message("user", prompt_text(5 + seed, seed))] for seed in range(40)]
    worker, pipeline = (
        load(zoo.artifact(ROW), engine=engine).generate_batch(conversations, max_new_tokens=5)
        for engine in ("worker", "pipeline")
    )
    assert [one.reply.token_ids for one in worker] == [one.reply.token_ids for one in pipeline]


def test_a_chat_alone_reports_what_was_cached(zoo: Zoo, load: LoadModel) -> None:
    """As the pipeline does, whose numbers test_cached_tokens.py measures."""

    def cached(engine: str) -> list[int]:
        chat = Phi3Chat(load(zoo.artifact(ROW), engine=engine))
        return [
            chat.generate(prompt_text(length), max_new_tokens=7).usage.cached_tokens
            for length in (9, 40, 1, 25, 64)
        ]

    assert cached("worker") == cached("pipeline")


# --- ends -------------------------------------------------------------------------------------


def test_cancelling_one_of_many_leaves_the_others_alone(zoo: Zoo, load: LoadModel) -> None:
    """It ends as cancelled, early, and the others get every token."""
    model = load(zoo.artifact(ROW), engine="worker")
    prompts = [prompt_text(30, seed) for seed in range(4)]
    alone = [model.complete(prompt, max_new_tokens=200).token_ids for prompt in prompts]
    chat = Phi3Chat(model)
    doomed = chat.stream(prompt_text(40), max_new_tokens=FAR)
    others = [start(model, prompt, 200) for prompt in prompts]
    next(doomed)
    threading.Thread(target=doomed.cancel).start()
    assert doomed.drain().finish_reason == "cancelled"
    assert doomed.reply.usage.completion_tokens < FAR
    assert chat.messages == ()
    assert [stream.drain().token_ids for stream in others] == alone


def test_a_cancelled_request_leaves_the_queue(zoo: Zoo) -> None:
    """One that waits is dropped unseen; a dropped stream cancels itself."""
    engine = open_engine(zoo, max_running=1)
    try:
        first, second = engine.submit(request(FAR)), engine.submit(request(FAR, seed=1))
        next(first)
        second.cancel()
        assert list(second) == []
        first.cancel()
        assert sum(map(len, first)) < FAR
    finally:
        engine.close()


def test_requests_get_their_places_first_come_first_served(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one place, each begins when the one before it has ended."""
    engine = open_engine(zoo, max_running=1)
    seen: list[TokenStream] = []
    put = TokenStream.put

    def note(stream: TokenStream, token_ids: list[int]) -> None:
        seen.append(stream)
        put(stream, token_ids)

    monkeypatch.setattr(TokenStream, "put", note)
    try:
        streams = [engine.submit(request(5, seed)) for seed in range(5)]
        assert [sum(map(len, stream)) for stream in streams] == [5] * 5
    finally:
        engine.close()
    turns = [one for index, one in enumerate(seen) if index == 0 or seen[index - 1] is not one]
    assert turns == streams


def test_a_full_queue_refuses_and_recovers(zoo: Zoo) -> None:
    """The error is typed, the engine goes on, and a place that becomes free can be taken."""
    engine = open_engine(zoo, max_running=1, max_waiting=1)
    try:
        pid = engine._state.living_child().process.pid
        os.kill(pid, signal.SIGSTOP)
        first, second = engine.submit(request(5)), engine.submit(request(5, seed=1))
        with pytest.raises(QueueFullError, match="2 requests"):
            engine.submit(request(5))
        os.kill(pid, signal.SIGCONT)
        assert sum(map(len, first)) == sum(map(len, second)) == 5
        assert sum(map(len, engine.submit(request(5)))) == 5
    finally:
        engine.close()


def open_engine(zoo: Zoo, **numbers: int) -> WorkerEngine:
    """Open the engine itself."""
    artifact = phi3ov.Artifact.open(zoo.artifact(ROW))
    context = ContextChoice(tokens=1024, factors="none")
    setup = EngineSetup(
        artifact=artifact,
        device="CPU",
        config=EXACT,
        context=context,
        limits=phi3ov.RequestLimits(**numbers),
    )
    return WorkerEngine(setup)


def request(max_new_tokens: int, seed: int = 0) -> TokenRequest:
    """Ask for random ids to be continued; nothing stops the answer before its limit."""
    ids = tuple(prompt_text(40, seed).encode())
    return TokenRequest(prompt_ids=ids, max_new_tokens=max_new_tokens, stop_ids=frozenset())


def test_a_request_that_fits_no_line_is_refused_and_the_others_go_on(
    zoo: Zoo, load: LoadModel
) -> None:
    """The child would refuse the line, end, and take everybody's answer with it."""
    model = load(zoo.artifact(ROW), engine="worker")
    other = start(model, prompt_text(20), FAR)
    grammar = "answer ::= " + "|".join(['"a"'] * 2_500_000)
    request = TokenRequest(prompt_ids=(1,), max_new_tokens=4, stop_ids=frozenset(), grammar=grammar)
    before = pid_of(model)
    with pytest.raises(phi3ov.OptionError, match=r"takes \d+ bytes"):
        engine_of(model, WorkerEngine).submit(request)
    assert len(other.drain().token_ids) == FAR
    assert pid_of(model) == before


def test_closing_ends_streams_and_child(zoo: Zoo, load: LoadModel) -> None:
    """Running and waiting answers end as cancelled; the child is gone when close() returns."""
    model = load(zoo.artifact(ROW), engine="worker")
    streams = [Phi3Chat(model).stream(prompt_text(30, seed), max_new_tokens=FAR) for seed in (1, 2)]
    next(streams[0])
    pid = pid_of(model)
    model.close()
    assert not is_running(pid)
    assert [stream.drain().finish_reason for stream in streams] == ["cancelled"] * 2
    with pytest.raises(StateError, match="closed"):
        model.complete("a", max_new_tokens=1)
    model.close()


# --- deaths -----------------------------------------------------------------------------------


def test_killed_while_loading(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    """load_model says so instead of waiting for ever."""
    popen = subprocess.Popen

    def start_and_kill(*args: Any, **options: Any) -> Any:
        process = popen(*args, **options)
        process.kill()
        return process

    monkeypatch.setattr(subprocess, "Popen", start_and_kill)
    with pytest.raises(EngineCrashedError, match="SIGKILL"):
        phi3ov.load_model(zoo.artifact(ROW), device="CPU", engine="worker")


def test_the_process_starts_before_the_device_is_known(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once: the model loads in it. If there is no such device, it ends with the error."""
    started = []
    popen = subprocess.Popen

    def note(*args: Any, **options: Any) -> Any:
        started.append(popen(*args, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", note)
    with phi3ov.load_model(zoo.artifact(ROW), device="CPU", engine="worker") as model:
        assert [process.pid for process in started] == [pid_of(model)]
    started.clear()
    with pytest.raises(DeviceError):
        phi3ov.load_model(zoo.artifact(ROW), device="GPU.7", engine="worker")
    [process] = started
    assert process.poll() is not None


def test_killed_while_idle(zoo: Zoo, load: LoadModel) -> None:
    """The next turn starts a new child and goes on with the conversation."""
    model, other = (load(zoo.artifact(ROW), engine="worker") for _ in range(2))
    chat, truth = Phi3Chat(model), Phi3Chat(other)
    for turn in range(3):
        question = prompt_text(20, turn)
        answer = chat.generate(question, max_new_tokens=SHORT)
        assert answer.token_ids == truth.generate(question, max_new_tokens=SHORT).token_ids
        kill(model)


def test_killed_before_the_first_token(zoo: Zoo, load: LoadModel) -> None:
    """Between request and answer, and while the new child loads: an error, then a new child."""
    model = load(zoo.artifact(ROW), engine="worker")
    chat = Phi3Chat(model)
    for _ in range(2):
        os.kill(pid_of(model), signal.SIGSTOP)
        stream = chat.stream(prompt_text(500), max_new_tokens=SHORT)
        kill(model)
        with pytest.raises(EngineCrashedError) as caught:
            stream.drain()
        assert caught.value.partial_text == ""
        assert chat.messages == ()
    assert len(chat.generate(prompt_text(500), max_new_tokens=SHORT).token_ids) == SHORT


def test_killed_in_the_middle_of_answers(zoo: Zoo, load: LoadModel) -> None:
    """Every open stream fails with its own partial text; the histories stay as they were."""
    model = load(zoo.artifact(ROW), engine="worker")
    chats = [Phi3Chat(model) for _ in range(3)]
    before = []
    for index, chat in enumerate(chats):
        chat.generate(prompt_text(20, index), max_new_tokens=SHORT)
        before.append(chat.messages)
    streams = [
        chat.stream(prompt_text(30, index), max_new_tokens=FAR) for index, chat in enumerate(chats)
    ]
    begun = [next(stream) for stream in streams]
    kill(model)
    for stream, begin in zip(streams, begun, strict=True):
        with pytest.raises(EngineCrashedError, match="SIGKILL") as caught:
            stream.drain()
        assert caught.value.partial_text.startswith(begin)
    assert [chat.messages for chat in chats] == before
    for chat in chats:
        chat.generate(prompt_text(30), max_new_tokens=SHORT)
        assert len(chat.messages) == 4


def test_one_new_child_serves_all_who_ask_at_once(
    zoo: Zoo, load: LoadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen threads find the child dead."""
    model = load(zoo.artifact(ROW), engine="worker")
    prompt = prompt_text(30)
    truth = model.complete(prompt, max_new_tokens=SHORT).token_ids
    started = []
    popen = subprocess.Popen

    def note(*args: Any, **options: Any) -> Any:
        started.append(args)
        return popen(*args, **options)

    monkeypatch.setattr(subprocess, "Popen", note)
    kill(model)
    with ThreadPoolExecutor(16) as threads:
        answers = threads.map(
            lambda _: model.complete(prompt, max_new_tokens=SHORT).token_ids, range(16)
        )
        assert list(answers) == [truth] * 16
    assert len(started) == 1


_PARENT = """
import os, sys, time
import psutil
import phi3ov

model = phi3ov.load_model(sys.argv[1], device="CPU", engine="worker")
chat = phi3ov.Phi3Chat(model)
[pid] = (child.pid for child in psutil.Process().children())
if sys.argv[2] == "idle":
    print(pid, flush=True)
    time.sleep(600)
stream = chat.stream("Tell me everything.", max_new_tokens=900)
next(stream)
print(pid, flush=True)
if sys.argv[2] == "busy":
    time.sleep(600)
"""


@pytest.mark.parametrize("doing", ["idle", "busy"])
def test_the_child_dies_with_its_parent(doing: str, zoo: Zoo) -> None:
    """Even if the parent is killed and can say nothing."""
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT, str(zoo.artifact(ROW)), doing], stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    wait_until(lambda: not is_running(child))


def test_the_interpreter_may_exit_without_close(zoo: Zoo) -> None:
    """In the middle of an answer: return code 0, nothing on stderr, no orphan."""
    done = subprocess.run(
        [sys.executable, "-c", _PARENT, str(zoo.artifact(ROW)), "leave"],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert not is_running(int(done.stdout))


def test_the_current_folder_does_not_matter(zoo: Zoo, tmp_path: Path) -> None:
    """It may hold modules with names of the standard library's, or be gone."""
    script = """
import os, sys
import phi3ov
if sys.argv[2] == "gone":
    os.rmdir(os.getcwd())
with phi3ov.load_model(sys.argv[1], device="CPU", engine="worker") as model:
    print(len(model.complete("abc", max_new_tokens=4).token_ids))
"""
    trap, gone = tmp_path / "trap", tmp_path / "gone"
    trap.mkdir()
    gone.mkdir()
    (trap / "signal.py").write_text("raise SystemExit('the wrong module')", encoding="utf-8")
    for folder in (trap, gone):
        done = subprocess.run(
            [sys.executable, "-P", "-c", script, str(zoo.artifact(ROW)), folder.name],
            check=False,
            capture_output=True,
            text=True,
            cwd=folder,
            timeout=300,
        )
        assert (done.returncode, done.stdout) == (0, "4\n"), done.stderr


def test_pinning_leaves_nothing_behind(
    zoo: Zoo, load: LoadModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder with the changed graph is gone when the model is loaded; the export is whole."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    artifact = zoo.artifact("phi-3.5-mini")
    before = sorted(artifact.parent.iterdir())
    model = load(artifact, engine="worker")
    assert list(tmp_path.iterdir()) == []
    assert sorted(artifact.parent.iterdir()) == before
    assert len(model.complete("abc", max_new_tokens=4).token_ids) == 4
    model.artifact.verify()


@pytest.mark.trap(
    "A clear_cache() that is killed half-way leaves no folder, and the next answer comes from a "
    "whole model.",
    about="Machines",
)
def test_a_killed_clear_cache_leaves_no_folder(
    zoo: Zoo, load: LoadModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child dies while it builds its pipeline anew; its parent removes what it had made."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    model = load(zoo.artifact("phi-3.5-mini"), engine="worker")
    engine = engine_of(model, WorkerEngine)
    engine.forget_cache()
    wait_until(lambda: any(tmp_path.iterdir()))
    child = child_of(model)
    child.process.kill()
    wait_until(lambda: child.dead)
    assert list(tmp_path.iterdir()) == []
    assert len(model.complete("abc", max_new_tokens=4).token_ids) == 4
    model.clear_cache()
    assert list(tmp_path.iterdir()) == []


def _no_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_options: object) -> NoReturn:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", refuse)
    monkeypatch.setattr(tempfile, "mkdtemp", refuse)


@pytest.mark.trap(
    "Without a temporary folder that can be written, as in a read-only container, the pipeline "
    "engine loads and answers; the worker needs one for LongRoPE factors alone, and says what "
    "to set.",
    about="Machines",
)
@pytest.mark.parametrize("row", ["phi-3-mini-4k", "phi-3.5-mini"])
def test_the_pipeline_needs_no_temporary_folder(
    row: str, zoo: Zoo, load: LoadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container that cannot be written to it loads, answers and clears its cache."""
    artifact = zoo.artifact(row)
    _no_temporary_folder(monkeypatch)
    model = load(artifact)
    assert model.complete("abc", max_new_tokens=4, choices=("yes",)).text == "yes"
    model.clear_cache()


def test_the_worker_says_what_to_set_without_a_temporary_folder(
    zoo: Zoo, load: LoadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It needs one for LongRoPE's factors only."""
    with_factors, without = zoo.artifact("phi-3.5-mini"), zoo.artifact("phi-3-mini-4k")
    _no_temporary_folder(monkeypatch)
    with pytest.raises(phi3ov.OptionError, match=r"Set TMPDIR.*engine='pipeline'"):
        load(with_factors, engine="worker")
    assert load(without, engine="worker").complete("abc", max_new_tokens=2).token_ids


def test_without_symbolic_links_a_hard_link_does(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows lets only some users make symbolic ones; where neither works, the error says so."""

    def refuse(*_args: object) -> None:
        raise OSError("not permitted")

    artifact = phi3ov.Artifact.open(zoo.artifact("phi-3.5-mini"))
    context = ContextChoice(tokens=64, factors="short")
    monkeypatch.setattr(Path, "symlink_to", refuse)
    with pinned_folder(artifact, context) as folder:
        weights = folder / "openvino_model.bin"
        assert weights.samefile(artifact.path / "openvino_model.bin")
    assert not folder.exists()
    artifact.verify()
    monkeypatch.setattr(Path, "hardlink_to", refuse)
    with (
        pytest.raises(phi3ov.OptionError, match="engine='pipeline'"),
        pinned_folder(artifact, context),
    ):
        pass


def test_a_frozen_program_is_refused(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sys.executable is the program itself, which would start itself without end."""
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(phi3ov.OptionError, match="engine='pipeline'"):
        open_engine(zoo)


# --- what the child says ----------------------------------------------------------------------


def say_instead(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Put another program in the child's place."""
    popen = subprocess.Popen

    def start_other(_command: list[str], **options: Any) -> Any:
        return popen([sys.executable, "-c", code], **options)

    monkeypatch.setattr(subprocess, "Popen", start_other)


@pytest.mark.parametrize(
    "code",
    [
        "print('Loading model...')",
        'print(\'{"kind":"ready","more":1}\')',
        "print('x' * 20_000_000)",
        "import sys; sys.stdout.buffer.write(bytes(range(256)) + b'\\n')",
    ],
)
def test_a_child_that_talks_nonsense_is_killed(
    code: str, zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it is that runs there, it is no worker."""
    say_instead(monkeypatch, code + "; import sys, time; sys.stdout.flush(); time.sleep(600)")
    with pytest.raises(EngineCrashedError, match="no worker sends"):
        open_engine(zoo)


def test_the_last_words_of_a_child_are_told(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash of native code explains itself on stderr, if anywhere."""
    say_instead(monkeypatch, "import sys; sys.stderr.write('out of paper'); sys.exit(3)")
    with pytest.raises(EngineCrashedError, match=r"exit code 3.*\n.*out of paper"):
        open_engine(zoo)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("DeviceError", DeviceError),
        ("UnsupportedModelError", phi3ov.UnsupportedModelError),
        ("ContextLengthError", GenerationError),
        ("Exception", GenerationError),
        ("annotations", GenerationError),
    ],
)
def test_errors_of_the_child_keep_their_type(
    name: str, kind: type[Exception], zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If they are phi3ov's."""
    report = {"kind": "failed", "error": name, "message": "so it is", "option": None}
    say_instead(monkeypatch, f"print({json.dumps(report)!r})")
    with pytest.raises(kind, match="so it is"):
        open_engine(zoo)


def test_a_property_that_the_device_does_not_know_is_refused(zoo: Zoo) -> None:
    """As by the other engines."""
    config = phi3ov.RuntimeConfig(properties={"NO_SUCH_PROPERTY": "1"})
    with pytest.raises(DeviceError, match="NO_SUCH_PROPERTY"):
        phi3ov.load_model(zoo.artifact(ROW), device="CPU", engine="worker", config=config)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such file names")
def test_a_folder_whose_name_is_not_utf8_is_refused_by_name(zoo: Zoo, tmp_path: Path) -> None:
    """Before a process starts, and with a way out."""
    folder = tmp_path / os.fsdecode(b"\xff")
    shutil.copytree(zoo.artifact(ROW), folder)
    with pytest.raises(phi3ov.OptionError, match="cannot be written in it"):
        phi3ov.load_model(folder, device="CPU", engine="worker")


def test_noise_on_stdout_does_not_reach_the_protocol() -> None:
    """What prints after the pipes were claimed prints to stderr."""
    code = """
import os
from phi3ov.engine.worker.startup import claim_pipes
commands, reports = claim_pipes()
os.write(1, b"native noise\\n")
print("python noise", flush=True)
os.system("echo noise of a child")
reports.write(commands.readline())
reports.flush()
assert os.read(0, 10) == b""
"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, input="line\n"
    )
    assert done.stdout == "line\n"
    assert done.stderr.split("\n")[:-1] == ["native noise", "python noise", "noise of a child"]


_CANCEL = worker_protocol.encode(worker_protocol.Cancel(number=1))
_PATHS = worker_protocol.encode_paths(tuple(sys.path))
START_CHILD = [
    sys.executable, "-S", "-c", worker_process.START_CODE, str(Path(phi3ov.__file__).parents[1])
]  # fmt: skip
"""Starts a worker process as the parent does."""


@pytest.mark.parametrize(
    ("sent", "code", "said"),
    [
        (b"nonsense\n", 2, "not a JSON list of folders"),
        (b"[3]\n", 2, "not a JSON list of folders"),
        (_CANCEL, 2, "not a JSON list of folders"),
        (_PATHS + b"nonsense\n", 2, "A line is not a command"),
        (_PATHS + _CANCEL, 1, "Cancel came before Load"),
    ],
)
def test_the_child_ends_when_its_parent_talks_nonsense(sent: bytes, code: int, said: str) -> None:
    """It says why and ends, although its parent still holds the pipe open."""
    with subprocess.Popen(
        START_CHILD, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(sent)
        child.stdin.flush()
        assert said in child.stdout.read().decode()
        assert child.wait() == code


@pytest.mark.parametrize("sent", [b"", _PATHS])
def test_the_child_ends_quietly_when_its_parent_has_gone(sent: bytes) -> None:
    """At the end of its input, wherever that comes."""
    done = subprocess.run(START_CHILD, check=False, capture_output=True, input=sent, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_ctrl_c_in_the_terminal_does_not_end_the_child(zoo: Zoo, load: LoadModel) -> None:
    """The terminal sends SIGINT to the whole group; who is interrupted is the parent's business."""
    model = load(zoo.artifact(ROW), engine="worker")
    chat = Phi3Chat(model)
    stream = chat.stream(prompt_text(20), max_new_tokens=50)
    os.kill(pid_of(model), signal.SIGINT)
    assert len(stream.drain().token_ids) == 50


_NOISE = """
import os
os.write(1, b"native noise\\n")
print("python noise", flush=True)
"""


def test_output_at_interpreter_start_does_not_reach_the_protocol(
    zoo: Zoo, load: LoadModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ``sitecustomize`` runs in the child too, and what it prints goes to the child's log."""
    (tmp_path / "sitecustomize.py").write_text(_NOISE, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    model = load(zoo.artifact(ROW), engine="worker")
    assert len(model.complete("abc", max_new_tokens=4).token_ids) == 4
    log = child_of(model).last_words
    wait_until(lambda: {"native noise", "python noise"} <= set(log))


@pytest.mark.parametrize("how", ["safe path", "shadowed modules"])
def test_the_child_starts_whatever_lies_beside_phi3ov(
    how: str, zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packages beside it that are called like Python's own, and PYTHONSAFEPATH, do no harm."""
    if how == "safe path":
        monkeypatch.setenv("PYTHONSAFEPATH", "1")
    packages = tmp_path / "packages"
    shutil.copytree(Path(phi3ov.__file__).parent, packages / "phi3ov")
    for name in ("queue", "typing", "dataclasses", "json"):
        (packages / f"{name}.py").write_text("raise RuntimeError('shadowed')\n", encoding="utf-8")
    script = f"""
import sys
sys.path.append({str(packages)!r})
sys.path[:] = [one for one in sys.path if one != {str(Path(phi3ov.__file__).parents[1])!r}]
sys.meta_path[:] = [one for one in sys.meta_path if "editable" not in repr(one)]
import phi3ov
assert phi3ov.__file__.startswith({str(packages)!r}), phi3ov.__file__
with phi3ov.load_model({str(zoo.artifact(ROW))!r}, device="CPU", engine="worker") as model:
    print(model.complete("abc", max_new_tokens=4).usage.completion_tokens)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout == "4\n", done.stderr


@pytest.mark.parametrize("who", ["child", "parent"])
def test_killed_while_loading_leaves_no_folder(
    who: str, zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder with the changed graph is removed by whichever of the two lives on."""
    script = """
import os, sys, threading
import phi3ov
from pathlib import Path
from phi3ov.engine.worker import process as worker

start = worker.start_process

def start_and_tell(**options):
    process = start(**options)
    if sys.argv[2] == "parent":
        print(process.pid, flush=True)
    else:
        threading.Thread(target=kill_when_pinned, args=(process,)).start()
    return process

def kill_when_pinned(process):
    while not any(Path(os.environ["TMPDIR"]).glob("*/*")):
        pass
    process.kill()

worker.start_process = start_and_tell
try:
    phi3ov.load_model(sys.argv[1], device="CPU", engine="worker")
except phi3ov.EngineCrashedError:
    print("crashed")
"""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    command = [sys.executable, "-c", script, str(zoo.artifact("phi-3.5-mini")), who]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        said = parent.stdout.readline()
        if who == "parent":
            wait_until(lambda: any(tmp_path.glob("*/*")))
            parent.kill()
    if who == "parent":
        wait_until(lambda: not is_running(int(said)))
    else:
        assert said == "crashed\n"
    assert list(tmp_path.iterdir()) == []
