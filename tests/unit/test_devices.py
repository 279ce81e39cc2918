"""What devices there are, on machines that are not there, and what happens when one fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import phi3ov
from phi3ov import Artifact, loading
from phi3ov.engine.protocol import EngineSetup
from phi3ov.errors import DeviceError, OptionError
from phi3ov.prompt.chat_tokenizer import ChatTokenizer
from phi3ov.runtime.devices import DeviceRefusal, choose_device, describe_devices, find_devices
from tests.inside import engine_of

from .fakes import MINI, Answer, FakeEngine, make_artifact

MACHINE = {"CPU": "Intel CPU", "GPU": "Arc", "NPU": "AI Boost"}


class FakeCore:
    """An OpenVINO core of a machine with a GPU whose memory is known, and a silent NPU."""

    @property
    def available_devices(self) -> list[str]:
        """The machine's devices."""
        return ["CPU", "GPU", "NPU"]

    def __init__(self) -> None:
        self.properties: dict[str, dict[str, Any]] = {
            "CPU": {
                "FULL_DEVICE_NAME": "Intel CPU",
                "OPTIMIZATION_CAPABILITIES": ["WINOGRAD", "FP32", "BF16", "EXPORT_IMPORT"],
            },
            "GPU": {
                "FULL_DEVICE_NAME": "Arc",
                "GPU_DEVICE_TOTAL_MEM_SIZE": 17_179_869_184,
                "OPTIMIZATION_CAPABILITIES": ["FP32", "FP16", "GPU_HW_MATMUL", "INT8"],
            },
            "NPU": {"FULL_DEVICE_NAME": "AI Boost"},
        }

    def get_property(self, device_name: str, name: str, /) -> Any:
        """Return a property; asking for one that the device does not have fails, as there."""
        own = self.properties[device_name]
        return list(own) if name == "SUPPORTED_PROPERTIES" else own[name]


def test_devices_are_described_as_far_as_they_say() -> None:
    """Names, memory and precisions; what a device does not tell is None or empty."""
    cpu, gpu, npu = describe_devices(FakeCore())
    assert (gpu.name, gpu.full_name, gpu.memory_bytes) == ("GPU", "Arc", 17_179_869_184)
    assert gpu.precisions == ("FP16", "FP32", "INT8")
    assert cpu.precisions == ("BF16", "FP32")
    assert (npu.full_name, npu.memory_bytes, npu.precisions) == ("AI Boost", None, ())


def test_a_device_whose_driver_is_broken_keeps_no_other_from_use() -> None:
    """OpenVINO lists it and fails to ask it anything; the others are described as ever."""

    class Broken(FakeCore):
        def get_property(self, device_name: str, name: str, /) -> Any:
            if device_name == "GPU":
                raise RuntimeError("Exception from src/gpu.cpp:81:\nclInit failed")
            return super().get_property(device_name, name)

    cpu, gpu, npu = describe_devices(Broken())
    assert (cpu.full_name, npu.full_name) == ("Intel CPU", "AI Boost")
    assert gpu.full_name == "a device that OpenVINO cannot ask: clInit failed"
    assert (gpu.memory_bytes, gpu.precisions) == (None, ())


class AskedCore(FakeCore):
    """Notes which kinds are asked about: OpenVINO loads the driver of each."""

    def __init__(self, numbers: dict[str, list[str]]) -> None:
        super().__init__()
        self.numbers = numbers
        self.asked: set[str] = set()
        self.properties |= {
            f"{kind}.{number}": self.properties[kind]
            for kind, found in numbers.items()
            for number in found
        }

    @property
    def available_devices(self) -> list[str]:
        """Every device; asking loads every driver."""
        self.asked |= {"CPU", "GPU", "NPU"}
        return ["CPU", "GPU", "NPU"]

    def get_property(self, device_name: str, name: str, /) -> Any:
        """Return a property, or the numbers of a kind's devices."""
        kind = device_name.partition(".")[0]
        self.asked.add(kind)
        if name != "AVAILABLE_DEVICES":
            return super().get_property(device_name, name)
        if kind not in self.numbers:
            raise RuntimeError("Cannot load library")
        return self.numbers[kind]


