"""How OpenVINO is told to run a model: `RuntimeConfig`, which becomes OpenVINO properties.

Which device runs it is ``devices.py``; loading and running is ``loading.py``'s and ``engine/``'s
work.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal, get_args

from ..errors import OptionError
from ..validation import require_choice, require_integer

PerformanceHint = Literal["LATENCY", "THROUGHPUT"]
"""What OpenVINO plans for: one answer soon, or many per second."""

InferencePrecision = Literal["f32", "bf16", "f16"]
"""What the device computes in."""

KVCachePrecision = Literal["f32", "f16", "u8", "u4", "i4"]
"""What keys and values are kept in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeConfig:
    """How OpenVINO runs the model; the defaults are for one chat that answers soon.

    Attributes:
        performance_hint: OpenVINO's PERFORMANCE_HINT.
        num_streams: OpenVINO's NUM_STREAMS: parallel inferences, at least 1.
        cache_dir: OpenVINO's CACHE_DIR: compiled models are kept there, which makes later
            loads faster on a GPU. On a CPU it makes them slower, which is logged, except for
            ``engine="transformers"``: OpenVINO writes a model with paged attention there and
            does not read it back. None is off.
        threads: OpenVINO's INFERENCE_NUM_THREADS; None lets OpenVINO choose.
        inference_precision: OpenVINO's INFERENCE_PRECISION_HINT; None lets the device choose
            (bf16 on CPUs that have it). ``"f32"`` is the one that compares with other
            frameworks token for token, as `dynamic_quantization_group_size` is then 0.
        kv_cache_precision: OpenVINO's KV_CACHE_PRECISION; None is what the exporter wrote into
            the IR (``"f16"`` from optimum-intel), else the device's choice (``"u8"`` on a CPU).
        dynamic_quantization_group_size: OpenVINO's DYNAMIC_QUANTIZATION_GROUP_SIZE: so many
            activations share a scale when they are rounded to 8 bits before they meet
            compressed weights; 0 rounds none. None lets the device choose (32 on a CPU; one
            without VNNI rounds none), or is 0 with ``inference_precision="f32"``, where OpenVINO
            alone would go on rounding. 128 is faster and less exact (decision 20); above the
            group size of the weights OpenVINO rounds none.
        properties: Any other OpenVINO property by its own name. One that a field above sets
            is refused here; one that OpenVINO does not know is a `DeviceError` when the model
            is loaded. A CPU gets ``CPU_RUNTIME_CACHE_CAPACITY`` 100 unless it is here: with
            OpenVINO's 5 000 memory grows for thousands of turns.

    Raises:
        OptionError: A value is not allowed, or a property is given twice.

    Example:
        >>> RuntimeConfig(threads=4).to_properties()
        {'PERFORMANCE_HINT': 'LATENCY', 'NUM_STREAMS': '1', 'INFERENCE_NUM_THREADS': '4'}
    """

    performance_hint: PerformanceHint = "LATENCY"
    num_streams: int = 1
    cache_dir: str | Path | None = None
    threads: int | None = None
    inference_precision: InferencePrecision | None = None
    kv_cache_precision: KVCachePrecision | None = None
    dynamic_quantization_group_size: int | None = None
    properties: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        require_choice("performance_hint", self.performance_hint, get_args(PerformanceHint))
        if self.inference_precision is not None:
            require_choice(
                "inference_precision", self.inference_precision, get_args(InferencePrecision)
            )
        if self.cache_dir is not None and not isinstance(self.cache_dir, (str, Path)):
            raise OptionError(f"cache_dir={self.cache_dir!r} must be a path or None.")
        if self.kv_cache_precision is not None:
            require_choice(
                "kv_cache_precision", self.kv_cache_precision, get_args(KVCachePrecision)
            )
        require_integer("num_streams", self.num_streams, least=1)
        if self.threads is not None:
            require_integer("threads", self.threads, least=1)
        if self.dynamic_quantization_group_size is not None:
            require_integer(
                "dynamic_quantization_group_size", self.dynamic_quantization_group_size, least=0
            )
        object.__setattr__(self, "properties", MappingProxyType(dict(self.properties)))
        for name, value in self.properties.items():
            if not isinstance(name, str) or not isinstance(value, str):
                raise OptionError(
                    f"properties[{name!r}]={value!r}: OpenVINO's properties are given as strings, "
                    f"such as {{{str(name)!r}: {str(value)!r}}}."
                )
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
            properties["CACHE_DIR"] = str(Path(self.cache_dir).absolute())
        if self.threads is not None:
            properties["INFERENCE_NUM_THREADS"] = str(self.threads)
        if self.inference_precision is not None:
            properties["INFERENCE_PRECISION_HINT"] = self.inference_precision
        if self.kv_cache_precision is not None:
            properties["KV_CACHE_PRECISION"] = self.kv_cache_precision
        if self.dynamic_quantization_group_size is not None:
            size = self.dynamic_quantization_group_size
            properties[_ROUNDING] = str(size)
        if supported is not None:
            defaults = RuntimeConfig().to_properties()
            for name in properties.keys() - set(supported):
                if properties[name] != defaults.get(name):
                    raise OptionError(
                        f"{_FIELD_OF_PROPERTY[name]}={properties[name]!r}: the device does not "
                        f"take OpenVINO's {name}."
                    )
                del properties[name]
        if (
            self.inference_precision == "f32"
            and self.dynamic_quantization_group_size is None
            and (supported is None or _ROUNDING in supported)
        ):
            properties[_ROUNDING] = "0"
        return properties | dict(self.properties)


_ROUNDING = "DYNAMIC_QUANTIZATION_GROUP_SIZE"

_FIELD_OF_PROPERTY = {
    "PERFORMANCE_HINT": "performance_hint",
    "NUM_STREAMS": "num_streams",
    "CACHE_DIR": "cache_dir",
    "INFERENCE_NUM_THREADS": "threads",
    "INFERENCE_PRECISION_HINT": "inference_precision",
    "KV_CACHE_PRECISION": "kv_cache_precision",
    _ROUNDING: "dynamic_quantization_group_size",
}
