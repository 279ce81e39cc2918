"""Which device is chosen, why, and what OpenVINO is told."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from phi3ov.errors import DeviceError, OptionError
from phi3ov.runtime.config import RuntimeConfig
from phi3ov.runtime.devices import choose_device

CPU = {"CPU": "Intel CPU"}
ONE_GPU = {"CPU": "Intel CPU", "GPU": "Arc"}
TWO_GPUS = {"CPU": "Intel CPU", "GPU.0": "iGPU", "GPU.1": "dGPU"}

CHOICES: list[tuple[str | tuple[str, ...], dict[str, str], str, str]] = [
    ("CPU", CPU, "CPU", "CPU is the first choice and is there."),
    ("cpu", CPU, "CPU", "CPU is the first choice and is there (cpu means CPU here)."),
    ("CPU.0", CPU, "CPU", "CPU is the first choice and is there (CPU.0 means CPU here)."),
    ("GPU.0", ONE_GPU, "GPU", "GPU is the first choice and is there (GPU.0 means GPU here)."),
    ("GPU", TWO_GPUS, "GPU.0", "GPU.0 is the first choice and is there (GPU means GPU.0 here)."),
    (
        "gpu.1",
        TWO_GPUS,
        "GPU.1",
        "GPU.1 is the first choice and is there (gpu.1 means GPU.1 here).",
    ),
    (("GPU", "CPU"), CPU, "CPU", "GPU is not there (OpenVINO finds CPU); CPU is."),
    (("GPU", "CPU"), ONE_GPU, "GPU", "GPU is the first choice and is there."),
    (
        ("NPU", "GPU.2", "cpu"),
        TWO_GPUS,
        "CPU",
        "NPU and GPU.2 are not there (OpenVINO finds CPU, GPU.0, GPU.1); "
        "CPU is (cpu means CPU here).",
    ),
]


@pytest.mark.parametrize(("requested", "available", "selected", "reason"), CHOICES)
def test_first_device_that_is_there_is_chosen(
    requested: str | tuple[str, ...], available: dict[str, str], selected: str, reason: str
) -> None:
    """The order of preference decides, aliases are understood, and the reason is exact."""
    choice = choose_device(requested, available)
    assert (choice.selected, choice.reason) == (selected, reason)
    assert choice.full_name == available[selected]
    assert choice.requested == ((requested,) if isinstance(requested, str) else requested)


@pytest.mark.parametrize(
    "device", ["AUTO", "auto", "AUTO:GPU,CPU", "MULTI:GPU", "HETERO", "hetero:CPU"]
)
def test_virtual_devices_are_refused(device: str) -> None:
    """A device that chooses in silence is refused, with the way out."""
    with pytest.raises(DeviceError, match=r"is a virtual device.*device=\('GPU', 'CPU'\)"):
        choose_device((device, "CPU"), CPU)


@pytest.mark.parametrize(
    ("requested", "available", "message"),
    [
        ("GPU", CPU, r"GPU is not there. OpenVINO finds .*CPU \(Intel CPU\).*driver"),
        ("GPU.1", ONE_GPU, r"GPU.1 is not there.*GPU \(Arc\)"),
        (("NPU", "GPU"), CPU, r"NPU and GPU are not there.*An Intel GPU or NPU appears"),
        ("TPU", CPU, r"TPU is not there.*CPU \(Intel CPU\)\.$"),
        ("CPU", {}, r"finds on this machine: nothing\.$"),
        ((), CPU, "names no device"),
        ("", CPU, "is not there"),
    ],
)
def test_missing_devices_say_what_exists(
    requested: str | tuple[str, ...], available: dict[str, str], message: str
) -> None:
    """The error says what was asked, what exists and, for GPU and NPU, that a driver is needed."""
    with pytest.raises(DeviceError, match=message):
        choose_device(requested, available)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"performance_hint": "FAST"}, "performance_hint='FAST' is not one of 'LATENCY'"),
        ({"inference_precision": "fp32"}, "inference_precision='fp32' is not one of 'f32'"),
        ({"kv_cache_precision": "i8"}, "kv_cache_precision='i8' is not one of 'f32'"),
        ({"key_cache_precision": "f16"}, "key_cache_precision='f16' is not one of 'u8'"),
        ({"key_cache_precision": "u8"}, "key_cache_precision='u8' needs value_cache_precision"),
        ({"value_cache_precision": "u4"}, "value_cache_precision='u4' needs key_cache_precision"),
        (
            {
                "kv_cache_precision": "u8",
                "key_cache_precision": "u8",
                "value_cache_precision": "u4",
            },
            "kv_cache_precision='u8' contradicts key_cache_precision",
        ),
        ({"key_cache_scales": "token"}, "key_cache_scales='token' has no effect without a quant"),
        (
            {"kv_cache_precision": "f16", "value_cache_group_size": 16},
            "value_cache_group_size=16 has no effect without a quantized",
        ),
        (
            {"kv_cache_precision": "u8", "key_cache_group_size": 16},
            "key_cache_group_size=16 has no effect without key_cache_scales='token'",
        ),
        (
            {"kv_cache_precision": "u8", "key_cache_scales": "channel", "key_cache_group_size": 8},
            "has no effect without key_cache_scales='token'",
        ),
        ({"kv_cache_precision": "u8", "key_cache_scales": "row"}, "key_cache_scales='row' is not"),
        ({"kv_cache_precision": "u8", "value_cache_group_size": 0}, "group_size=0 must"),
        ({"properties": {"KEY_CACHE_GROUP_SIZE": "8"}}, "field key_cache_group_size"),
        ({"properties": {"VALUE_CACHE_QUANT_MODE": "BY_CHANNEL"}}, "accepts it and ignores it"),
        ({"properties": {"ATTENTION_BACKEND": "SDPA"}}, "has no prefix cache"),
        ({"properties": {"scheduler_config": "x"}}, "Sparse attention and cache eviction are not"),
        (
            {"properties": {"use_cache_eviction": "true"}},
            "cache eviction of openvino-genai changes",
        ),
        ({"properties": {"sparse_attention_config": "x"}}, "is ignored or changes answers"),
        ({"properties": {"KEY_CACHE_QUANT_ALG": "TURBO"}}, "paged attention ignores it"),
        ({"properties": {"EXECUTION_MODE_HINT": "ACCURACY"}}, "RuntimeConfig.exact"),
        *(
            ({"num_streams": one}, f"num_streams={one!r} must")
            for one in (0, -1, True, 1.5, "2", None)
        ),
        *(({"threads": one}, f"threads={one!r} must") for one in (0, -1, True, 2.5, "4")),
        *(
            ({"dynamic_quantization_group_size": one}, f"group_size={one!r} must")
            for one in (-1, True, 32.0, "32")
        ),
        ({"properties": {"NUM_STREAMS": "2"}}, r"properties\['NUM_STREAMS'\].*field num_streams"),
        ({"properties": {"CACHE_DIR": "x"}}, "field cache_dir"),
        ({"properties": {"LOG_LEVEL": 3}}, r"properties\['LOG_LEVEL'\]=3: .* as strings"),
        ({"properties": {3: "LOG_LEVEL"}}, r"properties\[3\]='LOG_LEVEL': .* as strings"),
        ({"cache_dir": 3}, "cache_dir=3 must be a path"),
    ],
)
def test_config_refuses_bad_values(values: dict[str, Any], message: str) -> None:
    """Each bad value is refused by field and value, and no property can be given twice."""
    with pytest.raises(OptionError, match=message):
        RuntimeConfig(**values)


def test_properties_are_copied() -> None:
    """What the caller does to his dict later changes nothing, and nobody changes ours."""
    given = {"LOG_LEVEL": "LOG_NONE"}
    config = RuntimeConfig(properties=given)
    given["LOG_LEVEL"] = "LOG_DEBUG"
    assert config.properties == {"LOG_LEVEL": "LOG_NONE"}
    with pytest.raises(TypeError):
        config.properties["LOG_LEVEL"] = "LOG_DEBUG"  # type: ignore[index]


def test_defaults_are_the_seeds_properties() -> None:
    """Without a word: one stream, low latency, nothing else."""
    assert RuntimeConfig().to_properties() == {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"}


def test_every_field_becomes_its_property() -> None:
    """No field is accepted and ignored."""
    config = RuntimeConfig(
        performance_hint="THROUGHPUT",
        num_streams=2,
        cache_dir=Path("cache"),
        threads=3,
        inference_precision="f32",
        kv_cache_precision="u8",
        dynamic_quantization_group_size=128,
        properties={"LOG_LEVEL": "LOG_NONE"},
    )
    assert config.to_properties() == {
        "PERFORMANCE_HINT": "THROUGHPUT",
        "NUM_STREAMS": "2",
        "CACHE_DIR": str(Path.cwd() / "cache"),
        "INFERENCE_NUM_THREADS": "3",
        "INFERENCE_PRECISION_HINT": "f32",
        "KV_CACHE_PRECISION": "u8",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "128",
        "LOG_LEVEL": "LOG_NONE",
    }


def test_exact_rounds_nothing() -> None:
    """Float32 arithmetic, a float32 cache, no rounded activations; float32 alone says no more."""
    assert RuntimeConfig.exact().to_properties() == {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_PRECISION_HINT": "f32",
        "KV_CACHE_PRECISION": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    }
    said = RuntimeConfig(inference_precision="f32").to_properties()
    assert "DYNAMIC_QUANTIZATION_GROUP_SIZE" not in said


CONFIGS = [
    RuntimeConfig(),
    RuntimeConfig.exact(),
    RuntimeConfig(cache_dir=Path("cache"), threads=2, properties={"LOG_LEVEL": "LOG_NONE"}),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_a_config_travels(config: RuntimeConfig) -> None:
    """It can be pickled, copied, hashed, and turned into a dict of its fields and back."""
    for copied in (
        pickle.loads(pickle.dumps(config)),
        copy.deepcopy(config),
        RuntimeConfig(**dataclasses.asdict(config)),
    ):
        assert copied == config
        assert hash(copied) == hash(config)
    assert json.loads(json.dumps(dataclasses.asdict(config)["properties"])) == config.properties
    assert len({*CONFIGS, config}) == len(CONFIGS)


@pytest.mark.parametrize(
    "change",
    [
        lambda properties: properties.update(A="B"),
        lambda properties: properties.pop("LOG_LEVEL"),
        lambda properties: properties.clear(),
        lambda properties: properties.setdefault("A", "B"),
        lambda properties: properties.__ior__({"A": "B"}),
    ],
)
def test_the_properties_of_a_config_stay(change: Callable[[Any], object]) -> None:
    """None of a dict's methods changes them; the hash would no longer fit."""
    config = CONFIGS[2]
    with pytest.raises(TypeError, match="cannot be changed"):
        change(config.properties)
    assert config.properties == {"LOG_LEVEL": "LOG_NONE"}