@pytest.mark.parametrize(
    ("requested", "numbers", "found", "asked"),
    [
        ("CPU", {"CPU": [""], "GPU": ["0"]}, ["CPU"], {"CPU"}),
        ("cpu", {"CPU": [""]}, ["CPU"], {"CPU"}),
        (("GPU", "CPU"), {"CPU": [""], "GPU": ["0"]}, ["GPU", "CPU"], {"CPU", "GPU"}),
        (("GPU", "CPU"), {"CPU": [""]}, ["CPU"], {"CPU", "GPU"}),
        (("NPU", "CPU"), {"CPU": [""], "NPU": []}, ["CPU"], {"CPU", "NPU"}),
        ("GPU.1", {"CPU": [""], "GPU": ["0", "1"]}, ["GPU.0", "GPU.1"], {"GPU"}),
        ("GPU", {"CPU": [""]}, ["CPU", "GPU", "NPU"], {"CPU", "GPU", "NPU"}),
        ((), {"CPU": [""]}, ["CPU", "GPU", "NPU"], {"CPU", "GPU", "NPU"}),
    ],
)
def test_only_the_requested_kinds_are_asked(
    requested: str | tuple[str, ...],
    numbers: dict[str, list[str]],
    found: list[str],
    asked: set[str],
) -> None:
    """A model for the CPU starts no other driver; all are asked where none is there, to list."""
    core = AskedCore(numbers)
    assert list(find_devices(requested, core)) == found
    assert core.asked == asked


