"""Settings in force, each with its reason: `Setting`, and the rules that choose them.

`RULES` maps kinds of processor and weights to settings, with the measurement behind each row. A
processor without a row gets OpenVINO's own settings. The guide "Load" shows the table, generated
from here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..artifact.ir import WeightSummary
from .config import InferencePrecision, Properties, RuntimeConfig
from .processor import Processor
from .tuning import TunedSettings

ChosenBy = Literal["caller", "phi3ov", "tune", "export", "openvino"]
"""Origin of a setting: the caller, `RULES`, ``phi3ov tune``, the exporter, or OpenVINO."""

WeightKind = Literal["int4", "int8", "any"]
"""Smallest weight precision of an export, to match rules."""

PRECISION = "INFERENCE_PRECISION_HINT"
GROUPS = "DYNAMIC_QUANTIZATION_GROUP_SIZE"
THREADS = "INFERENCE_NUM_THREADS"
KV_PRECISION = "KV_CACHE_PRECISION"
HUGE_PAGES = "HUGE_PAGES"
"""Row of a setting that phi3ov carries out itself; not a property of OpenVINO."""

_GROUP_SIZES = (128, 64, 32)
"""Dynamic quantization group sizes that OpenVINO's kernels support, fastest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting in force.

    Attributes:
        name: OpenVINO's name of the property; or ``HUGE_PAGES``, which phi3ov carries out itself.
        value: The value as a string.
        chosen_by: Origin of the value.
        reason: Why this value was chosen, in a sentence.
    """

    name: str
    value: str
    chosen_by: ChosenBy
    reason: str

    def __str__(self) -> str:
        return f"{self.name}={self.value} ({self.reason})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A row of `RULES`: the settings for a kind of processor and weights.

    Attributes:
        name: The kind of processor.
        needs: Features of `Processor` that it must have.
        lacks: Features that it must not have.
        weights: Weight precision of the export.
        inference_precision: Precision of the arithmetic; None for OpenVINO's choice.
        largest_group: Largest dynamic quantization group; the group size of the weights may limit
            it further. None for OpenVINO's choice.
        measured: The measurement behind the row.
    """

    name: str
    needs: frozenset[str] = frozenset()
    lacks: frozenset[str] = frozenset()
    weights: WeightKind = "any"
    inference_precision: InferencePrecision | None = None
    largest_group: int | None = None
    measured: str

    def fits(self, processor: Processor, kind: str) -> bool:
        """Return whether the row applies to this processor and this kind of weights."""
        return (
            self.needs <= processor.features
            and not self.lacks & processor.features
            and self.weights in ("any", kind)
        )


RULES: tuple[Rule, ...] = (
    Rule(
        name="AMX",
        needs=frozenset({"amx_tile", "avx512_vnni"}),
        weights="int4",
        inference_precision="f32",
        largest_group=128,
        measured="Sapphire Rapids class, 2 cores, 2026-11-28, against OpenVINO's bf16: full size, "
        "ratio 1.0, groups of 128: 2.1 times the decoding of one chat, 2.4 of eight, 1.25 of "
        "prefill; reference, groups of 64: 1.4, 1.7 and 0.9.",
    ),
    Rule(
        name="AMX",
        needs=frozenset({"amx_tile", "avx512_vnni"}),
        weights="int8",
        inference_precision="f32",
        largest_group=64,
        measured="Sapphire Rapids class, 2 cores, 2026-11-28, against OpenVINO's bf16: reference, "
        "groups of 64: 1.8 times the decoding of one chat, 2.1 of eight, 1.4 of prefill.",
    ),
    Rule(
        name="AVX-512 VNNI, no AMX",
        needs=frozenset({"avx512_vnni"}),
        lacks=frozenset({"amx_tile"}),
        weights="int4",
        largest_group=128,
        measured="AMD EPYC, 2 cores, against OpenVINO's groups of 32: full size, groups of 128 "
        "(2026-11-24): 1.31 times the decoding of one chat, 1.33 of prefill; reference, groups "
        "of 64 (2026-11-28): 1.01 times the decoding of one chat, 1.05 of eight, 1.11 of prefill.",
    ),
    Rule(
        name="AVX-512 VNNI, no AMX",
        needs=frozenset({"avx512_vnni"}),
        lacks=frozenset({"amx_tile"}),
        weights="int8",
        measured="AMD EPYC, 2 cores, 2026-11-28: reference, groups of 64 against OpenVINO's 32: "
        "0.97 times the decoding of one chat, 0.99 of eight, 1.11 of prefill, for twice the "
        "error of int8; so nothing is chosen.",
    ),
    Rule(
        name="AVX2 alone",
        needs=frozenset({"avx2"}),
        lacks=frozenset({"avx512_vnni", "avx_vnni"}),
        measured="AMD EPYC, 2 cores, 2026-11-25: OpenVINO computes in float32 and rounds no "
        "activations there, whatever the group size, so nothing is left to choose.",
    ),
)
"""All rules; the first match applies."""

