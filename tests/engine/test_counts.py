"""What speed depends on, as counts instead of seconds: a regression that a busy machine shows too.

A forward pass is one reading of all weights, so passes per answer are what decoding costs;
tokens read per turn are what the first token waits for. genai counts neither for the outside, so
`SteppedPipeline` stands in for its `LLMPipeline`: the scheduler that the engine configured, on
the same export, with each forward pass asked for, and counted, one by one.
"""

from __future__ import annotations

import gc
import math
import os
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openvino_genai
import pytest

from phi3ov import Artifact, Phi3Chat
from phi3ov.answer.token_stream import TokenRequest
from phi3ov.engine import pipeline
from phi3ov.engine.worker import child as worker_process
from phi3ov.engine.worker.protocol import Load, Submit
from phi3ov.model import Phi3Model

from .conftest import LoadModel, Zoo
from .truth import prompt_text

ROW = "phi-3-mini-4k"
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
MESSAGES = (9, 40, 1, 25, 64, 7)
"""Lengths of a chat's messages, in tokens."""


class SteppedPipeline:
    """Answers as `LLMPipeline` does with paged attention, and counts the forward passes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._requests = 0
        self.passes: list[int] = []

    def __call__(self, *arguments: Any, scheduler_config: Any, **_properties: Any) -> Any:
        """Take the place of the class: the engine's arguments, except that the graph is a file."""
        device = arguments[3]
        self._batch: Any = openvino_genai.ContinuousBatchingPipeline(
            str(self._folder), scheduler_config, device, EXACT
        )
        return self

    def generate(self, prompt: Any, config: Any, streamer: Any) -> Any:
        """Answer one request, step by step."""
        config.ignore_eos = not config.stop_token_ids  # else the folder's would end the answer
        handle = self._batch.add_request(self._requests, prompt, config)
        self._requests += 1
        self.passes.append(0)
        tokens: list[int] = []
        while self._batch.has_non_finished_requests():
            self._batch.step()
            self.passes[-1] += 1
            while handle.can_read():
                got = next(iter(handle.read().values())).generated_ids
                tokens += got
                streamer.write(got)
        return SimpleNamespace(tokens=[tokens])


@pytest.fixture
def stepped(
    zoo: Zoo, load: LoadModel, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], tuple[Phi3Model, list[int]]]:
    """Load a model on a `SteppedPipeline`; nothing ends its answers early."""
    artifact = zoo.artifact(ROW)

    def load_stepped() -> tuple[Phi3Model, list[int]]:
        stand_in = SteppedPipeline(artifact)
        monkeypatch.setattr(openvino_genai, "LLMPipeline", stand_in)
        return _without_stops(load(artifact, engine="pipeline")), stand_in.passes

    return load_stepped


def _without_stops(model: Phi3Model) -> Phi3Model:
    model.tokenizer.stop_tokens = {}
    return model


