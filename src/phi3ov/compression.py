"""Weight compression recipes: as values, applied by NNCF, and checked in what came out.

To add a recipe, add its fields to `Int4Compression` or a value of its own, apply it in
`compress_ir`, and say in `check_weights` what must then stand in the IR.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .artifact import MODEL_XML
from .checkpoint import Checkpoint
from .errors import CompressionError, OptionError
from .ir import WeightLayer, is_weight

_NEVER_INT4 = ("embed_tokens", "lm_head")
"""NNCF keeps embeddings and the output layer in the backup precision (int8)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Int4Compression:
    """Four-bit weights: most layers int4, the sensitive rest int8.

    Attributes:
        group_size: How many values of a row share one scale; -1 for a whole row.
        ratio: Share of the parameters, embeddings and output layer left out, that become int4,
            in (0, 1]. NNCF gives the rest, the most sensitive layers, int8.
        symmetric: Without zero points (faster); asymmetric is a little more accurate.
        on_indivisible: What to do with layers whose width ``group_size`` does not divide:
            ``"error"``, or ``"adjust"`` to the largest power of two that does.

    Raises:
        OptionError: A value is out of its range.

    Example:
        >>> Int4Compression(ratio=1.0).group_size
        128
    """

    group_size: int = 128
    ratio: float = 0.6
    symmetric: bool = True
    on_indivisible: Literal["error", "adjust"] = "error"

    def __post_init__(self) -> None:
        size = self.group_size
        if isinstance(size, bool) or not isinstance(size, int) or (size < 2 and size != -1):
            raise OptionError(f"group_size={size!r} must be at least 2, or -1 for a whole row.")
        if not isinstance(self.ratio, int | float) or not 0 < self.ratio <= 1:
            raise OptionError(f"ratio={self.ratio!r} must be above 0 and at most 1.")
        if self.on_indivisible not in ("error", "adjust"):
            raise OptionError(f"on_indivisible={self.on_indivisible!r} is not 'error' or 'adjust'.")


Compression = Int4Compression | Literal["int8", "fp16"]


def check_compression(compression: Compression) -> None:
    """Check that ``compression`` is a recipe.

    Raises:
        OptionError: It is something else.
    """
    if not isinstance(compression, Int4Compression) and compression not in ("int8", "fp16"):
        raise OptionError(
            f"compression={compression!r} is not an Int4Compression, 'int8' or 'fp16'."
        )


def check_divisible(checkpoint: Checkpoint, compression: Int4Compression) -> None:
    """Check, before any work, that the group size divides the width of every layer.

    Raises:
        CompressionError: It does not; names the layers.
    """
    if compression.group_size == -1 or compression.on_indivisible == "adjust":
        return
    misfits = {
        name: width
        for name, width in checkpoint.linear_inputs().items()
        if width % compression.group_size
    }
    if misfits:
        shown = ", ".join(f"{name} ({width})" for name, width in list(misfits.items())[:4])
        more = f" and {len(misfits) - 4} more" if len(misfits) > 4 else ""
        raise CompressionError(
            f"group_size={compression.group_size} does not divide the width of {shown}{more}. "
            "Choose a group size that does, or on_indivisible='adjust'.",
            layers=tuple(misfits),
        )


def compress_ir(full: Path, made: Path, compression: Compression) -> None:
    """Compress the IR in ``full`` into ``made``."""
    import openvino

    model = openvino.Core().read_model(full / MODEL_XML)
    if isinstance(compression, Int4Compression):
        _compress_to_int4(model, compression)
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


def _compress_to_int4(model: Any, compression: Int4Compression) -> None:
    import nncf
    from nncf.quantization.advanced_parameters import (
        AdvancedCompressionParameters,
        GroupSizeFallbackMode,
    )

    modes = nncf.CompressWeightsMode
    try:
        nncf.compress_weights(
            model,
            mode=modes.INT4_SYM if compression.symmetric else modes.INT4_ASYM,
            ratio=compression.ratio,
            group_size=compression.group_size,
            advanced_parameters=AdvancedCompressionParameters(
                group_size_fallback_mode=GroupSizeFallbackMode(compression.on_indivisible)
            ),
        )
    except nncf.InvalidGroupSizeError as error:
        raise CompressionError(
            f"NNCF refuses group_size={compression.group_size}: {error}"
        ) from error


def check_weights(layers: tuple[WeightLayer, ...], compression: Compression) -> None:
    """Compare what an IR holds with what was asked for.

    Raises:
        CompressionError: It is something else; names the layers.
    """
    if isinstance(compression, Int4Compression):
        _check_int4(layers, compression)
        return
    wrong = tuple(layer.name for layer in layers if layer.precision != compression)
    if wrong or not layers:
        raise CompressionError(
            f"{len(wrong)} of {len(layers)} layers are not {compression} as asked.", layers=wrong
        )


def _check_int4(layers: tuple[WeightLayer, ...], compression: Int4Compression) -> None:
    countable = [layer for layer in layers if not any(part in layer.name for part in _NEVER_INT4)]
    int4 = [layer for layer in countable if layer.precision == "int4"]
    wanted = max(compression.group_size, 0)
    wrong = tuple(
        layer.name
        for layer in layers
        if layer.precision not in ("int4", "int8")
        or (
            layer.precision == "int4"
            and (
                layer.symmetric != compression.symmetric
                or (layer.group_size != wanted and compression.on_indivisible == "error")
                or layer.group_size > wanted
            )
        )
    )
    if wrong or not int4:
        raise CompressionError(
            f"{len(wrong)} of {len(layers)} layers are not as {compression} asks; "
            f"{len(int4)} layers are int4.",
            layers=wrong,
        )
    total = sum(layer.parameters for layer in countable)
    share = sum(layer.parameters for layer in int4) / total
    one_layer = max(layer.parameters for layer in countable) / total
    if abs(share - compression.ratio) > one_layer:
        raise CompressionError(
            f"{share:.1%} of the parameters are int4 where ratio={compression.ratio} was asked."
        )
