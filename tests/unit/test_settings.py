"""What is chosen where the caller leaves it open: processors that are not here, and their rules."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from phi3ov.artifact.ir import Precision, WeightSummary
from phi3ov.errors import OptionError
from phi3ov.runtime import processor as processor_module
from phi3ov.runtime.config import RuntimeConfig
from phi3ov.runtime.processor import FEATURES, Processor, read_cpu_quota, read_processor
from phi3ov.runtime.settings import (
    RULES,
    Setting,
    Situation,
    choose_settings,
    find_rule,
    largest_group,
    passed_properties,
)

from .rules_table import GUIDE, with_table

ZEN_4 = {"avx2", "avx512_vnni", "avx512_bf16"}
SAPPHIRE_RAPIDS = ZEN_4 | {"amx_tile", "avx_vnni"}
ICE_LAKE = {"avx2", "avx512_vnni"}
CORE_ULTRA = {"avx2", "avx_vnni"}
HASWELL = {"avx2"}

PRECISION, GROUPS = "INFERENCE_PRECISION_HINT", "DYNAMIC_QUANTIZATION_GROUP_SIZE"
OWN = {"INFERENCE_NUM_THREADS": "0", PRECISION: "bf16", GROUPS: "32", "KV_CACHE_PRECISION": "u8"}
SUPPORTED = frozenset({*OWN, "PERFORMANCE_HINT", "NUM_STREAMS"})


def weights(precision: Precision, group_size: int) -> WeightSummary:
    """Return one kind of weights."""
    return WeightSummary(
        precision=precision,
        group_size=group_size,
        symmetric=True,
        layers=1,
        parameters=8,
        size_bytes=4,
    )


ROWS_OF_8_BITS = weights("int8", 0)
INT4 = (weights("int4", 128), ROWS_OF_8_BITS)
INT8 = (ROWS_OF_8_BITS,)
FP16 = (weights("fp16", 0),)


def situation(
    features: set[str], held: tuple[WeightSummary, ...] = INT4, **changes: object
) -> Situation:
    """Return a CPU with these features, for an export with these weights."""
    processor = Processor(name="fake", features=frozenset(features), cpus=8)
    fake = Situation(device="CPU", processor=processor, weights=held, supported=SUPPORTED, own=OWN)
    return replace(fake, **changes)  # type: ignore[arg-type]


def choose(
    features: set[str],
    held: tuple[WeightSummary, ...] = INT4,
    config: RuntimeConfig = RuntimeConfig(),  # noqa: B008 - immutable
    **changes: object,
) -> dict[str, str]:
    """Return what OpenVINO is given beyond the two properties that it always gets."""
    found = passed_properties(choose_settings(config, situation(features, held, **changes)))
    assert found.pop("PERFORMANCE_HINT") == "LATENCY"
    assert found.pop("NUM_STREAMS") == "1"
    return found


@pytest.mark.parametrize(
    ("features", "held", "chosen"),
    [
        (SAPPHIRE_RAPIDS, INT4, {PRECISION: "f32", GROUPS: "128"}),
        (SAPPHIRE_RAPIDS, INT8, {PRECISION: "f32", GROUPS: "64"}),
        (SAPPHIRE_RAPIDS, FP16, {}),
        (ZEN_4, INT4, {GROUPS: "128"}),
        (ZEN_4, INT8, {}),
        (ZEN_4, FP16, {}),
        (ICE_LAKE, INT4, {GROUPS: "128"}),
        (CORE_ULTRA, INT4, {}),
        (HASWELL, INT4, {}),
        (HASWELL, INT8, {}),
        (set(), INT4, {}),
    ],
)
def test_a_processor_gets_the_settings_of_its_row(
    features: set[str], held: tuple[WeightSummary, ...], chosen: dict[str, str]
) -> None:
    """Per kind of processor and weights; without a row OpenVINO is told nothing."""
    assert choose(features, held) == chosen


def test_every_row_is_reached_and_names_its_measurement() -> None:
    """No row stands behind another that takes its processors; each has a date and a machine."""
    found = {
        find_rule(situation(features, held))
        for features in (SAPPHIRE_RAPIDS, ZEN_4, ICE_LAKE, CORE_ULTRA, HASWELL)
        for held in (INT4, INT8, FP16)
    }
    assert found >= set(RULES)
    for rule in RULES:
        assert "2026-" in rule.measured
        assert rule.needs | rule.lacks <= set(FEATURES)


def test_the_guide_shows_the_rules() -> None:
    """As they are: ``python -m tests.unit.rules_table`` writes them again."""
    page = GUIDE.read_text(encoding="utf-8")
    assert with_table(page) == page


@pytest.mark.parametrize(
    ("sizes", "limit", "group"),
    [
        ([128, 128], 128, 128),
        ([128, 64], 128, 64),
        ([64, 0], 128, 64),
        ([0], 128, 128),
        ([0], 64, 64),
        ([96], 128, 32),
        ([16, 128], 128, None),
    ],
)
def test_the_group_fits_every_group_of_weights(
    sizes: list[int], limit: int, group: int | None
) -> None:
    """An activation group that does not divide a group of weights would round nothing there."""
    assert largest_group([weights("int4", size) for size in sizes], limit) == group


def test_weights_in_small_groups_leave_everything_to_openvino() -> None:
    """No activation group fits, so the row's precision, measured with one, is not chosen either."""
    assert choose(SAPPHIRE_RAPIDS, (weights("int4", 16),)) == {}


