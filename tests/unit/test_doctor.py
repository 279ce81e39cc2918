"""``phi3ov doctor`` on machines that are not there, judged by a model that is a table."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import phi3ov
from phi3ov import DeviceError, OptionError
from phi3ov.answer.token_stream import TokenRequest
from phi3ov.cli import main
from phi3ov.engine.logits import Logits
from phi3ov.engine.protocol import EngineSetup
from phi3ov.errors import ArtifactError
from phi3ov.machine import doctor
from phi3ov.machine.doctor import Diagnosis, Finding
from phi3ov.prompt.chat_tokenizer import ChatTokenizer
from phi3ov.runtime.devices import DeviceInfo
from phi3ov.runtime.tuning import TunedSettings

from .fakes import MINI, Answer, FakeEngine, make_artifact

ROWS = 2048
RIGHT, TIED, FAR = 100, 101, 102
"""Tokens: the exact model's first choice, one 0.5 nats behind it, one 3 nats behind it."""
TOKENS = 12
Diagnose = Callable[..., Diagnosis]
Answers = Callable[[TokenRequest], Answer]


class Table:
    """The exact model: the same preferences after any token."""

    logits = np.zeros(ROWS, dtype=np.float32)

    def __init__(self, *_arguments: object) -> None:
        """Load nothing."""

    def answer_logits(self, prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> Logits:
        """Return a row for each token of the answer."""
        assert len(prompt_ids) > 0
        return np.tile(self.logits, (len(answer_ids), 1))


def says(*tokens: int) -> Answers:
    """Return an engine's script: these tokens, then the right one."""
    return lambda _request: Answer([*tokens, *[RIGHT] * (TOKENS - len(tokens))])


@pytest.fixture
def diagnose(monkeypatch: pytest.MonkeyPatch) -> Diagnose:
    """`phi3ov.diagnose` on a machine whose devices say what the test wants."""
    logits = np.zeros(ROWS, dtype=np.float32)
    logits[[RIGHT, TIED, FAR]] = 20.0, 19.5, 17.0
    monkeypatch.setattr(Table, "logits", logits)
    monkeypatch.setattr("phi3ov.engine.logits.ExportedModel", Table)
    monkeypatch.setattr(doctor, "find_artifact", lambda _path, revision: make_artifact())
    monkeypatch.setattr(doctor, "find_record", lambda *_: None)
    monkeypatch.setattr(ChatTokenizer, "from_folder", lambda *_: MINI.chat)

    def on(machine: dict[str, Answers | Exception], **options: Any) -> Diagnosis:
        def open_engine(setup: EngineSetup) -> FakeEngine:
            script = machine[setup.device]
            if isinstance(script, Exception):
                raise script
            return FakeEngine(script)

        devices = [
            DeviceInfo(name=name, full_name=f"a {name}", memory_bytes=None, precisions=())
            for name in machine
        ]
        monkeypatch.setattr(doctor, "describe_devices", lambda: devices)
        monkeypatch.setattr(doctor, "load_engine", lambda _name: open_engine)
        defaults: dict[str, Any] = {"engines": ["pipeline"], "progress": False}
        return phi3ov.diagnose("m", **{"answer_tokens": TOKENS} | defaults | options)

    return on


def only(diagnosis: Diagnosis) -> Finding:
    """Return the one finding."""
    (found,) = diagnosis.findings
    return found


def test_a_near_tie_is_not_wrong(diagnose: Diagnose) -> None:
    """Rounding may choose either of two tokens; the first choice is counted apart."""
    found = only(diagnose({"CPU": says(RIGHT, TIED, TIED)}))
    assert (found.verdict, found.reason, found.wrong_from) == ("right", "", None)
    assert len(found.answers) == 2 * len(doctor.PROMPTS)
    first = found.answers[0]
    assert (first.tokens, first.first_choices) == (TOKENS, TOKENS - 2)
    assert first.furthest_nats == pytest.approx(0.5)


def test_what_the_exact_model_would_not_say_is_wrong(diagnose: Diagnose) -> None:
    """From the token on that is further behind than the tolerance."""
    machine = {"GPU.0": says(RIGHT, TIED, FAR)}
    diagnosis = diagnose(machine)
    found = only(diagnosis)
    assert (found.verdict, found.wrong_from, found.full_name) == ("wrong", 3, "a GPU.0")
    assert diagnosis.wrong == (found,)
    assert f"prompt 1: wrong from token 3, {MINI.chat.decode([FAR])!r} instead of" in str(diagnosis)
    assert "3.0 nats" in str(diagnosis)
    assert only(diagnose(machine, tolerance_nats=3.5)).verdict == "right"
    assert only(diagnose(machine, tolerance_nats=0.2)).wrong_from == 2


def test_an_answer_that_is_wrong_from_the_cache_only_is_found(diagnose: Diagnose) -> None:
    """Every prompt is asked twice."""
    seen: set[tuple[int, ...]] = set()

    def answer(request: TokenRequest) -> Answer:
        again = request.prompt_ids in seen
        seen.add(request.prompt_ids)
        return Answer([RIGHT] * 4 + [FAR if again else RIGHT] * (TOKENS - 4))

    found = only(diagnose({"GPU.0": answer}, prompts=["hello"]))
    assert [(item.repeated, item.wrong_from) for item in found.answers] == [
        (False, None),
        (True, 5),
    ]
    assert str(found.answers[1]).startswith("prompt 1, from the cache: wrong from token 5")


def test_a_token_that_the_model_does_not_have_is_wrong(diagnose: Diagnose) -> None:
    """A broken device may name any number; the last token of the model is not meant by it."""
    Table.logits[ROWS - 1] = 20.0
    diagnosis = diagnose({"NPU": says(ROWS + 5)})
    found = only(diagnosis)
    assert (found.verdict, found.wrong_from) == ("wrong", 1)
    json.dumps(diagnosis.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (DeviceError("no driver"), "no driver"),
        (RuntimeError("clInit\n failed"), "RuntimeError: clInit failed"),
    ],
)
def test_a_device_that_does_not_load_is_not_run(
    error: Exception, reason: str, diagnose: Diagnose
) -> None:
    """The others are judged all the same, and nothing is called wrong."""
    diagnosis = diagnose({"CPU": says(), "GPU.0": error, "NPU": says(FAR)})
    cpu, gpu, npu = diagnosis.findings
    assert (cpu.verdict, gpu.verdict, npu.verdict) == ("right", "not run", "wrong")
    assert (gpu.reason, gpu.answers) == (reason, ())
    assert f"GPU.0 pipeline: {reason}" in str(diagnosis)
    assert diagnosis.wrong == (npu,)


