"""Reads the precision of every weight from the XML of an OpenVINO IR.

The XML names each constant with its element type, shape and size, so this needs neither
openvino nor the weights themselves.
"""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Precision = Literal["int4", "int8", "fp16", "bf16", "fp32"]
"""Storage type of a weight matrix."""

_PRECISIONS: dict[str, Precision] = {
    "i4": "int4",
    "u4": "int4",
    "i8": "int8",
    "u8": "int8",
    "f16": "fp16",
    "bf16": "bf16",
    "f32": "fp32",
}

_WEIGHT_NAME = re.compile(r"\.(_openvino_orig_)?weight$")
"""Weight names of openvino's PyTorch frontend; the longer form is for 16-bit checkpoints."""

_TRACED_EXPERTS = re.compile(
    r"^(?:self|__module)\.(.+\.mlp\.experts)"
    r"(?:\.(down_proj)|/prim::ListUnpack/VariadicSplit\.([01]))$"
)
"""Names of stacked experts in the graphs that optimum-intel makes on its own."""

_EXPERTS = ".mlp.experts."
"""Part of the names of stacked experts' weights, which have three dimensions."""

_ROUTER = ".mlp.router"
"""End of the layer name of a router, which chooses the experts of each token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightLayer:
    """One weight matrix of an IR.

    Attributes:
        name: Its name in the checkpoint, such as ``model.layers.0.mlp.down_proj.weight``.
        precision: Storage type of its values.
        group_size: Number of values in a row that share one scale; 0 for one scale per row, and
            for floating-point weights.
        symmetric: True if it has no zero points.
        parameters: Number of values.
        size_bytes: Bytes of values, scales and zero points.
        error: Norm of the rounding error, divided by the norm of the weight; None if the export
            did not record it.
        int4_effect: Divergence from the checkpoint, in nats per token, that int4 in this layer
            alone would cause, as measured before the export; None if it was not measured.
    """

    name: str
    precision: Precision
    group_size: int
    symmetric: bool
    parameters: int
    size_bytes: int
    error: float | None = None
    int4_effect: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSummary:
    """Totals over all weight matrices of one precision, group size and symmetry.

    Attributes:
        precision: Storage type of their values.
        group_size: Number of values in a row that share one scale; 0 for one scale per row, and
            for floating-point weights.
        symmetric: True if they have no zero points.
        layers: Number of matrices.
        parameters: Number of values in all of them.
        size_bytes: Bytes of values, scales and zero points.
    """

    precision: Precision
    group_size: int
    symmetric: bool
    layers: int
    parameters: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class _Constant:
    element_type: str
    shape: tuple[int, ...]
    size_bytes: int


def read_weights(model_xml: Path) -> tuple[WeightLayer, ...]:
    """Return every weight matrix (two dimensions or more) of the IR at ``model_xml``.

    NNCF stores a compressed matrix of shape [rows, columns] as [rows, groups, group_size]
    when it is grouped, with ``<name>/scale`` and ``<name>/zero_point`` constants next to it.
    The stacked matrices of experts have one dimension more, before the others.

    Example:
        >>> read_weights(Path("phi3-int4/openvino_model.xml"))[0].precision  # doctest: +SKIP
        'int8'
    """
    constants = _read_constants(model_xml)
    layers = []
    for name, constant in constants.items():
        owner, _, part = name.rpartition("/")
        if part in ("scale", "zero_point") and owner in constants:
            continue
        if not is_weight(name, constant.shape) or constant.element_type not in _PRECISIONS:
            continue
        companions = [constants.get(f"{name}/{part}") for part in ("scale", "zero_point")]
        plain = 3 if _EXPERTS in f"{layer_name(name)}." else 2
        grouped = len(constant.shape) == plain + 1 and companions[0] is not None
        layers.append(
            WeightLayer(
                name=f"{layer_name(name)}.weight",
                precision=_PRECISIONS[constant.element_type],
                group_size=constant.shape[-1] if grouped else 0,
                symmetric=companions[1] is None,
                parameters=math.prod(constant.shape),
                size_bytes=constant.size_bytes
                + sum(companion.size_bytes for companion in companions if companion),
            )
        )
    return tuple(layers)


_RECIPE_KEYS = (
    "mode",
    "group_size",
    "ratio",
    "all_layers",
    "backup_mode",
    "awq",
    "scale_estimation",
    "gptq",
    "lora_correction",
)
"""What NNCF records of a weight compression, as far as it changes the weights."""

_VERSION_KEYS = {
    "Runtime_version": "openvino",
    "nncf/version": "nncf",
    "optimum/optimum_intel_version": "optimum-intel",
    "optimum/optimum_version": "optimum",
    "optimum/transformers_version": "transformers",
    "optimum/pytorch_version": "torch",
}
"""Where an IR records the versions of the tools that made it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """The recipe and tool versions that an IR records; they are not verified.

    Attributes:
        recipe: NNCF's options of the weight compression; empty if the IR does not say.
        versions: Versions of the tools, by package.
    """

    recipe: Mapping[str, str | int | float | bool]
    versions: Mapping[str, str]