@pytest.mark.parametrize(
    ("config", "chosen"),
    [
        (RuntimeConfig(inference_precision="bf16"), {PRECISION: "bf16"}),
        (RuntimeConfig(inference_precision="f32"), {PRECISION: "f32", GROUPS: "128"}),
        (RuntimeConfig(dynamic_quantization_group_size=32), {PRECISION: "f32", GROUPS: "32"}),
        (RuntimeConfig(dynamic_quantization_group_size=0), {GROUPS: "0"}),
    ],
)
def test_what_the_caller_sets_stays_and_the_rest_goes_with_it(
    config: RuntimeConfig, chosen: dict[str, str]
) -> None:
    """Float32 is chosen for rounded activations only, and groups for the measured precision."""
    assert choose(SAPPHIRE_RAPIDS, config=config) == chosen


def test_exact_is_exact_on_every_processor() -> None:
    """No rule comes between."""
    expected = {PRECISION: "f32", GROUPS: "0", "KV_CACHE_PRECISION": "f32"}
    for features in (SAPPHIRE_RAPIDS, ZEN_4, HASWELL):
        assert choose(features, config=RuntimeConfig.exact()) == expected


def test_other_devices_and_other_attention_get_openvinos_own() -> None:
    """The rules were measured on CPUs with paged attention."""
    assert choose(SAPPHIRE_RAPIDS, device="GPU") == {}
    assert choose(SAPPHIRE_RAPIDS, paged=False) == {}


@pytest.mark.trap(
    "In a container with a CPU quota (control groups of version 1 or 2), the default number of "
    "threads is the quota, rounded up; OpenVINO itself would start one for each processor.",
    about="Machines",
)
def test_a_quota_limits_the_threads() -> None:
    """OpenVINO obeys the affinity mask and not the container's quota."""
    for quota, threads in ((2.0, "2"), (1.5, "2"), (0.25, "1")):
        limited = Processor(name="fake", cpus=8, quota=quota)
        assert choose(set(), processor=limited) == {"INFERENCE_NUM_THREADS": threads}
        mine = RuntimeConfig(threads=5)
        assert choose(set(), config=mine, processor=limited) == {"INFERENCE_NUM_THREADS": "5"}
        assert choose(set(), device="GPU", processor=limited) == {}
    enough: tuple[float | None, ...] = (8.0, 9.5, None)
    for unlimited in enough:
        assert choose(set(), processor=Processor(name="fake", cpus=8, quota=unlimited)) == {}


