"""``phi3ov tune``: what is tried, what wins, what is kept, and when it is not used."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from phi3ov.answer.token_stream import TokenRequest
from phi3ov.engine.protocol import EngineSetup
from phi3ov.errors import OptionError
from phi3ov.machine import tuner
from phi3ov.machine.tuner import Speed, TuningRow, arithmetic_candidates, best, refinements, tune
from phi3ov.runtime import tuning
from phi3ov.runtime.config import RuntimeConfig
from phi3ov.runtime.processor import Processor
from phi3ov.runtime.settings import choose_settings, passed_properties
from phi3ov.runtime.tuning import (
    TunedSettings,
    TuningKey,
    TuningRecord,
    check_tuning,
    read_record,
    tuning_path,
    write_record,
)

from .test_settings import GROUPS, HASWELL, INT4, PRECISION, SAPPHIRE_RAPIDS, ZEN_4, situation

KEY = TuningKey(processor="fake", features=("avx2",), cpus=2, openvino="2026.4", weights="1a2b")
FAST = TunedSettings(inference_precision="f32", dynamic_quantization_group_size=64, reason="fast")
RECORD = TuningRecord(
    key=KEY,
    date="2026-11-28",
    latency=FAST,
    throughput=TunedSettings(threads=1, kv_cache_precision="u8", prompt_chunk_tokens=128),
)
OWN = TunedSettings()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the user's own files out of the tests."""
    monkeypatch.setattr(tuning, "tuning_folder", lambda: tmp_path / "data")
    return tmp_path / "data"


# --- the file ---------------------------------------------------------------------------------


def test_what_is_kept_is_found_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In the user's data folder, or in a file that the caller names."""
    for path in (None, tmp_path / "mine.json"):
        write_record(RECORD, path or tuning_path(KEY))
        assert read_record(KEY, path) == RECORD
    assert RECORD.for_goal("latency") == FAST
    assert RECORD.for_goal("throughput").threads == 1
    assert caplog.text == ""