def test_an_answer_that_breaks_off_is_wrong(diagnose: Diagnose) -> None:
    """With an error, or too soon; what was said before is judged."""
    broken = only(diagnose({"GPU.0": lambda _: Answer([RIGHT], error=RuntimeError("lost"))}))
    assert broken.verdict == "wrong"
    assert broken.reason.startswith("broke off: ")
    assert "lost" in broken.reason
    short = only(diagnose({"GPU.0": lambda _: Answer([RIGHT] * 5)}))
    assert short.verdict == "wrong"
    assert f"5 of {TOKENS} tokens" in short.reason


def test_every_engine_is_asked_on_every_device(diagnose: Diagnose) -> None:
    """In the order of the devices; or those that are named."""
    machine = {"CPU": says(), "GPU.0": says()}
    found = diagnose(machine, engines=None).findings
    names = ("pipeline", "worker", "paged", "transformers")
    assert [(item.device, item.engine) for item in found] == [
        (device, name) for device in machine for name in names
    ]
    assert [item.device for item in diagnose(machine, devices=["gpu"]).findings] == ["GPU.0"]
    with pytest.raises(DeviceError, match="NPU"):
        diagnose(machine, devices=["NPU"])


def test_an_export_whose_own_logits_are_not_numbers_is_refused(diagnose: Diagnose) -> None:
    """Then no device is to blame."""
    Table.logits[5] = np.nan
    with pytest.raises(ArtifactError, match=r"not numbers.*Export the checkpoint again"):
        diagnose({"CPU": says()})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"answer_tokens": 0}, "answer_tokens"),
        ({"tolerance_nats": 0}, "tolerance_nats=0"),
        ({"tolerance_nats": float("nan")}, "tolerance_nats=nan"),
        ({"prompts": []}, "prompts"),
        ({"engines": ["toy"]}, "engine='toy'"),
        ({"devices": []}, "devices"),
        ({"devices": "CPU"}, "devices='CPU'"),
    ],
)
def test_arguments_are_checked(options: dict[str, Any], said: str, diagnose: Diagnose) -> None:
    """Before anything is loaded."""
    with pytest.raises(OptionError, match=said):
        diagnose({"CPU": AssertionError("loaded")}, **options)