def test_keys_and_values_have_properties_of_their_own() -> None:
    """Each field is passed on, also to a device that lists the mode of keys nowhere."""
    config = RuntimeConfig(
        key_cache_precision="u8",
        value_cache_precision="u4",
        key_cache_scales="token",
        key_cache_group_size=32,
        value_cache_group_size=16,
    )
    expected = {
        "KEY_CACHE_PRECISION": "u8",
        "VALUE_CACHE_PRECISION": "u4",
        "KEY_CACHE_QUANT_MODE": "BY_TOKEN",
        "KEY_CACHE_GROUP_SIZE": "32",
        "VALUE_CACHE_GROUP_SIZE": "16",
    }
    assert config.to_properties().items() >= expected.items()
    listed = [name for name in expected if name != "KEY_CACHE_QUANT_MODE"]
    assert config.to_properties(listed) == expected
    with pytest.raises(OptionError, match="key_cache_precision='u8': the device does not support"):
        config.to_properties([])
    config.check_groups(96)
    with pytest.raises(OptionError, match=r"key_cache_group_size=32 does not divide .* heads, 80"):
        config.check_groups(80)


def test_unsupported_defaults_are_left_out() -> None:
    """A device that does not take a default property still works."""
    assert RuntimeConfig().to_properties(["NUM_STREAMS"]) == {"NUM_STREAMS": "1"}
    assert RuntimeConfig().to_properties([]) == {}


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"threads": 2}, "threads='2'"),
        ({"num_streams": 4}, "num_streams='4'"),
        ({"kv_cache_precision": "u8"}, "kv_cache_precision='u8'"),
        ({"cache_dir": Path("x")}, r"cache_dir='.*x'"),
    ],
)
def test_unsupported_wishes_are_refused(values: dict[str, Any], field: str) -> None:
    """What the caller set and the device does not take is an error, not ignored."""
    with pytest.raises(OptionError, match=f"{field}: the device does not support"):
        RuntimeConfig(**values).to_properties(["PERFORMANCE_HINT"])