def test_without_a_file_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """Most users never tune; only a file that was named and is missing is worth a warning."""
    assert read_record(KEY) is None
    assert caplog.text == ""
    assert read_record(KEY, Path("no-such-file.json")) is None
    assert "no-such-file.json are not used: it does not exist" in caplog.text


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"openvino": "2027.0"}, "openvino was '2026.4', is '2027.0'"),
        ({"cpus": 4}, "cpus was 2, is 4"),
        ({"processor": "other"}, "processor was 'fake', is 'other'"),
        ({"features": ("amx_tile",)}, "features was ('avx2',), is ('amx_tile',)"),
        ({"weights": "3c"}, "weights was '1a2b', is '3c'"),
    ],
)
def test_a_stale_file_is_not_used(
    change: dict[str, Any], reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning says what has changed and what to do."""
    write_record(RECORD, tmp_path / "x.json")
    assert read_record(replace(KEY, **change), tmp_path / "x.json") is None
    assert reason in caplog.text
    assert "phi3ov tune" in caplog.text


def test_after_an_update_of_openvino_the_file_is_stale(caplog: pytest.LogCaptureFixture) -> None:
    """It is found under the same name, so the user is told to measure again."""
    write_record(RECORD, tuning_path(KEY))
    assert read_record(replace(KEY, openvino="2027.0")) is None
    assert "2027.0" in caplog.text


def damage(**changes: Any) -> str:
    """Return the record's JSON with changes to the settings for latency."""
    text = msgspec.json.encode(RECORD).decode()
    values = json.loads(text)
    values["latency"] |= changes
    return json.dumps(values)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        "\udcff",
        damage(threads=0),
        damage(threads="two"),
        damage(inference_precision="int3"),
        damage(dynamic_quantization_group_size=-1),
        damage(prompt_chunk_tokens=0),
        damage().replace('"version": 1', '"version": 2'),
    ],
)
def test_a_damaged_file_is_not_used(
    content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever is in it; the model loads all the same."""
    path = tmp_path / "x.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    assert read_record(KEY, path) is None
    assert "are not used" in caplog.text


@pytest.mark.parametrize("value", [None, True, 3, "", ["off"]])
def test_other_values_of_tuning_are_refused(value: object) -> None:
    """The error names what is allowed."""
    with pytest.raises(OptionError, match="must be 'auto', 'off', or the path"):
        check_tuning(value)


# --- in force ---------------------------------------------------------------------------------


def passed(tuned: TunedSettings, config: RuntimeConfig, **changes: Any) -> dict[str, str]:
    """Return what OpenVINO is given besides its hints."""
    fake = situation(SAPPHIRE_RAPIDS, tuned=tuned, **changes)
    found = passed_properties(choose_settings(config, fake))
    return {
        name: value
        for name, value in found.items()
        if name not in ("PERFORMANCE_HINT", "NUM_STREAMS")
    }


@pytest.mark.parametrize(
    ("tuned", "config", "expected"),
    [
        (FAST, RuntimeConfig(), {PRECISION: "f32", GROUPS: "64"}),
        (OWN, RuntimeConfig(), {}),
        (TunedSettings(threads=3), RuntimeConfig(threads=5), {"INFERENCE_NUM_THREADS": "5"}),
        (FAST, RuntimeConfig(inference_precision="bf16"), {PRECISION: "bf16"}),
        (FAST, RuntimeConfig(dynamic_quantization_group_size=32), {PRECISION: "f32", GROUPS: "32"}),
        (
            FAST,
            RuntimeConfig.exact(),
            {PRECISION: "f32", GROUPS: "0", "KV_CACHE_PRECISION": "f32"},
        ),
    ],
)
def test_tuned_settings_go_before_the_rules_and_behind_the_caller(
    tuned: TunedSettings, config: RuntimeConfig, expected: dict[str, str]
) -> None:
    """Precision and groups were measured together: one of the caller's takes both."""
    assert passed(tuned, config) == expected


def test_tuned_settings_are_for_the_cpu_and_paged_attention() -> None:
    """They were measured there."""
    assert passed(FAST, RuntimeConfig(), device="GPU") == {}
    assert passed(FAST, RuntimeConfig(), paged=False) == {}


def test_a_tuned_setting_says_where_it_comes_from() -> None:
    """Who decided, and what was measured; also where OpenVINO's own was the fastest."""
    tuned = TunedSettings(dynamic_quantization_group_size=64, reason="measured so")
    found = choose_settings(RuntimeConfig(), situation(SAPPHIRE_RAPIDS, tuned=tuned))
    said = {setting.name: (setting.chosen_by, setting.reason) for setting in found}
    assert said[GROUPS] == ("tune", "measured so")
    assert said[PRECISION] == ("openvino", "OpenVINO's own. measured so")


# --- what is tried ----------------------------------------------------------------------------


def processor(features: set[str], **changes: Any) -> Processor:
    """Return a processor with these features."""
    return Processor(name="fake", features=frozenset(features), **({"cpus": 2} | changes))


def test_precisions_and_groups_are_tried_together() -> None:
    """No larger group than the weights', and none where the processor rounds nothing."""
    pairs = [
        (item.inference_precision, item.dynamic_quantization_group_size)
        for item in arithmetic_candidates(processor(ZEN_4), INT4, "bf16")
    ]
    groups = (None, 64, 128)
    assert pairs == [*((None, size) for size in groups), *(("f32", size) for size in groups)]
    small = tuple(replace(kind, group_size=64) for kind in INT4)
    tried = arithmetic_candidates(processor(ZEN_4), small, "f32")
    assert [item.dynamic_quantization_group_size for item in tried] == [None, 64]
    assert arithmetic_candidates(processor(HASWELL), INT4, "f32") == [OWN]


def test_threads_and_cache_are_tried_on_the_best() -> None:
    """Each change by itself; a quota counts as that many processors."""
    found = refinements(FAST, processor(set(), cpus=8), "f16")
    assert [(item.threads, item.kv_cache_precision) for item in found] == [
        (None, None),
        (None, "u8"),
        (4, None),
        (8, None),
    ]
    assert all(item.dynamic_quantization_group_size == 64 for item in found)
    limited = refinements(FAST, processor(set(), cpus=8, quota=2.0), None)
    assert [item.threads for item in limited] == [None, 1]
    hybrid = refinements(FAST, processor(set(), cpus=12, fast_cpus=4), None)
    assert [settings.threads for settings in hybrid] == [None, 4, 6, 12]


def row(gains: tuple[float, float, float], *, refused: str = "", threads: int = 1) -> TuningRow:
    """Return a row with these multiples of OpenVINO's own."""
    speed = Speed(one_chat=gains[0], eight_chats=gains[1], prefill=gains[2])
    settings = TunedSettings(threads=threads)
    return TuningRow(settings=settings, speed=speed, gain=speed, divergence=0.0, refused=refused)


def test_the_best_is_fast_at_what_is_wanted_and_within_the_budget() -> None:
    """Decoding counts twice as much as prefill; noise is no gain."""
    own = TuningRow(
        settings=OWN, speed=row((1, 1, 1)).speed, gain=row((1, 1, 1)).speed, divergence=0.0
    )
    alone, together = row((1.5, 0.9, 1.0)), row((0.9, 1.5, 1.0))
    refused = row((3, 3, 3), refused="too far")
    assert best([own, alone, together, refused], "latency") is alone
    assert best([own, alone, together, refused], "throughput") is together
    assert best([own, row((1.02, 1.02, 1.0)), refused], "latency") is own
    assert best([own, row((1.1, 1.1, 0.5))], "latency") is own


# --- the whole --------------------------------------------------------------------------------


class Machine:
    """A processor whose speed depends on the settings as a script says, and a clock for it."""

    def __init__(self, cost: Callable[[TunedSettings, TokenRequest], float]) -> None:
        self.cost = cost
        self.now = 0.0
        self.open: list[TunedSettings] = []
        self.order: list[TunedSettings] = []

    def load_engine(self, name: str) -> Callable[[EngineSetup], Any]:
        """Return what opens an engine."""
        assert name == "worker"
        return self.start

    def start(self, setup: EngineSetup) -> Any:
        """Return an engine that only takes time."""
        tuned = setup.tuned
        assert tuned is not None
        self.open.append(tuned)

        def submit(request: TokenRequest, *, wait: bool) -> Any:
            assert wait
            assert request.stop_ids == frozenset()
            self.order.append(tuned)
            self.now += self.cost(tuned, request)
            return Stream()

        return SimpleNamespace(submit=submit, close=lambda: self.open.remove(tuned))


class Stream:
    """An answer that has ended."""

    def __iter__(self) -> Iterator[list[int]]:
        return iter([[1]])

    def cancel(self) -> None:
        """Nothing runs."""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """`tune` on a machine that is not there."""
    (tmp_path / "openvino_model.bin").write_bytes(b"1234")
    (tmp_path / "openvino_model.xml").write_text('<KV_CACHE_PRECISION value="f16" />')
    from .fakes import make_artifact

    artifact = make_artifact(tmp_path)
    artifact = replace(artifact, manifest=replace(artifact.manifest, weights=INT4))

    def on(machine: Machine, divergence: Callable[[TunedSettings], float], **options: Any) -> Any:
        device = SimpleNamespace(name="CPU", full_name="fake", memory_bytes=2**34)
        monkeypatch.setattr(tuner, "describe_devices", lambda: [device])
        monkeypatch.setattr(tuner, "read_processor", lambda _name: processor(ZEN_4))
        monkeypatch.setattr(tuner, "_own_precision", lambda: "bf16")
        monkeypatch.setattr(tuner, "_read_text", lambda *_: list(range(1000)))
        monkeypatch.setattr(tuner, "load_engine", machine.load_engine)
        monkeypatch.setattr("phi3ov.machine.tuner.time.perf_counter", lambda: machine.now)
        monkeypatch.setattr(tuner, "find_artifact", lambda _path, revision: artifact)
        monkeypatch.setattr(TuningKey, "of", lambda *_: KEY)
        monkeypatch.setattr(tuner._Judge, "divergence", lambda _self, item: divergence(item))
        return tune(tmp_path, progress=False, **options)

    return on


def cost(settings: TunedSettings, request: TokenRequest) -> float:
    """Return seconds: large groups are fast, f32 and fewer threads slow, long chunks stall."""
    seconds = 0.001 * len(request.prompt_ids) + 0.01 * request.max_new_tokens
    seconds *= {None: 1.0, 64: 0.8, 128: 0.5}[settings.dynamic_quantization_group_size]
    seconds *= 1.5 if settings.inference_precision == "f32" else 1.0
    seconds *= 1.3 if settings.threads else 1.0
    seconds *= 0.9 if settings.kv_cache_precision == "u8" else 1.0
    return (
        seconds * {None: 1.0, 64: 1.2, 128: 1.1, 256: 1.05, 512: 1.0}[settings.prompt_chunk_tokens]
    )


def diverge(settings: TunedSettings) -> float:
    """Return nats: groups of 128 are beyond the default's budget."""
    return {None: 0.001, 64: 0.006, 128: 0.03}[settings.dynamic_quantization_group_size]


def test_the_fastest_within_the_budget_is_kept(run: Callable[..., Any], folder: Path) -> None:
    """Groups of 128 are refused, groups of 64 with a cache in u8 win, for both goals."""
    machine = Machine(cost)
    report = run(machine, diverge)
    for found in (report.record.latency, report.record.throughput):
        assert found.dynamic_quantization_group_size == 64
        assert (found.inference_precision, found.kv_cache_precision) == (None, "u8")
        assert found.threads is None
        assert "1.39 times OpenVINO's own for one chat" in found.reason
    assert report.record.latency.prompt_chunk_tokens is None
    assert report.record.throughput.prompt_chunk_tokens == 512
    assert [row.refused for row in report.rows if row.refused] == [
        "more than 0.01 nats from exact"
    ] * 2
    assert machine.open == []
    assert read_record(KEY) == report.record
    assert report.saved_to == str(tuning_path(KEY))
    assert report.saved_to.startswith(str(folder))
    assert "groups of 64, KV u8" in str(report)
    assert json.loads(json.dumps(report.to_dict()))["budget"] == 0.01


def test_settings_take_turns(run: Callable[..., Any]) -> None:
    """A round asks each once, the next in the opposite order: none is always first."""
    machine = Machine(cost)
    run(machine, diverge, rounds=2, save=False)
    asked = [
        settings
        for settings, before in zip(machine.order, [None, *machine.order], strict=False)
        if settings != before
    ]
    tried = arithmetic_candidates(processor(ZEN_4), INT4, "bf16")  # first they are warmed up
    assert asked[:16] == [*tried, *reversed(tried[:-1]), *tried[1:]]


@pytest.mark.parametrize(
    ("options", "group"),
    [({"budget": 0.05}, 128), ({"own_divergence": 0.7}, 128), ({"budget": 0.0}, None)],
)
def test_the_budget_decides(
    options: dict[str, float], group: int | None, run: Callable[..., Any]
) -> None:
    """Given, or 5 % of the export's own; OpenVINO's own setting is never refused."""
    report = run(Machine(cost), diverge, save=False, **options)
    assert report.record.latency.dynamic_quantization_group_size == group
    assert report.rows[0].refused == ""


def test_a_long_step_is_not_chosen(run: Callable[..., Any]) -> None:
    """On a slow machine a chunk of 512 would hold up the other chats for seconds."""
    report = run(Machine(lambda *given: 2 * cost(*given)), diverge, save=False)
    assert report.record.throughput.prompt_chunk_tokens == 256
    slow = run(Machine(lambda *given: 100 * cost(*given)), diverge, save=False)
    assert slow.record.throughput.prompt_chunk_tokens == 64


def test_a_large_model_is_loaded_one_at_a_time(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the memory does not hold all candidates, each round loads each anew."""
    machine = Machine(cost)
    most = 0

    def counted(settings: TunedSettings, request: TokenRequest) -> float:
        nonlocal most
        most = max(most, len(machine.open))
        return cost(settings, request)

    machine.cost = counted
    monkeypatch.setattr(tuner, "_COPIES", 1e12)
    report = run(machine, diverge, save=False)
    assert most == 1
    assert report.record.latency.dynamic_quantization_group_size == 64


def test_ctrl_c_leaves_nothing(run: Callable[..., Any], folder: Path) -> None:
    """Engines are closed, and no file was written."""
    calls = 0

    def interrupted(settings: TunedSettings, request: TokenRequest) -> float:
        nonlocal calls
        calls += 1
        if calls == 100:
            raise KeyboardInterrupt
        return cost(settings, request)

    machine = Machine(interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(machine, diverge)
    assert machine.open == []
    assert not folder.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": -1}, "budget=-1 must be"),
        ({"budget": float("nan")}, "budget=nan must be"),
        ({"own_divergence": "much"}, "own_divergence='much' must be"),
        ({"rounds": 0}, "rounds=0 must be"),
    ],
)
def test_bad_options_are_refused_before_any_work(options: dict[str, Any], message: str) -> None:
    """Not even the folder is opened."""
    with pytest.raises(OptionError, match=message):
        tune("no-such-folder", **options)