_NO_RULE = "OpenVINO's own: no measurement for this processor with these weights"


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """Device, processor and model for which settings are chosen.

    Attributes:
        device: OpenVINO's name of the device.
        processor: The processor.
        weights: The export's weights, by kind.
        supported: Names of the properties that the device supports; None for all.
        own: OpenVINO's default of each property that it reports.
        exported_kv_precision: KV_CACHE_PRECISION that the exporter wrote into the IR, if any.
        paged: Whether the model uses paged attention, with which the rules were measured.
        tuned: Result of ``phi3ov tune`` on this machine, which takes precedence over the rules.
    """

    device: str
    processor: Processor
    weights: tuple[WeightSummary, ...] = ()
    supported: frozenset[str] | None = None
    own: Mapping[str, str] = field(default_factory=Properties)
    exported_kv_precision: str | None = None
    paged: bool = True
    tuned: TunedSettings | None = None

    def takes(self, name: str) -> bool:
        """Return whether the device supports the property ``name``."""
        return self.supported is None or name in self.supported


def choose_settings(config: RuntimeConfig, situation: Situation) -> tuple[Setting, ...]:
    """Return every property in force: the caller's, then the rules', then OpenVINO's own.

    Raises:
        OptionError: The caller set a property that the device does not support.
    """
    said = config.to_properties(situation.supported)
    settings = {name: _said(name, value) for name, value in said.items()}
    for setting in (
        *_use_tuned(config, situation),
        *_choose_threads(situation),
        *_choose_arithmetic(config, situation),
    ):
        if situation.takes(setting.name):
            settings.setdefault(setting.name, setting)
    is_split = config.key_cache_precision is not None
    if (precision := situation.exported_kv_precision) is not None and not is_split:
        reason = "the exporter wrote it into the model"
        settings.setdefault(
            KV_PRECISION,
            Setting(name=KV_PRECISION, value=precision, chosen_by="export", reason=reason),
        )
    for name in (THREADS, PRECISION, GROUPS, *(() if is_split else (KV_PRECISION,))):
        if name in situation.own and name not in settings:
            settings[name] = Setting(
                name=name,
                value=situation.own[name],
                chosen_by="openvino",
                reason=_why_own(name, situation),
            )
    return tuple(settings.values())


def passed_properties(settings: Iterable[Setting]) -> dict[str, str]:
    """Return the properties to pass to OpenVINO: its own and the export's are known to it."""
    return {
        setting.name: setting.value
        for setting in settings
        if setting.chosen_by not in ("openvino", "export") and setting.name != HUGE_PAGES
    }


def find_rule(situation: Situation) -> Rule | None:
    """Return the first matching row of `RULES`; None without a match."""
    if situation.device != "CPU" or not situation.paged:
        return None
    kind = _weight_kind(situation.weights)
    return next((rule for rule in RULES if rule.fits(situation.processor, kind)), None)


def largest_group(weights: Iterable[WeightSummary], limit: int) -> int | None:
    """Return the largest dynamic quantization group, up to ``limit``, that fits all weights.

    OpenVINO disables dynamic quantization for a layer if the activation group is larger than the
    layer's weight group or does not divide it. Any group fits a whole row.

    Example:
        >>> largest_group([], 128)
        128
    """
    sizes = {kind.group_size for kind in weights if kind.precision in ("int4", "int8")} - {0}
    for group in _GROUP_SIZES:
        if group <= limit and all(size % group == 0 for size in sizes):
            return group
    return None