def read_provenance(model_xml: Path) -> Provenance:
    """Return what the IR at ``model_xml`` records of its making.

    Example:
        >>> read_provenance(Path("phi3-int4-ov/openvino_model.xml")).recipe  # doctest: +SKIP
        {'mode': 'int4_sym', 'group_size': -1, 'ratio': 1.0, 'all_layers': True}
    """
    recipe: dict[str, str | int | float | bool] = {}
    versions: dict[str, str] = {}
    for _, element in ET.iterparse(model_xml):
        if element.tag == "layer":
            element.clear()
        if element.tag != "rt_info":
            continue
        for key in _RECIPE_KEYS:
            if (found := element.find(f"nncf/weight_compression/{key}")) is not None:
                recipe[key] = _parse_value(found.get("value", ""))
        for place, package in _VERSION_KEYS.items():
            if (found := element.find(place)) is not None and (value := found.get("value")):
                versions[package] = value
    return Provenance(recipe=recipe, versions=versions)


def _parse_value(text: str) -> str | int | float | bool:
    if text in ("True", "False"):
        return text == "True"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def find_unknown_types(model_xml: Path) -> dict[str, int]:
    """Return the element types of weight matrices that phi3ov does not know, with their number.

    `read_weights` leaves these matrices out.
    """
    types = (
        constant.element_type
        for name, constant in _read_constants(model_xml).items()
        if is_weight(name, constant.shape) and constant.element_type not in _PRECISIONS
    )
    return dict(Counter(types))


def chooses_factors(model_xml: Path) -> bool:
    """Whether the IR chooses between two sets of LongRoPE factors; exports of old hold one set."""
    for _, element in ET.iterparse(model_xml):
        if element.tag == "layer":
            if is_border_comparison(element):
                return True
            element.clear()
    return False


def is_border_comparison(layer: ET.Element) -> bool:
    """Whether a layer compares the positions with the border of LongRoPE's short factors."""
    return layer.get("type") == "Greater" and "rotary_emb" in layer.get("name", "")


def exported_kv_precision(model_xml: Path) -> str | None:
    """Return the KV_CACHE_PRECISION that optimum-intel wrote into an IR, if any.

    It is one of the IR's ``runtime_options``, which OpenVINO applies unless the caller sets the
    same property.
    """
    found = re.search(r'<KV_CACHE_PRECISION value="(\w+)"', model_xml.read_text(encoding="utf-8"))
    return found and found.group(1)


def layer_name(name: str) -> str:
    """Return the checkpoint's layer name for any of the names that a weight can have.

    Example:
        >>> layer_name("self.model.layers.0.mlp.down_proj._openvino_orig_weight")
        'model.layers.0.mlp.down_proj'
    """
    if traced := _TRACED_EXPERTS.match(name):
        part = traced[2] or ("gate_proj", "up_proj")[int(traced[3])]
        return f"{traced[1]}.{part}"
    return _WEIGHT_NAME.sub("", name.removeprefix("self."))


def is_weight(name: str, shape: Iterable[int]) -> bool:
    """Whether a constant of an IR is a weight matrix, not a norm's vector or another constant."""
    if not (_WEIGHT_NAME.search(name) or _TRACED_EXPERTS.match(name)):
        return False
    return len([size for size in shape if size > 1]) >= 2


def is_router(name: str) -> bool:
    """Whether a layer or weight chooses experts; no recipe compresses it.

    A rounded router sends tokens to other experts. It holds less than a thousandth of the
    parameters.

    Example:
        >>> is_router("model.layers.0.mlp.router.weight")
        True
    """
    return layer_name(name).endswith(_ROUTER)


def summarize(layers: Iterable[WeightLayer]) -> tuple[WeightSummary, ...]:
    """Count ``layers`` by precision, group size and symmetry, the largest share first."""
    kinds: dict[tuple[Precision, int, bool], list[WeightLayer]] = defaultdict(list)
    for layer in layers:
        kinds[layer.precision, layer.group_size, layer.symmetric].append(layer)
    summaries = [
        WeightSummary(
            precision=precision,
            group_size=group_size,
            symmetric=symmetric,
            layers=len(members),
            parameters=sum(layer.parameters for layer in members),
            size_bytes=sum(layer.size_bytes for layer in members),
        )
        for (precision, group_size, symmetric), members in kinds.items()
    ]
    return tuple(sorted(summaries, key=lambda summary: -summary.parameters))


def bits_per_weight(weights: Iterable[WeightSummary]) -> float:
    """Return the average bits per parameter, scales and zero points included."""
    weights = tuple(weights)
    return 8 * sum(each.size_bytes for each in weights) / sum(each.parameters for each in weights)


def _read_constants(model_xml: Path) -> dict[str, _Constant]:
    """Return the named constants of an IR; frees the XML tree while reading."""
    constants = {}
    for _, element in ET.iterparse(model_xml):
        if element.tag != "layer":
            continue
        data = element.find("data")
        if element.get("type") == "Const" and data is not None:
            shape = tuple(int(size) for size in data.get("shape", "").split(",") if size.strip())
            constants[element.attrib["name"]] = _Constant(
                data.attrib["element_type"], shape, int(data.attrib["size"])
            )
        element.clear()
    return constants