def test_a_turn_reads_its_message_and_nothing_before(
    stepped: Callable[[], tuple[Phi3Model, list[int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each turn of a chat reads what is new in its prompt, and the last token of the answer."""
    monkeypatch.setattr(pipeline, "PREFILL_CHUNK_TOKENS", 1)  # a forward pass per token read
    model, passes = stepped()
    chat, answer_tokens, known = Phi3Chat(model), 5, 0
    for turn, length in enumerate(MESSAGES):
        reply = chat.generate(prompt_text(length, seed=turn), max_new_tokens=answer_tokens)
        read = passes[-1] - (answer_tokens - 1)
        assert read == reply.usage.prompt_tokens - known, f"turn {turn}"
        known = reply.usage.prompt_tokens + answer_tokens - 1  # the last token is not computed


@pytest.mark.parametrize("prompt_tokens", [10, 300])
def test_an_answer_takes_one_forward_pass_per_token(
    prompt_tokens: int,
    stepped: Callable[[], tuple[Phi3Model, list[int]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A prompt is read in whole chunks, the last of which gives the first token."""
    monkeypatch.setattr(pipeline, "PREFILL_CHUNK_TOKENS", 128)
    model, passes = stepped()
    model.complete(prompt_text(prompt_tokens), max_new_tokens=20)
    assert passes[-1] == math.ceil(prompt_tokens / 128) + 19


def test_chats_at_once_share_forward_passes(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight answers in the worker take as many forward passes as one."""
    steps = 0
    real = openvino_genai.ContinuousBatchingPipeline

    class Counted:
        def __init__(self, *arguments: Any, **properties: Any) -> None:
            self._real = real(*arguments, **properties)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

        def step(self) -> None:
            nonlocal steps
            steps += 1
            self._real.step()

    monkeypatch.setattr(openvino_genai, "ContinuousBatchingPipeline", Counted)
    artifact = Artifact.open(zoo.artifact(ROW))
    batch = worker_process._load(
        Load(
            folder=str(artifact.path),
            device="CPU",
            properties=EXACT,
            context_tokens=512,
            factors="none",
            max_running=8,
            blocks=64,
            block_tokens=32,
            candidate_tokens=0,
            ngram_tokens=0,
            draft_folder="",
            draft_factors="none",
        )
    )
    for number in range(8):
        ids = tuple(range(10 + number, 50 + number))
        request = TokenRequest(prompt_ids=ids, max_new_tokens=16, stop_ids=frozenset())
        batch.accept(Submit(number=number, request=request))
    produced = 0
    while not batch.idle:
        produced += sum(len(one.token_ids) for one in batch.step())
    assert (produced, steps) == (8 * 16, 16)


PACKAGES = {"archspec", "msgspec", "numpy", "openvino", "openvino_genai", "openvino_telemetry",
            "openvino_tokenizers", "packaging", "phi3ov", "platformdirs", "tokenizers",
            "typing_extensions"}  # fmt: skip
"""What a chat may import beside Python's own library."""


@pytest.mark.skipif(sys.gettrace() is not None, reason="coverage is imported there, too")
def test_a_chat_imports_only_what_it_needs(zoo: Zoo) -> None:
    """No torch, no transformers, no hub client: a chat's imports are counted by name."""
    code = """
import sys, phi3ov
light = len(sys.modules)
with phi3ov.load_model(sys.argv[1], device="CPU") as model:
    phi3ov.Phi3Chat(model).generate("abc", max_new_tokens=2)
top = {name.partition(".")[0] for name in sys.modules}
print(light, *sorted(top - set(sys.stdlib_module_names)))
"""
    command = [sys.executable, "-c", code, str(zoo.artifact(ROW))]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    light, *packages = result.stdout.split()
    assert {name for name in packages if not name.startswith("_")} <= PACKAGES
    assert int(light) < 100, "import phi3ov is meant to take no time"


@pytest.fixture
def traced() -> Iterator[None]:
    """Count the bytes that Python and NumPy allocate."""
    if sys.gettrace() is not None:
        pytest.skip("a tracer, such as coverage's, allocates too")
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.usefixtures("traced")
def test_a_turn_keeps_its_tokens_and_no_more(zoo: Zoo, load: LoadModel) -> None:
    """What forty turns leave in Python's memory is their ids and texts: 100 bytes a token."""
    model = _without_stops(load(zoo.artifact(ROW)))
    chat, kept = Phi3Chat(model), []
    for turn in range(50):
        chat.generate(prompt_text(4, seed=turn), max_new_tokens=2)
        if turn in (9, 49):
            gc.collect()
            kept.append((tracemalloc.get_traced_memory()[0], len(chat.token_ids)))
    (early_bytes, early_tokens), (late_bytes, late_tokens) = kept
    assert late_bytes - early_bytes < 100 * (late_tokens - early_tokens)


@pytest.mark.usefixtures("traced")
def test_loading_copies_no_weights(zoo: Zoo, load: LoadModel, tmp_path: Path) -> None:
    """Python allocates as much for a large file of weights as for a small one: it is mapped."""
    folder = shutil.copytree(zoo.artifact(ROW), tmp_path / "large")
    (folder / "phi3ov.json").unlink()  # it knows the size
    weights, added = folder / "openvino_model.bin", 100_000_000
    os.truncate(weights, weights.stat().st_size + added)
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    load(folder)
    assert tracemalloc.get_traced_memory()[1] - before < added / 2


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux which pages are resident")
def test_mapped_weights_leave_memory(zoo: Zoo, load: LoadModel) -> None:
    """The export's file takes next to no memory once its weights were repacked, nor later on."""
    weights = zoo.artifact(ROW) / "openvino_model.bin"
    model = load(zoo.artifact(ROW))
    assert _resident_bytes(weights) == 0
    for _ in range(pipeline.ANSWERS_PER_DROP):
        model.complete("abc", max_new_tokens=4)
    assert _resident_bytes(weights) == 0


def _resident_bytes(file: Path) -> int:
    """Return how much of a mapped file this process holds, by Linux's own account."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if "-" in name.split(" ", 1)[0]:
            inside = line.endswith(str(file))
        elif inside and name == "Rss":
            total += 1024 * int(value.split()[0])
    return total