def test_every_property_in_force_is_named_with_its_reason() -> None:
    """Also those that OpenVINO or the exporter decide, which are not passed on."""
    config = RuntimeConfig(threads=3)
    found = choose_settings(config, situation(ZEN_4, exported_kv_precision="f16"))
    said = {setting.name: (setting.value, setting.chosen_by) for setting in found}
    assert said == {
        "PERFORMANCE_HINT": ("LATENCY", "phi3ov"),
        "NUM_STREAMS": ("1", "phi3ov"),
        "INFERENCE_NUM_THREADS": ("3", "caller"),
        GROUPS: ("128", "phi3ov"),
        "KV_CACHE_PRECISION": ("f16", "export"),
        PRECISION: ("bf16", "openvino"),
    }
    reasons = {setting.name: setting.reason for setting in found}
    assert "AVX-512 VNNI" in reasons[GROUPS]
    assert "2026-" in reasons[GROUPS]
    assert all(reasons.values())
    assert pickle.loads(pickle.dumps(found)) == found
    assert str(found[2]) == "INFERENCE_NUM_THREADS=3 (set in RuntimeConfig)"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"device": "GPU"}, "measured CPUs only"),
        ({"paged": False}, "measured with paged attention"),
        ({"weights": FP16}, "no measurement for this processor with these weights"),
    ],
)
def test_what_is_left_to_openvino_says_why(changes: dict[str, object], reason: str) -> None:
    """The reason names what keeps the rules from counting."""
    found = choose_settings(RuntimeConfig(), situation(ZEN_4, **changes))  # type: ignore[arg-type]
    said = {setting.name: setting for setting in found}
    assert reason in said[PRECISION].reason
    assert said[PRECISION].chosen_by == "openvino"


def test_a_device_is_not_given_what_it_does_not_take() -> None:
    """A rule's property that it does not list is left out, the caller's is refused."""
    takes = frozenset({"PERFORMANCE_HINT", "NUM_STREAMS", PRECISION})
    assert choose(SAPPHIRE_RAPIDS, supported=takes) == {PRECISION: "f32"}
    with pytest.raises(OptionError, match="kv_cache_precision='f32': the device does not support"):
        choose(SAPPHIRE_RAPIDS, config=RuntimeConfig.exact(), supported=takes)


def files(root: Path, **contents: str) -> Path:
    """Write files below ``root``; ``__`` in a name is a slash."""
    for name, content in contents.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("contents", "quota"),
    [
        ({}, None),
        ({"proc__self__cgroup": "0::/\n"}, None),
        ({"proc__self__cgroup": "0::/\n", "sys__fs__cgroup__cpu.max": "150000 100000\n"}, 1.5),
        ({"proc__self__cgroup": "0::/\n", "sys__fs__cgroup__cpu.max": "max 100000\n"}, None),
        (
            {
                "proc__self__cgroup": "0::/a/b\n",
                "sys__fs__cgroup__a__cpu.max": "200000 100000\n",
                "sys__fs__cgroup__a__b__cpu.max": "400000 100000\n",
            },
            2.0,
        ),
        (
            {
                "proc__self__cgroup": "0::/host/only\n",
                "sys__fs__cgroup__cpu.max": "50000 100000\n",
            },
            0.5,
        ),
        (
            {
                "proc__self__cgroup": "4:memory:/x\n3:cpu,cpuacct:/docker/1\n",
                "sys__fs__cgroup__cpu,cpuacct__docker__1__cpu.cfs_quota_us": "300000\n",
                "sys__fs__cgroup__cpu,cpuacct__docker__1__cpu.cfs_period_us": "100000\n",
                "sys__fs__cgroup__cpu,cpuacct__cpu.cfs_quota_us": "-1\n",
                "sys__fs__cgroup__cpu,cpuacct__cpu.cfs_period_us": "100000\n",
            },
            3.0,
        ),
    ],
)
def test_the_quota_is_the_smallest_on_the_way(
    contents: dict[str, str], quota: float | None, tmp_path: Path
) -> None:
    """Control groups of both versions, nested, and seen from inside a container."""
    assert read_cpu_quota(files(tmp_path, **contents)) == quota


