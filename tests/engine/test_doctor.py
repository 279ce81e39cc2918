"""``phi3ov doctor`` with the CPU's engines, and with devices that are not there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import phi3ov
from phi3ov import DeviceError
from phi3ov.answer.token_stream import TokenRequest, TokenStream
from phi3ov.engine.protocol import EngineSetup, load_engine
from phi3ov.machine import doctor
from phi3ov.machine.doctor import PROMPTS, TOLERANCE_NATS
from phi3ov.runtime.devices import DeviceInfo

from .conftest import Zoo
from .truth import load_truth

ANSWER = 24
GOOD = 9
"""Tokens of an answer that the broken device computes as the CPU does."""
GARBAGE = 65


class Broken:
    """The CPU's engine, whose tokens are garbage from one token on."""

    def __init__(self, setup: EngineSetup) -> None:
        self._engine: Any = load_engine("pipeline")(setup)

    def submit(self, request: TokenRequest, **_options: Any) -> TokenStream:
        """Answer as the CPU does, then say the same token again and again."""
        real = self._engine.submit(request, wait=True)
        tokens = [token for chunk in real for token in chunk]
        stream = TokenStream(request)
        stream.put(tokens[:GOOD] + [GARBAGE] * (len(tokens) - GOOD))
        stream.end()
        return stream

    def close(self) -> None:
        """Close the CPU's engine."""
        self._engine.close()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU that computes garbage and an NPU whose driver does not start."""

    def open_engine(setup: EngineSetup, name: Any) -> Any:
        if setup.device == "NPU":
            raise DeviceError("OpenVINO cannot ask device='NPU': the driver does not start")
        if setup.device == "GPU.0":
            return Broken(replace(setup, device="CPU"))
        return load_engine(name)(setup)

    devices = [
        DeviceInfo(name=name, full_name=f"a {name}", memory_bytes=None, precisions=())
        for name in ("CPU", "GPU.0", "NPU")
    ]
    monkeypatch.setattr(doctor, "describe_devices", lambda: devices)
    monkeypatch.setattr(doctor, "load_engine", lambda name: lambda setup: open_engine(setup, name))


def first_wrong(row: str, zoo: Zoo, prompt: str) -> int:
    """Return from which token on the broken device is wrong to transformers in float32."""
    model = phi3ov.load_model(zoo.artifact(row), device="CPU", config=phi3ov.RuntimeConfig.exact())
    with model:
        ids = model.tokenizer.encode_prompt([phi3ov.Message("user", prompt)])
        request = TokenRequest(prompt_ids=tuple(ids), max_new_tokens=GOOD, stop_ids=frozenset())
        tokens = [token for chunk in model._engine.submit(request) for token in chunk]
    answer = tokens + [GARBAGE] * (ANSWER - GOOD)
    with torch.inference_mode():
        logits = load_truth(zoo.checkpoint(row))(
            torch.tensor([[*ids, *answer]]), use_cache=False
        ).logits[0, len(ids) - 1 : -1]
    behind = logits.max(dim=-1).values - logits[range(ANSWER), answer]
    return int((behind > TOLERANCE_NATS).nonzero()[0]) + 1


@pytest.mark.parametrize("row", ["phi-3-mini-4k", "phi-3.5-mini"])
def test_every_engine_of_the_cpu_is_right(row: str, zoo: Zoo) -> None:
    """Also where the context is short, so that the prompts are cut off."""
    diagnosis = phi3ov.diagnose(zoo.artifact(row), devices=["CPU"], progress=False)
    assert [found.verdict for found in diagnosis.findings] == ["right"] * 4, str(diagnosis)
    assert diagnosis.wrong == ()
    for found in diagnosis.findings:
        assert len(found.answers) == 2 * len(PROMPTS)


@pytest.mark.usefixtures("machine")
def test_garbage_is_found_from_its_first_token(zoo: Zoo) -> None:
    """As transformers in float32 finds it; a device that does not load is told."""
    prompt = PROMPTS[0]
    row = "phi-3-mini-4k"
    diagnosis = phi3ov.diagnose(
        zoo.artifact(row),
        engines=["pipeline"],
        config=phi3ov.RuntimeConfig.exact(),
        prompts=[prompt],
        answer_tokens=ANSWER,
        progress=False,
    )
    cpu, gpu, npu = diagnosis.findings
    assert (cpu.verdict, gpu.verdict, npu.verdict) == ("right", "wrong", "not run")
    assert gpu.wrong_from == first_wrong(row, zoo, prompt) > GOOD
    assert all(answer.first_choices == ANSWER for answer in cpu.answers)
    assert "the driver does not start" in npu.reason
    assert diagnosis.wrong == (gpu,)
