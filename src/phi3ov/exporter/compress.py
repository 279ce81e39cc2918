"""Recipes applied: a graph's weights rewritten as a recipe asks, by NNCF.

What a recipe is, and whether the outcome is what it asks for, is ``compression.py``.

NNCF goes from weight to weight and shows each pass as a bar, ``track(weights)``. That bar is
replaced by `_watch_passes`, for two reasons: it is how an export reports its progress, and each
time NNCF comes back for the next weight, the one that it has just rewritten is moved from memory
to a mapped file. So an export needs the memory of a few weights, not of all.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ..artifact.ir import is_weight
from ..errors import CompressionError
from ..thirdparty.overrides import replaced
from .calibration import decoder_inputs
from .mapped_weights import MappedConstants, give_back
from .progress import Phases
from .recipes import Compression, Int4Compression, is_ignored

_PASSES = (
    "nncf.common.tensor_statistics.aggregator",
    "nncf.quantization.algorithms.weight_compression.mixed_precision",
    "nncf.quantization.algorithms.weight_compression.awq",
    "nncf.quantization.algorithms.weight_compression.scale_estimation",
    "nncf.quantization.algorithms.weight_compression.gptq",
)
"""NNCF's modules with a pass that looks at weights."""

_REWRITING = "nncf.quantization.algorithms.weight_compression.algorithm"
"""NNCF's module with the pass that rewrites them."""


def compress(
    model: Any,
    compression: Compression,
    samples: Sequence[Sequence[int]],
    mapped: MappedConstants,
    phases: Phases,
) -> None:
    """Rewrite the weights of ``model`` as the recipe asks.

    Args:
        model: An ``openvino.Model``, changed in place.
        compression: The recipe.
        samples: Those of `draw_samples`.
        mapped: Takes the new weights.
        phases: Told about the phases "analyse" and "compress".

    Raises:
        CompressionError: The recipe does not fit the model.
    """
    phases.begin("analyse")
    if compression == "fp16":
        phases.begin("compress")
        _store_weights_as_fp16(model, mapped, phases)
        return
    with _watch_passes(model, mapped, phases):
        if isinstance(compression, Int4Compression):
            _compress_to_int4(model, compression, samples)
        else:
            import nncf

            nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)


@contextlib.contextmanager
def _watch_passes(model: Any, mapped: MappedConstants, phases: Phases) -> Iterator[None]:
    """Put our own loop into the place of NNCF's bar in each of its passes."""

    def look(sequence: Iterable[Any], description: str = "", **options: Any) -> Iterator[Any]:
        return phases.follow(sequence, description, options.get("weights"))

    def rewrite(sequence: Iterable[Any], description: str = "", **options: Any) -> Iterator[Any]:
        phases.begin("compress")
        sources = {constant.get_friendly_name(): _Source(constant) for constant in _weights(model)}
        for weight in phases.follow(sequence, description, options.get("weights")):
            yield weight
            source = sources.pop(weight.weight_name, None)
            if source is None:
                continue
            made = {
                constant.get_friendly_name(): constant  # a tied weight has two users
                for user in source.users
                for constant in _constants(user.get_source_output().get_node())
            }
            for constant in made.values():
                mapped.take(constant)
            give_back(source.address, source.size_bytes)

    with contextlib.ExitStack() as stack:
        for name in _PASSES:
            stack.enter_context(replaced(importlib.import_module(name), "track", look))
        stack.enter_context(replaced(importlib.import_module(_REWRITING), "track", rewrite))
        yield


class _Source:
    """Where a weight is before it is rewritten, and what reads it."""

    def __init__(self, constant: Any) -> None:
        self.users = list(_users(constant))
        self.address = int(constant.data.ctypes.data)
        self.size_bytes = int(constant.get_byte_size())