def test_a_quota_that_cannot_be_read_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And limits nothing."""
    contents = {"proc__self__cgroup": "0::/\n", "sys__fs__cgroup__cpu.max": "soon\n"}
    assert read_cpu_quota(files(tmp_path, **contents)) is None
    assert "cpu.max" in caplog.text or "cannot be read" in caplog.text


def set_affinity(monkeypatch: pytest.MonkeyPatch, *cpus: int) -> None:
    """Let the process run on these processors only."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _process: set(cpus), raising=False)


@pytest.mark.trap(
    "A process that may run on some processors only (taskset, a cpuset) counts those, and a "
    "larger quota changes nothing.",
    about="Machines",
)
def test_the_affinity_mask_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quota above the mask limits nothing; one below it does."""
    set_affinity(monkeypatch, 2, 3, 5)
    root = files(
        tmp_path, **{"proc__self__cgroup": "0::/\n", "sys__fs__cgroup__cpu.max": "400000 100000\n"}
    )
    found = read_processor("fake", root)
    assert (found.cpus, found.quota, found.threads_within_quota) == (3, 4.0, None)
    (root / "sys/fs/cgroup/cpu.max").write_text("150000 100000\n", encoding="utf-8")
    found = read_processor("fake", root)
    assert (found.cpus, found.quota, found.threads_within_quota) == (3, 1.5, 2)


def test_where_there_is_no_mask_all_processors_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows and macOS."""
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 12)
    assert read_processor("fake").cpus == 12
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert read_processor("fake").cpus == 1


@pytest.mark.parametrize(
    ("kinds", "mask", "expected"),
    [
        (("0-3", "4-11"), range(12), 4),
        (("0-1,4-5\n", "2-3,6\n"), range(12), 4),
        (("0-3", "4-11"), (0, 1, 8), 2),
        (("0-3", "4-11"), (0, 1), None),
        (("0-3", "4-11"), (8, 9), None),
        (("0-3", "\n"), range(4), None),
        (("0-3", "soon"), range(4), None),
        ((), range(4), None),
    ],
)
@pytest.mark.trap(
    "On a hybrid processor the performance cores are known; OpenVINO chooses between the kinds of "
    "cores, and the settings say so.",
    about="Machines",
)
def test_performance_cores_are_counted(
    kinds: tuple[str, ...],
    mask: Sequence[int],
    expected: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only those in the mask, and only where there are efficient cores beside them."""
    set_affinity(monkeypatch, *mask)
    for kind, text in zip(("cpu_core", "cpu_atom"), kinds, strict=False):
        files(tmp_path, **{f"sys__devices__{kind}__cpus": text})
    found = read_processor("fake", tmp_path)
    assert found.fast_cpus == expected
    own = choose_settings(RuntimeConfig(), situation(set(), processor=found))
    threads = next(setting for setting in own if setting.name == "INFERENCE_NUM_THREADS")
    assert threads.chosen_by == "openvino"
    assert ("efficient cores" in threads.reason) == (expected is not None)


def test_an_unreadable_processor_has_no_features(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, and OpenVINO's own settings are used."""

    def fail() -> object:
        raise OSError("no /proc here")

    monkeypatch.setattr("archspec.cpu.detect.detected_info", fail)
    with caplog.at_level(logging.WARNING, "phi3ov"):
        assert read_processor("x").features == frozenset()
    assert "no /proc here" in caplog.text


def test_this_machine_is_read() -> None:
    """Features are a subset of those that rules ask for, and as the system tells them."""
    found = read_processor("x")
    flags = Path("/proc/cpuinfo")
    if flags.is_file():
        words = set(flags.read_text(encoding="utf-8").split())
        assert found.features == frozenset(FEATURES) & words
    assert found.cpus == processor_module.usable_cpus() >= 1


def test_a_setting_is_a_value() -> None:
    """Equal settings are equal and hash alike."""
    one = Setting(name="A", value="1", chosen_by="phi3ov", reason="because")
    assert {one, replace(one)} == {one}