def _said(name: str, value: str) -> Setting:
    if (name, value) in (("PERFORMANCE_HINT", "LATENCY"), ("NUM_STREAMS", "1")):
        reason = "phi3ov's default: one chat that answers soon"
        return Setting(name=name, value=value, chosen_by="phi3ov", reason=reason)
    return Setting(name=name, value=value, chosen_by="caller", reason="set in RuntimeConfig")


def _use_tuned(config: RuntimeConfig, situation: Situation) -> Iterable[Setting]:
    tuned = situation.tuned
    if tuned is None or not _tuning_counts(situation):
        return
    found: dict[str, object] = {THREADS: tuned.threads}
    if config.key_cache_precision is None:  # it would override what the caller said of the parts
        found[KV_PRECISION] = tuned.kv_cache_precision
    if _tuned_arithmetic_counts(config, situation):
        found[PRECISION] = tuned.inference_precision
        found[GROUPS] = tuned.dynamic_quantization_group_size
    for name, value in found.items():
        if value is not None:
            yield Setting(name=name, value=str(value), chosen_by="tune", reason=tuned.reason)


def _tuning_counts(situation: Situation) -> bool:
    """Return whether ``phi3ov tune`` measures this situation: paged attention on the CPU."""
    return situation.device == "CPU" and situation.paged


def _tuned_arithmetic_counts(config: RuntimeConfig, situation: Situation) -> bool:
    """Return whether precision and group size are those that were measured together."""
    tuned = situation.tuned
    return (
        tuned is not None
        and _tuning_counts(situation)
        and config.inference_precision in (None, tuned.inference_precision)
        and config.dynamic_quantization_group_size in (None, tuned.dynamic_quantization_group_size)
    )


def _choose_threads(situation: Situation) -> Iterable[Setting]:
    processor = situation.processor
    threads = processor.threads_within_quota
    if situation.device == "CPU" and threads is not None:
        yield Setting(
            name=THREADS,
            value=str(threads),
            chosen_by="phi3ov",
            reason=f"the container's quota is {processor.quota:g} of {processor.cpus} processors, "
            "and OpenVINO does not read it",
        )


def _choose_arithmetic(config: RuntimeConfig, situation: Situation) -> Iterable[Setting]:
    """Choose precision and dynamic quantization group together, as each row was measured."""
    rule = find_rule(situation)
    if rule is None or rule.largest_group is None or _tuned_arithmetic_counts(config, situation):
        return
    group = largest_group(situation.weights, rule.largest_group)
    asked = config.inference_precision
    measured_in = rule.inference_precision or situation.own.get(PRECISION)
    if group is None or asked not in (None, "f32", measured_in):
        return
    if config.dynamic_quantization_group_size == 0:  # float32 pays only with quantization
        return
    because = f"{rule.name}, {rule.weights} weights: {rule.measured}"
    if rule.inference_precision is not None:
        yield Setting(
            name=PRECISION, value=rule.inference_precision, chosen_by="phi3ov", reason=because
        )
    yield Setting(name=GROUPS, value=str(group), chosen_by="phi3ov", reason=because)


def _why_own(name: str, situation: Situation) -> str:
    if situation.device != "CPU":
        return "OpenVINO's own: phi3ov has measured CPUs only"
    if situation.tuned is not None and _tuning_counts(situation):
        return f"OpenVINO's own. {situation.tuned.reason}"
    if name == THREADS:
        return _why_own_threads(situation.processor)
    if not situation.paged:
        return "OpenVINO's own: the rules were measured with paged attention"
    if name == KV_PRECISION:
        return "OpenVINO's own"
    rule = find_rule(situation)
    return _NO_RULE if rule is None else f"OpenVINO's own. {rule.name}: {rule.measured}"


def _why_own_threads(processor: Processor) -> str:
    own = "OpenVINO's own choice within the affinity mask, written as 0"
    if processor.fast_cpus is None:
        return own
    slow = processor.cpus - processor.fast_cpus
    return (
        f"{own}. Of {processor.cpus} processors {slow} belong to efficient cores; "
        "phi3ov tune measures whether they help"
    )


def _weight_kind(weights: Iterable[WeightSummary]) -> str:
    kinds = {kind.precision for kind in weights}
    return next((kind for kind in ("int4", "int8") if kind in kinds), "float")