def test_a_long_prompt_keeps_its_end(diagnose: Diagnose) -> None:
    """With the token that opens the answer, and room for the answer."""
    asked: list[TokenRequest] = []

    def answer(request: TokenRequest) -> Answer:
        asked.append(request)
        return Answer([RIGHT] * TOKENS)

    diagnosis = diagnose({"CPU": answer}, prompts=["word " * 4000])
    assert diagnosis.prompt_tokens == (1024 - TOKENS,)
    assert asked[0].prompt_ids[-1] == MINI.chat.encode_prompt([phi3ov.Message("user", "x")])[-1]
    assert asked[0].stop_ids == frozenset()


def test_the_command_ends_with_1_where_an_answer_is_wrong(
    diagnose: Diagnose, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After the table or the JSON; a device that does not load is no error."""
    right = diagnose({"CPU": says(), "NPU": DeviceError("no driver")})
    wrong = diagnose({"CPU": says(), "GPU.0": says(FAR)})
    for diagnosis, code in ((right, 0), (wrong, 1)):
        monkeypatch.setattr(doctor, "diagnose", lambda *_, found=diagnosis, **__: found)
        assert main(["doctor", "m"]) == code
        out, err = capsys.readouterr()
        assert out == f"{diagnosis}\n"
        assert ("Wrong answers: GPU.0 with pipeline" in err) == (code == 1)
        assert main(["doctor", "m", "--json"]) == code
        value = json.loads(capsys.readouterr().out)
        verdicts = [found["verdict"] for found in value["findings"]]
        assert verdicts == [found.verdict for found in diagnosis.findings]


def test_the_command_passes_its_options_on(
    diagnose: Diagnose, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Devices and engines may be repeated."""
    found = diagnose({"CPU": says()})
    seen: list[Any] = []

    def note(*arguments: Any, **options: Any) -> Diagnosis:
        seen.append((arguments, options))
        return found

    monkeypatch.setattr(doctor, "diagnose", note)
    line = "doctor m --device CPU --device GPU.0 --engine worker --tolerance 3 --quiet"
    assert main([*line.split(), "--answer-tokens", "5"]) == 0
    assert capsys.readouterr().err == ""
    assert seen == [
        (
            ("m",),
            {
                "revision": None,
                "devices": ["CPU", "GPU.0"],
                "engines": ["worker"],
                "answer_tokens": 5,
                "tolerance_nats": 3.0,
                "progress": False,
            },
        )
    ]


def test_progress_is_a_line_per_engine(
    diagnose: Diagnose, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On stderr, if there is one."""
    diagnose({"CPU": says()}, progress=True)
    assert "phi3ov doctor: CPU, engine 'pipeline'\n" in capsys.readouterr().err
    monkeypatch.setattr("sys.stderr", None)
    diagnose({"CPU": says()}, progress=True)


def test_a_changed_file_is_found_first(
    diagnose: Diagnose, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Garbage in the weights would make every device wrong in the same way."""
    artifact = make_artifact(tmp_path, {"weights": "0" * 64})
    (tmp_path / "weights").write_bytes(b"x")
    monkeypatch.setattr(doctor, "find_artifact", lambda _path, revision: artifact)
    with pytest.raises(ArtifactError, match="weights: its content has changed"):
        diagnose({"CPU": AssertionError("loaded")})


def test_tuned_settings_are_those_that_loading_takes(
    diagnose: Diagnose, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is judged is what `load_model` would run."""
    setups: list[EngineSetup] = []

    def open_engine(setup: EngineSetup) -> FakeEngine:
        setups.append(setup)
        return FakeEngine(says())

    found = {goal: TunedSettings(reason=goal) for goal in ("throughput", "latency")}
    record = SimpleNamespace(for_goal=found.get)
    monkeypatch.setattr(doctor, "find_record", lambda *_: record)
    diagnose({"CPU": says()})
    monkeypatch.setattr(doctor, "load_engine", lambda _name: open_engine)
    phi3ov.diagnose(
        "m", engines=["worker", "pipeline"], answer_tokens=TOKENS, devices=["CPU"], progress=False
    )
    assert [setup.tuned for setup in setups] == [found["throughput"], found["latency"]]
