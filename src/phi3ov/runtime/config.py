"""The caller's OpenVINO settings: `RuntimeConfig`, which is translated to OpenVINO properties.

``settings.py`` chooses the settings that the caller leaves unset, and ``devices.py`` chooses the
device.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

from ..errors import OptionError
from ..validation import require_choice, require_integer

PerformanceHint = Literal["LATENCY", "THROUGHPUT"]
"""OpenVINO's optimization goal: latency of one answer, or throughput of many."""

InferencePrecision = Literal["f32", "bf16", "f16"]
"""Precision of the device's arithmetic."""

KVCachePrecision = Literal["f32", "f16", "u8", "u4", "i4"]
"""Precision of the KV cache."""

CoarsePrecision = Literal["u8", "u4"]
"""Precisions that may differ between keys and values."""

KeyScales = Literal["channel", "token"]
"""What shares a scale in a quantized cache of keys: a channel of a block, or a token's channels."""


def _refuse() -> NoReturn:
    raise TypeError("RuntimeConfig.properties cannot be changed; use dataclasses.replace().")


class Properties(dict[str, str]):
    """Immutable, hashable dict of OpenVINO properties by name."""

    def __setitem__(self, *_args: object, **_options: object) -> NoReturn:
        _refuse()

    def __delitem__(self, *_args: object, **_options: object) -> NoReturn:
        _refuse()

    def __ior__(self, *_args: object, **_options: object) -> NoReturn:  # type: ignore[misc]
        _refuse()

    def clear(self, *_args: object, **_options: object) -> NoReturn:
        """Refuse."""
        _refuse()

    def pop(self, *_args: object, **_options: object) -> NoReturn:
        """Refuse."""
        _refuse()

    def popitem(self, *_args: object, **_options: object) -> NoReturn:
        """Refuse."""
        _refuse()

    def setdefault(self, *_args: object, **_options: object) -> NoReturn:
        """Refuse."""
        _refuse()

    def update(self, *_args: object, **_options: object) -> NoReturn:
        """Refuse."""
        _refuse()

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def __reduce__(self) -> tuple[Any, ...]:  # dict's version would call __setitem__
        return Properties, (dict(self),)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeConfig:
    """OpenVINO settings of a loaded model; the defaults minimize the latency of a single chat.

    Fields that are None are chosen when the model is loaded, for its processor and weights.
    `Phi3Model.settings` lists each property in force with its reason.

    Attributes:
        performance_hint: OpenVINO's PERFORMANCE_HINT.
        num_streams: OpenVINO's NUM_STREAMS: parallel inferences, at least 1.
        cache_dir: OpenVINO's CACHE_DIR: a folder for compiled models, which makes later loads
            faster on a GPU. On a CPU only ``engine="transformers"`` gains: OpenVINO writes a
            model with paged attention there and does not read it back, so loading takes longer,
            and a warning is logged. None disables it.
        threads: OpenVINO's INFERENCE_NUM_THREADS. None is OpenVINO's choice within the
            affinity mask, or the container's CPU quota if that is lower.
        inference_precision: OpenVINO's INFERENCE_PRECISION_HINT.
        kv_cache_precision: OpenVINO's KV_CACHE_PRECISION. None is the value that the exporter
            wrote into the IR (``"f16"`` from optimum-intel), or else the device's choice
            (``"u8"`` on a CPU).
        key_cache_precision: OpenVINO's KEY_CACHE_PRECISION, for keys alone; needs
            ``value_cache_precision``. Keys suffer more from four bits than values do.
        value_cache_precision: OpenVINO's VALUE_CACHE_PRECISION, for values alone; likewise.
        key_cache_scales: OpenVINO's KEY_CACHE_QUANT_MODE for keys in ``"u8"`` or ``"u4"``:
            ``"channel"`` (a CPU's default) shares a scale among the tokens of a block,
            ``"token"`` among the channels of a token. Values always have theirs by token.
        key_cache_group_size: OpenVINO's KEY_CACHE_GROUP_SIZE: channels that share a scale with
            ``key_cache_scales="token"``; a divisor of the head's width. None is all of them.
        value_cache_group_size: OpenVINO's VALUE_CACHE_GROUP_SIZE, the same for values.
        dynamic_quantization_group_size: OpenVINO's DYNAMIC_QUANTIZATION_GROUP_SIZE: number of
            activations per dynamic quantization group, which share a scale when they are rounded
            to 8 bits for products with compressed weights. Larger groups are faster and less
            exact. 0 disables dynamic quantization, and so does a size above the group size of
            the weights.
        huge_pages: Back the weights with huge pages on Linux, which makes decoding 1.05 to 1.25
            times as fast. In this process, the memory that loading took is moved after the first
            answer; the engine ``"worker"`` starts its child with an allocator that asks for them.
            False leaves memory as it is. `Phi3Model.settings` says what happened.
        properties: Any other OpenVINO property by name. A property that a field above sets is
            refused; one that OpenVINO does not know raises a `DeviceError` when the model is
            loaded. On a CPU, ``CPU_RUNTIME_CACHE_CAPACITY`` defaults to 100 instead of OpenVINO's
            5 000, with which memory grows for thousands of turns.

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
    key_cache_precision: CoarsePrecision | None = None
    value_cache_precision: CoarsePrecision | None = None
    key_cache_scales: KeyScales | None = None
    key_cache_group_size: int | None = None
    value_cache_group_size: int | None = None
    dynamic_quantization_group_size: int | None = None
    huge_pages: bool = True
    properties: Mapping[str, str] = field(default_factory=Properties)

    def __post_init__(self) -> None:
        require_choice("performance_hint", self.performance_hint, get_args(PerformanceHint))
        if self.inference_precision is not None:
            require_choice(
                "inference_precision", self.inference_precision, get_args(InferencePrecision)
            )
        if self.cache_dir is not None and not isinstance(self.cache_dir, (str, Path)):
            raise OptionError(
                f"cache_dir={self.cache_dir!r} must be a path or None.", option="cache_dir"
            )
        self._check_cache()
        require_integer("num_streams", self.num_streams, least=1)
        if self.threads is not None:
            require_integer("threads", self.threads, least=1)
        if self.dynamic_quantization_group_size is not None:
            require_integer(
                "dynamic_quantization_group_size", self.dynamic_quantization_group_size, least=0
            )
        if not isinstance(self.huge_pages, bool):
            raise OptionError(
                f"huge_pages={self.huge_pages!r} must be True or False.", option="huge_pages"
            )
        object.__setattr__(self, "properties", Properties(self.properties))
        for name, value in self.properties.items():
            if not isinstance(name, str) or not isinstance(value, str):
                raise OptionError(
                    f"properties[{name!r}]={value!r}: OpenVINO's properties are given as strings, "
                    f"such as {{{str(name)!r}: {str(value)!r}}}.",
                    option="properties",
                )
            require_effect(name, value)
            if name in _FIELD_OF_PROPERTY:
                raise OptionError(
                    f"properties[{name!r}] belongs in the field {_FIELD_OF_PROPERTY[name]}. "
                    "Set that instead.",
                    option="properties",
                )

    def _check_cache(self) -> None:
        for name, choices in _CACHE_CHOICES.items():
            if getattr(self, name) is not None:
                require_choice(name, getattr(self, name), choices)
        parts = {name: getattr(self, name) for name in ("key_cache_precision", _VALUES)}
        given = {name: value for name, value in parts.items() if value is not None}
        if given and self.kv_cache_precision is not None:
            raise OptionError(
                f"kv_cache_precision={self.kv_cache_precision!r} contradicts {next(iter(given))}: "
                "it is for keys and values together. Leave one of them out.",
                option="kv_cache_precision",
            )
        if len(given) == 1:
            [missing] = parts.keys() - given.keys()
            raise OptionError(
                f"{next(iter(given))}={next(iter(given.values()))!r} needs {missing}: OpenVINO "
                "computes with keys and values that are both 'u8' or 'u4'.",
                option=next(iter(given)),
            )
        is_quantized = bool(given) or self.kv_cache_precision in get_args(CoarsePrecision)
        for name in ("key_cache_scales", "key_cache_group_size", "value_cache_group_size"):
            value = getattr(self, name)
            if value is None:
                continue
            if name != "key_cache_scales":
                require_integer(name, value, least=1)
            if not is_quantized:
                raise OptionError(
                    f"{name}={value!r} has no effect without a quantized cache. Set "
                    "kv_cache_precision to 'u8' or 'u4', or leave it out.",
                    option=name,
                )
        if self.key_cache_group_size is not None and self.key_cache_scales != "token":
            raise OptionError(
                f"key_cache_group_size={self.key_cache_group_size} has no effect without "
                "key_cache_scales='token': OpenVINO ignores it. Set that, or leave it out.",
                option="key_cache_group_size",
            )

    def check_groups(self, head_dim: int) -> None:
        """Check that the groups of a quantized cache divide the width of a head.

        Raises:
            OptionError: One does not. OpenVINO would fail at the first token.
        """
        for name in ("key_cache_group_size", "value_cache_group_size"):
            size = getattr(self, name)
            if size is not None and head_dim % size:
                raise OptionError(
                    f"{name}={size} does not divide the width of this model's heads, {head_dim}.",
                    option=name,
                )

    @classmethod
    def exact(cls) -> RuntimeConfig:
        """Return settings with float32 arithmetic throughout, so that only weights are rounded.

        Use them for token-by-token comparison with other frameworks; they are slower than the
        default. Change other fields with `dataclasses.replace`.

        Example:
            >>> RuntimeConfig.exact().dynamic_quantization_group_size
            0
        """
        return cls(
            inference_precision="f32", kv_cache_precision="f32", dynamic_quantization_group_size=0
        )

    def to_properties(self, supported: Collection[str] | None = None) -> dict[str, str]:
        """Return PERFORMANCE_HINT, NUM_STREAMS, and all OpenVINO properties that the caller set.

        Args:
            supported: Names of the properties that the device supports; None for all. An
                unsupported field at its default is left out.

        Raises:
            OptionError: The caller set a property that the device does not support.
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
        properties |= self._cache_properties()
        if self.dynamic_quantization_group_size is not None:
            properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = str(
                self.dynamic_quantization_group_size
            )
        if supported is not None:
            defaults = RuntimeConfig().to_properties()
            if "KEY_CACHE_PRECISION" in supported:  # with which it comes; no list names it
                supported = {*supported, "KEY_CACHE_QUANT_MODE"}
            for name in [name for name in properties if name not in supported]:
                if properties[name] != defaults.get(name):
                    raise OptionError(
                        f"{_FIELD_OF_PROPERTY[name]}={properties[name]!r}: the device does not "
                        f"support OpenVINO's {name}. Leave it out.",
                        option=_FIELD_OF_PROPERTY[name],
                    )
                del properties[name]
        return properties | dict(self.properties)

    def _cache_properties(self) -> dict[str, str]:
        scales = self.key_cache_scales
        values = {
            "KEY_CACHE_PRECISION": self.key_cache_precision,
            "VALUE_CACHE_PRECISION": self.value_cache_precision,
            "KEY_CACHE_QUANT_MODE": None if scales is None else f"BY_{scales.upper()}",
            "KEY_CACHE_GROUP_SIZE": self.key_cache_group_size,
            "VALUE_CACHE_GROUP_SIZE": self.value_cache_group_size,
        }
        return {name: str(value) for name, value in values.items() if value is not None}


