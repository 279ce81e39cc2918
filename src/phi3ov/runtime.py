"""Where a model runs and how OpenVINO is told: device choice, and configuration as a value.

`choose_device` takes what the caller prefers and what the machine has, and says which device
was chosen and why. `RuntimeConfig` becomes OpenVINO properties for that device. Loading and
running is ``model.py``'s and ``engine/``'s work.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal, get_args

from .errors import DeviceError, OptionError

PerformanceHint = Literal["LATENCY", "THROUGHPUT"]
InferencePrecision = Literal["f32", "bf16", "f16"]
KVCachePrecision = Literal["f32", "f16", "u8", "i4"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeConfig:
    """How OpenVINO runs the model; the defaults are for one chat that answers soon.

    Attributes:
        performance_hint: OpenVINO's PERFORMANCE_HINT.
        num_streams: OpenVINO's NUM_STREAMS: parallel inferences, at least 1.
        cache_dir: OpenVINO's CACHE_DIR: compiled models are kept there, which makes later
            loads faster on a GPU. On a CPU it costs more than it saves, so it is off (None).
        threads: OpenVINO's INFERENCE_NUM_THREADS; None lets OpenVINO choose.
        inference_precision: OpenVINO's INFERENCE_PRECISION_HINT; None lets the device choose
            (bf16 on CPUs that have it). ``"f32"`` is the one that compares with other
            frameworks token for token.
        kv_cache_precision: OpenVINO's KV_CACHE_PRECISION; None lets the device choose.
        properties: Any other OpenVINO property by its own name. One that a field above sets
            is refused here; one that OpenVINO does not know, when the model is loaded.

    Raises:
        OptionError: A value is not allowed, or a property is given twice.

    Example:
        >>> RuntimeConfig(threads=4).to_properties()
        {'PERFORMANCE_HINT': 'LATENCY', 'NUM_STREAMS': '1', 'INFERENCE_NUM_THREADS': '4'}
    """

    performance_hint: PerformanceHint = "LATENCY"
    num_streams: int = 1
    cache_dir: Path | None = None
    threads: int | None = None
    inference_precision: InferencePrecision | None = None
    kv_cache_precision: KVCachePrecision | None = None
    properties: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        _require_choice("performance_hint", self.performance_hint, get_args(PerformanceHint))
        if self.inference_precision is not None:
            _require_choice(
                "inference_precision", self.inference_precision, get_args(InferencePrecision)
            )
        if self.kv_cache_precision is not None:
            _require_choice(
                "kv_cache_precision", self.kv_cache_precision, get_args(KVCachePrecision)
            )
        for name, value in (("num_streams", self.num_streams), ("threads", self.threads)):
            if name == "threads" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise OptionError(f"{name}={value!r} must be an integer of at least 1.")
        for name in self.properties:
            if name in _FIELD_OF_PROPERTY:
                raise OptionError(
                    f"properties[{name!r}] is what the field {_FIELD_OF_PROPERTY[name]} is for; "
                    "set that instead."
                )

    def to_properties(self, supported: Collection[str] | None = None) -> dict[str, str]:
        """Return the OpenVINO properties for a device.

        Args:
            supported: Names of the properties that the device takes; None takes all. What is
                still at its default and not supported is left out; what the caller set and
                the device does not take is refused.

        Raises:
            OptionError: The caller set a property that the device does not take.
        """
        properties = {
            "PERFORMANCE_HINT": self.performance_hint,
            "NUM_STREAMS": str(self.num_streams),
        }
        if self.cache_dir is not None:
            properties["CACHE_DIR"] = str(self.cache_dir)
        if self.threads is not None:
            properties["INFERENCE_NUM_THREADS"] = str(self.threads)
        if self.inference_precision is not None:
            properties["INFERENCE_PRECISION_HINT"] = self.inference_precision
        if self.kv_cache_precision is not None:
            properties["KV_CACHE_PRECISION"] = self.kv_cache_precision
        if supported is not None:
            defaults = RuntimeConfig().to_properties()
            for name in properties.keys() - set(supported):
                if properties[name] != defaults.get(name):
                    raise OptionError(
                        f"{_FIELD_OF_PROPERTY[name]}={properties[name]!r}: the device does not "
                        f"take OpenVINO's {name}."
                    )
                del properties[name]
        return properties | dict(self.properties)


_FIELD_OF_PROPERTY = {
    "PERFORMANCE_HINT": "performance_hint",
    "NUM_STREAMS": "num_streams",
    "CACHE_DIR": "cache_dir",
    "INFERENCE_NUM_THREADS": "threads",
    "INFERENCE_PRECISION_HINT": "inference_precision",
    "KV_CACHE_PRECISION": "kv_cache_precision",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceChoice:
    """Which device runs the model, and why.

    Attributes:
        requested: What the caller asked for, in order.
        selected: OpenVINO's name of the chosen device, such as ``"CPU"`` or ``"GPU.0"``.
        full_name: The device's own name, such as ``"Intel(R) Arc(TM) Graphics (iGPU)"``.
        reason: One sentence: why this one and not those before it.
    """

    requested: tuple[str, ...]
    selected: str
    full_name: str
    reason: str


def list_devices() -> dict[str, str]:
    """Return the machine's OpenVINO devices: name to full name.

    Example:
        >>> "CPU" in list_devices()
        True
    """
    from openvino import Core

    core = Core()
    return {
        name: str(core.get_property(name, "FULL_DEVICE_NAME")) for name in core.available_devices
    }


def choose_device(
    requested: str | Sequence[str], available: Mapping[str, str] | None = None
) -> DeviceChoice:
    """Choose the first requested device that the machine has.

    Args:
        requested: A device name, or several in order of preference. ``"GPU"`` and ``"GPU.0"``
            mean the same where there is one GPU; upper and lower case do not matter.
        available: The machine's devices, name to full name; None asks OpenVINO.

    Raises:
        DeviceError: None of them is there, or a name is no device.

    Example:
        >>> choose_device(("GPU.0", "CPU"), {"CPU": "Intel(R) Core(TM) Ultra 7"}).reason
        'GPU.0 is not there (OpenVINO finds CPU); CPU is.'
    """
    names = (requested,) if isinstance(requested, str) else tuple(requested or ())
    for name in names:
        _refuse_virtual(name)
    available = list_devices() if available is None else available
    if not names:
        raise DeviceError(f"device={requested!r} names no device. {_describe(available)}")
    missing: list[str] = []
    for name in names:
        selected = _find(name, available)
        if selected is not None:
            return DeviceChoice(
                requested=names,
                selected=selected,
                full_name=available[selected],
                reason=_reason(name, selected, missing, available),
            )
        missing.append(name)
    raise DeviceError(
        f"device={requested!r}: {' and '.join(missing)} "
        f"{'is' if len(missing) == 1 else 'are'} not there. {_describe(available)}"
        f"{_driver_hint(missing)}"
    )


def _refuse_virtual(name: object) -> None:
    if not isinstance(name, str):
        raise DeviceError(f"device={name!r} is no device name, such as 'CPU'.")
    if ":" in name or name.upper() in ("AUTO", "MULTI", "HETERO"):
        raise DeviceError(
            f"device={name!r} is a virtual device. phi3ov chooses by itself and says why: give an "
            "ordered preference instead, such as device=('GPU', 'CPU')."
        )


def _find(name: str, available: Mapping[str, str]) -> str | None:
    """Return OpenVINO's name for ``name``, or None where the machine has no such device."""
    wanted = name.upper()
    kind, _, number = wanted.partition(".")
    same_kind = [one for one in available if one.partition(".")[0] == kind]
    if wanted in available:
        return wanted
    if not number and same_kind:
        return min(same_kind)
    if number == "0" and same_kind == [kind]:
        return kind
    return None


def _reason(name: str, selected: str, missing: Sequence[str], available: Mapping[str, str]) -> str:
    alias = "" if name == selected else f" ({name} means {selected} here)"
    if not missing:
        return f"{selected} is the first choice and is there{alias}."
    verb = "is" if len(missing) == 1 else "are"
    return (
        f"{' and '.join(missing)} {verb} not there (OpenVINO finds {', '.join(available)}); "
        f"{selected} is{alias}."
    )


def _describe(available: Mapping[str, str]) -> str:
    listed = ", ".join(f"{name} ({full_name})" for name, full_name in available.items())
    return f"OpenVINO finds on this machine: {listed or 'nothing'}."


def _driver_hint(missing: Sequence[str]) -> str:
    kinds = {name.partition(".")[0].upper() for name in missing} & {"GPU", "NPU"}
    if not kinds:
        return ""
    return f" An Intel {' or '.join(sorted(kinds))} appears here once its driver is installed."


def _require_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise OptionError(f"{name}={value!r} is not one of {', '.join(map(repr, choices))}.")