def _weights(model: Any) -> Iterator[Any]:
    """Yield the constants that are weight matrices."""
    for node in model.get_ops():
        if node.get_type_name() == "Constant" and is_weight(
            node.get_friendly_name(), node.get_output_shape(0)
        ):
            yield node


def _users(node: Any) -> Iterator[Any]:
    """Yield the inputs that ``node`` feeds, directly or through a conversion."""
    for user in node.output(0).get_target_inputs():
        if user.get_node().get_type_name() == "Convert":
            yield from _users(user.get_node())
        else:
            yield user


def _constants(node: Any) -> Iterator[Any]:
    """Yield what a decompression, as NNCF builds it, reads: values, scales and zero points."""
    if node.get_type_name() == "Constant":
        yield node
    elif node.get_type_name() in ("Convert", "Multiply", "Reshape", "Subtract"):
        for index in range(node.get_input_size()):
            yield from _constants(node.input_value(index).get_node())


def _store_weights_as_fp16(model: Any, mapped: MappedConstants, phases: Phases) -> None:
    """Store the weight matrices, fp32 or bf16, as fp16, and nothing else.

    openvino's ``compress_to_fp16`` leaves bf16 as it is, and rounds the rotary frequencies too,
    which turns keys by a whole radian after some thousand tokens.
    """
    import numpy as np
    import openvino.opset13 as ops

    for node in phases.follow(_weights(model), "Rounding to fp16"):
        name = node.get_friendly_name()
        stored = node.get_element_type().get_type_name()
        if stored not in ("f32", "bf16"):
            continue
        with np.errstate(over="ignore"):
            values = node.get_data(dtype=np.float32).astype(np.float16)
        if not np.isfinite(values).all():
            raise CompressionError(f"{name} holds values that fp16 cannot.", layers=(name,))
        users = node.output(0).get_target_inputs()
        constant = mapped.constant(values, name)
        source = constant if stored == "bf16" else ops.convert(constant, "f32")
        for user in users:
            user.replace_source_output(source.output(0))


def _compress_to_int4(
    model: Any, compression: Int4Compression, samples: Sequence[Sequence[int]]
) -> None:
    import nncf
    from nncf.quantization.advanced_parameters import (
        AdvancedCompressionParameters,
        AdvancedGPTQParameters,
        GroupSizeFallbackMode,
    )

    modes, backups = nncf.CompressWeightsMode, nncf.BackupMode
    data_aware: dict[str, Any] = {}
    if compression.data_aware:
        data_aware = {
            "dataset": nncf.Dataset(list(decoder_inputs(model, samples))),
            "subset_size": len(samples),
            "awq": compression.awq,
            "scale_estimation": compression.scale_estimation,
            "gptq": compression.gptq,
        }
    try:
        nncf.compress_weights(
            model,
            mode=modes.INT4_SYM if compression.symmetric else modes.INT4_ASYM,
            ratio=compression.ratio,
            group_size=compression.group_size,
            ignored_scope=nncf.IgnoredScope(names=list(_ignored_nodes(model, compression))),
            backup_mode={
                "int8": backups.INT8_ASYM,
                "int8_sym": backups.INT8_SYM,
                "none": backups.NONE,
            }[compression.backup],
            advanced_parameters=AdvancedCompressionParameters(
                group_size_fallback_mode=GroupSizeFallbackMode(compression.on_indivisible),
                gptq_params=AdvancedGPTQParameters(subset_size=max(1, len(samples))),
            ),
            **data_aware,
        )
    except nncf.InvalidGroupSizeError as error:
        raise CompressionError(
            f"NNCF refuses group_size={compression.group_size}: {error}"
        ) from error


def _ignored_nodes(model: Any, compression: Int4Compression) -> Iterator[str]:
    """Yield the operations that use an ignored weight: NNCF knows operations, not weights."""
    for weight in _weights(model):
        if is_ignored(weight.get_friendly_name(), compression):
            for user in _users(weight):
                yield user.get_node().get_friendly_name()