_FIELD_OF_PROPERTY = {
    "PERFORMANCE_HINT": "performance_hint",
    "NUM_STREAMS": "num_streams",
    "CACHE_DIR": "cache_dir",
    "INFERENCE_NUM_THREADS": "threads",
    "INFERENCE_PRECISION_HINT": "inference_precision",
    "KV_CACHE_PRECISION": "kv_cache_precision",
    "KEY_CACHE_PRECISION": "key_cache_precision",
    "VALUE_CACHE_PRECISION": "value_cache_precision",
    "KEY_CACHE_QUANT_MODE": "key_cache_scales",
    "KEY_CACHE_GROUP_SIZE": "key_cache_group_size",
    "VALUE_CACHE_GROUP_SIZE": "value_cache_group_size",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "dynamic_quantization_group_size",
    "HUGE_PAGES": "huge_pages",
}

_VALUES = "value_cache_precision"
_CACHE_CHOICES: Mapping[str, tuple[str, ...]] = {
    "kv_cache_precision": get_args(KVCachePrecision),
    "key_cache_precision": get_args(CoarsePrecision),
    _VALUES: get_args(CoarsePrecision),
    "key_cache_scales": get_args(KeyScales),
}

_EVICTION = (
    "cache eviction of openvino-genai changes answers: where it has evicted, 2 of 20 tokens were "
    "those of the whole cache (test_upstream_cache_eviction_changes_answers). Set context_tokens "
    "and cache_bytes of load_model()"
)
_SPARSE = (
    "sparse attention of openvino-genai is ignored or changes answers: XAttention does nothing for "
    "two prompts at once and gave 0 of 20 tokens for a prompt read in chunks; TRISHAPE does "
    "nothing for a prompt read at once (test_upstream_sparse_attention_is_ignored_or_wrong)"
)
_FILLED_IN = "it is openvino-genai's scheduler, which phi3ov fills in. {}"
_TURBO = (
    "paged attention ignores it: answers are those of the same precision without it "
    "(test_upstream_paged_attention_ignores_turbo). Set kv_cache_precision"
)
_WITHOUT_EFFECT: Mapping[str, str] = {
    "VALUE_CACHE_QUANT_MODE": "OpenVINO accepts it and ignores it: values have their scales by "
    "token (test_upstream_openvino_ignores_how_values_are_scaled)",
    "KEY_CACHE_QUANT_ALG": _TURBO,
    "VALUE_CACHE_QUANT_ALG": _TURBO,
    "EXECUTION_MODE_HINT": "it changes the precisions of arithmetic and cache and the rounding of "
    "activations together, also beside INFERENCE_PRECISION_HINT, so the settings would be wrong "
    "(test_upstream_accuracy_mode_changes_other_settings). Use RuntimeConfig.exact() or the fields",
    "ATTENTION_BACKEND": "it is openvino-genai's, which phi3ov tells to use paged attention: the "
    "other one has no prefix cache",
    "scheduler_config": _FILLED_IN.format(
        "cache_bytes and limits of load_model() are what it offers. Sparse attention and cache "
        "eviction are not among them: they are ignored, or answers are wrong with them"
    ),
    "use_cache_eviction": _EVICTION,
    "cache_eviction_config": _EVICTION,
    "use_sparse_attention": _SPARSE,
    "sparse_attention_config": _SPARSE,
    "enable_prefix_caching": _FILLED_IN.format("Prefixes are always cached"),
    "cache_size": _FILLED_IN.format("Set cache_bytes of load_model()"),
    "num_kv_blocks": _FILLED_IN.format("Set cache_bytes of load_model()"),
    "max_num_seqs": _FILLED_IN.format("Set limits=RequestLimits(max_running=...)"),
    "max_num_batched_tokens": _FILLED_IN.format("phi3ov tune chooses the prompt chunk"),
    "dynamic_split_fuse": _FILLED_IN.format("Prompts are always read in chunks"),
    "prompt_lookup": "give load_model(speculation=PromptLookup(...))",
    "draft_model": "give load_model(speculation=DraftModel(...))",
    "adapters": "give load_model(adapter=LoraAdapter(...))",
}
"""Names that OpenVINO or openvino-genai would take, with a wrong result or none."""


def require_effect(name: str, value: object) -> None:
    """Check that a property is none that OpenVINO or openvino-genai ignores or answers wrongly.

    Args:
        name: Name of the property.
        value: Its value, for the error.

    Raises:
        OptionError: It is; says why and what to use instead.

    Example:
        >>> require_effect("ENABLE_CPU_PINNING", "NO")
    """
    if name in _WITHOUT_EFFECT:
        raise OptionError(
            f"properties[{name!r}]={value!r} is refused: {_WITHOUT_EFFECT[name]}.",
            option="properties",
        )