@pytest.mark.skipif(sys.platform != "linux", reason="the system lists its loaded libraries there")
def test_choosing_the_cpu_loads_no_other_plugin() -> None:
    """OpenVINO itself: neither the GPU's nor the NPU's library is in the process."""
    code = (
        "from pathlib import Path; from phi3ov.runtime.devices import choose_device\n"
        "assert choose_device('CPU').selected == 'CPU'\n"
        "print([kind for kind in ('cpu', 'gpu', 'npu')"
        " if f'intel_{kind}_plugin' in Path('/proc/self/maps').read_text()])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert result.stdout.strip() == "['cpu']"


def test_each_refusal_is_kept_with_its_reason() -> None:
    """A device that is not there and one that failed, in the order of preference."""
    choice = choose_device(("GPU.1", "npu", "CPU"), MACHINE, failed={"NPU": "no driver"})
    assert choice.selected == "CPU"
    assert choice.refused == (
        DeviceRefusal(device="GPU.1", reason="It is not there (OpenVINO finds CPU, GPU, NPU)."),
        DeviceRefusal(device="npu", reason="no driver"),
    )
    assert choice.reason == (
        "GPU.1 is not there (OpenVINO finds CPU, GPU, NPU); npu does not run the model; "
        "CPU is next."
    )


def test_when_all_failed_each_reason_is_listed() -> None:
    """What is missing and what failed, one line each."""
    with pytest.raises(DeviceError) as caught:
        choose_device(("GPU.1", "GPU", "CPU"), MACHINE, failed={"GPU": "a", "CPU": "b"})
    assert "none runs the model:\n  - GPU.1: It is not there" in str(caught.value)
    assert str(caught.value).endswith("\n  - GPU: a\n  - CPU: b")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[EngineSetup]:
    """A machine with three devices, of which only the CPU compiles anything."""
    setups: list[EngineSetup] = []

    def open_engine(setup: EngineSetup) -> FakeEngine:
        setups.append(setup)
        if setup.device != "CPU":
            raise DeviceError(f"no kernel for {setup.device}")
        return FakeEngine(lambda _request: Answer((5, 6)))

    artifact = make_artifact()
    monkeypatch.setattr(loading, "find_devices", lambda _requested: MACHINE)
    monkeypatch.setattr(loading, "load_engine", lambda _name: open_engine)
    monkeypatch.setattr(Artifact, "open", lambda _path, **_options: artifact)
    monkeypatch.setattr(ChatTokenizer, "from_folder", lambda _path, _format: MINI.chat)
    return setups


def test_a_device_that_fails_to_compile_gives_way_to_the_next(
    opened: list[EngineSetup], caplog: pytest.LogCaptureFixture
) -> None:
    """In order, logged, and recorded in `DeviceChoice`; `phi3ov devices` names are understood."""
    with phi3ov.load_model(Path("x"), device=("npu", "GPU.0", "GPU", "CPU")) as model:
        assert [setup.device for setup in opened] == ["NPU", "GPU", "CPU"]
        assert model.device.selected == "CPU"
        assert model.device.requested == ("npu", "GPU.0", "GPU", "CPU")
        assert [one.reason for one in model.device.refused] == [
            "no kernel for NPU",
            "no kernel for GPU",
            "no kernel for GPU",
        ]
    assert "NPU: no kernel for NPU" in caplog.text


def test_when_no_device_compiles_the_last_error_is_the_cause(opened: list[EngineSetup]) -> None:
    """The message lists each; the engine's own error stays reachable."""
    with pytest.raises(DeviceError, match=r"NPU: no kernel for NPU\n  - GPU: no") as caught:
        phi3ov.load_model(Path("x"), device=("NPU", "GPU"))
    assert str(caught.value.__cause__) == "no kernel for GPU"
    assert len(opened) == 2


def test_warm_up_is_on_unless_refused(opened: list[EngineSetup]) -> None:
    """It takes time that the timings show, and begins as no prompt does."""
    assert opened == []
    with phi3ov.load_model(Path("x"), device="CPU") as model:
        engine = engine_of(model, FakeEngine)
        assert [one.prompt_ids for one in engine.requests] == [tuple(MINI.chat.closing)]
        assert model.load_timings.warm_up_seconds > 0
        assert model.load_timings.total_seconds >= (
            model.load_timings.warm_up_seconds + model.load_timings.compile_seconds
        )
    with phi3ov.load_model(Path("x"), device="CPU", warm_up=False) as model:
        engine = engine_of(model, FakeEngine)
        assert engine.requests == []
        assert model.load_timings.warm_up_seconds == 0


def test_an_engine_that_fails_to_warm_up_is_closed(
    opened: list[EngineSetup], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody holds a model that cannot answer."""
    engine = FakeEngine([Answer(error=RuntimeError("broken"))])
    monkeypatch.setattr(loading, "load_engine", lambda _name: lambda _setup: engine)
    with pytest.raises(phi3ov.GenerationError, match="broken"):
        phi3ov.load_model(Path("x"), device="CPU")
    with pytest.raises(phi3ov.StateError, match="closed"):
        engine.submit(engine.requests[0])
    assert opened == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("speculation", "prompt_lookup"),
        ("adapter", "adapters/mine"),
        ("config", {"threads": 2}),
        ("limits", 4),
    ],
)
def test_an_argument_of_another_type_is_refused(
    name: str, value: Any, opened: list[EngineSetup]
) -> None:
    """Not ignored, nor found out by an AttributeError: the message names it and its type."""
    with pytest.raises(OptionError, match=f"{name} must be a phi3ov"):
        phi3ov.load_model(Path("x"), **{name: value})
    assert not opened


@pytest.mark.parametrize("value", [0, -1, True, 1.5, "1"])
def test_cache_bytes_must_be_a_number_of_bytes(value: Any, opened: list[EngineSetup]) -> None:
    """Refused before anything is opened."""
    with pytest.raises(OptionError, match="cache_bytes="):
        phi3ov.load_model(Path("x"), device="CPU", cache_bytes=value)
    assert opened == []
