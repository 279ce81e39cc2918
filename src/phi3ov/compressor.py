"""Recipes applied: an OpenVINO IR's weights rewritten as a recipe asks, by NNCF.

What a recipe is, and whether the outcome is what it asks for, is ``compression.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .artifact import MODEL_XML
from .calibration import decoder_inputs
from .compression import Compression, Int4Compression, is_ignored
from .errors import CompressionError
from .ir import is_weight


def compress_ir(
    full: Path, made: Path, compression: Compression, samples: Sequence[Sequence[int]] = ()
) -> None:
    """Compress the IR in ``full`` into ``made``; ``samples`` are those of `draw_samples`."""
    import openvino

    model = openvino.Core().read_model(full / MODEL_XML)
    if isinstance(compression, Int4Compression):
        _compress_to_int4(model, compression, samples)
    elif compression == "int8":
        import nncf

        nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
    else:
        _store_weights_as_fp16(model)
    openvino.save_model(model, made / MODEL_XML, compress_to_fp16=False)


def _store_weights_as_fp16(model: Any) -> None:
    """Store the weight matrices, fp32 or bf16, as fp16, and nothing else.

    openvino's ``compress_to_fp16`` leaves bf16 as it is, and rounds the rotary frequencies too,
    which turns keys by a whole radian after some thousand tokens.
    """
    import numpy as np
    import openvino.opset13 as ops

    for node in model.get_ops():
        name = node.get_friendly_name()
        if node.get_type_name() != "Constant" or not is_weight(name, node.get_output_shape(0)):
            continue
        stored = node.get_element_type().get_type_name()
        if stored not in ("f32", "bf16"):
            continue
        with np.errstate(over="ignore"):
            values = node.get_data(dtype=np.float32).astype(np.float16)
        if not np.isfinite(values).all():
            raise CompressionError(f"{name} holds values that fp16 cannot.", layers=(name,))
        users = node.output(0).get_target_inputs()
        constant = ops.constant(values, dtype=np.float16, name=name)
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
    for node in model.get_ops():
        name = node.get_friendly_name()
        if node.get_type_name() != "Constant" or not is_weight(name, node.get_output_shape(0)):
            continue
        if is_ignored(name, compression):
            users = [port.get_node() for port in node.output(0).get_target_inputs()]
            while users:
                user = users.pop()
                if user.get_type_name() == "Convert":
                    users += [port.get_node() for port in user.output(0).get_target_inputs()]
                else:
                    yield user.get_friendly_name()
