"""Compresses a graph's weights with NNCF, or stores them as fp16, one by one into a mapped file.

`recipes` chooses the options and verifies the outcome.

NNCF iterates over the weights inside a progress bar, ``track(weights)``. `GraphWeights` replaces
that bar for two reasons. It reports the export's progress. And each time NNCF asks for the next
weight, the one that it has just rewritten is moved from memory to a mapped file, so an export
needs the memory of a few weights instead of all.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..artifact.ir import is_router, is_weight, layer_name
from ..errors import CompressionError
from ..thirdparty.overrides import original_of, replaced
from .calibration import decoder_inputs
from .mapped_weights import MappedConstants, give_back
from .progress import Phases
from .rounding import Rounding, relative_error

_PASSES = (
    "nncf.common.tensor_statistics.aggregator",
    "nncf.quantization.algorithms.weight_compression.mixed_precision",
    "nncf.quantization.algorithms.weight_compression.awq",
    "nncf.quantization.algorithms.weight_compression.scale_estimation",
    "nncf.quantization.algorithms.weight_compression.gptq",
)
"""NNCF modules whose passes analyse the weights."""

_REWRITING = "nncf.quantization.algorithms.weight_compression.algorithm"
"""NNCF module whose pass rewrites the weights."""

_BACKEND = "nncf.quantization.algorithms.weight_compression.openvino_backend"
"""NNCF module that compresses one weight of an OpenVINO graph."""


class GraphWeights:
    """The weights of a graph that is being exported: rewritten in place, into a mapped file."""

    def __init__(
        self,
        model: Any,
        samples: Sequence[Sequence[int]],
        mapped: MappedConstants,
        phases: Phases,
    ) -> None:
        """Wrap a graph.

        Args:
            model: An ``openvino.Model``, changed in place.
            samples: Calibration text as token ids; empty if the recipe is not data-aware.
            mapped: Stores the new weights.
            phases: Reports the phases "analyse" and "compress".
        """
        self._model = model
        self._samples = samples
        self._mapped = mapped
        self._phases = phases
        self._rewriting = ""
        self.errors: dict[str, float] = {}
        """Relative error of each compressed weight, by layer name."""

    def store_as_fp16(self) -> None:
        """Store the fp32 and bf16 weight matrices as fp16, and change no other constant.

        openvino's ``compress_to_fp16`` skips bf16 weights. It also rounds the rotary frequencies,
        which rotates keys by a whole radian after a few thousand tokens.

        Raises:
            CompressionError: A weight holds values outside the range of fp16.
        """
        import numpy as np
        import openvino.opset13 as ops

        self._phases.begin("compress")
        for node in self._phases.follow(_weights(self._model), "Rounding to fp16"):
            name = node.get_friendly_name()
            stored = node.get_element_type().get_type_name()
            if stored not in ("f32", "bf16") or is_router(name):
                continue
            with np.errstate(over="ignore"):
                values = node.get_data(dtype=np.float32).astype(np.float16)
            if not np.isfinite(values).all():
                raise CompressionError(f"{name} holds values that fp16 cannot.", layers=(name,))
            users = node.output(0).get_target_inputs()
            constant = self._mapped.constant(values, name)
            source = constant if stored == "bf16" else ops.convert(constant, "f32")
            for user in users:
                user.replace_source_output(source.output(0))

    def compress_to_int8(self, *, ignores: Callable[[str], bool]) -> None:
        """Compress the weight matrices to 8 bits with zero points.

        Args:
            ignores: Returns whether to skip the weight of this name.
        """
        import nncf

        with self._watched_passes():
            nncf.compress_weights(
                self._model,
                mode=nncf.CompressWeightsMode.INT8_ASYM,
                ignored_scope=nncf.IgnoredScope(names=list(self._ignored_nodes(ignores))),
            )

    def compress_to_int4(
        self,
        *,
        symmetric: bool,
        ratio: float,
        group_size: int,
        on_indivisible: str,
        backup: str,
        ignores: Callable[[str], bool],
        by_nncf: Mapping[str, bool],
        int4_layers: frozenset[str] | None = None,
        rounding: Rounding | None = None,
    ) -> None:
        """Compress the weight matrices to int4, the most sensitive ones to the backup precision.

        Args:
            symmetric: Without zero points.
            ratio: Share of the parameters that become int4. NNCF chooses them if ``int4_layers``
                is None.
            group_size: Number of values in a row that share one scale; -1 for a whole row.
            on_indivisible: As in `Int4Compression`.
            backup: As in `Int4Compression`.
            ignores: Returns whether to skip the weight of this name.
            by_nncf: NNCF's options that fit the weights to activations; may be empty.
            int4_layers: The layers that become int4, by their names in the checkpoint; embedding
                and output layer may be among them. None lets NNCF choose.
            rounding: Fits the scales of the groups; None for NNCF's own.

        Raises:
            CompressionError: NNCF refuses the group size.
        """
        import nncf
        from nncf.quantization.advanced_parameters import (
            AdvancedCompressionParameters,
            AdvancedGPTQParameters,
            GroupSizeFallbackMode,
        )

        modes, backups = nncf.CompressWeightsMode, nncf.BackupMode
        options: dict[str, Any] = dict(by_nncf)
        if by_nncf and self._samples:
            options["dataset"] = nncf.Dataset(list(decoder_inputs(self._model, self._samples)))
            options["subset_size"] = len(self._samples)
        try:
            with self._watched_passes(rounding), self._chosen(int4_layers):
                nncf.compress_weights(
                    self._model,
                    mode=modes.INT4_SYM if symmetric else modes.INT4_ASYM,
                    ratio=ratio,
                    group_size=group_size,
                    all_layers=int4_layers is not None,
                    ignored_scope=nncf.IgnoredScope(names=list(self._ignored_nodes(ignores))),
                    backup_mode={
                        "int8": backups.INT8_ASYM,
                        "int8_sym": backups.INT8_SYM,
                        "none": backups.NONE,
                    }[backup],
                    advanced_parameters=AdvancedCompressionParameters(
                        group_size_fallback_mode=GroupSizeFallbackMode(on_indivisible),
                        gptq_params=AdvancedGPTQParameters(subset_size=max(1, len(self._samples))),
                    ),
                    **options,
                )
        except nncf.InvalidGroupSizeError as error:
            raise CompressionError(f"NNCF refuses group_size={group_size}: {error}") from error

    @contextlib.contextmanager
    def _chosen(self, int4_layers: frozenset[str] | None) -> Iterator[None]:
        """Replace NNCF's choice of the layers that become int4 by ours."""
        if int4_layers is None:
            yield
            return

        def choose(algorithm: Any, weights: Sequence[Any], *_: Any) -> None:
            for weight in weights:
                if layer_name(weight.weight_name) not in int4_layers:
                    weight.compression_config = algorithm._get_backup_config(weight.weight_dtype)

        algorithm = importlib.import_module(_REWRITING).WeightCompression
        with replaced(algorithm, "apply_mixed_precision", choose):
            yield

    def _compressor(self, rounding: Rounding | None) -> Callable[..., Any]:
        """Return a function that has NNCF compress a weight, and records the error.

        It gives NNCF our scales for the int4 weights for which NNCF has computed none by itself.
        """
        compress = original_of(importlib.import_module(_BACKEND), "compress_weight")

        def fit(weight: Any, axes: Any, config: Any, computed: Any = None) -> Any:
            layer = layer_name(self._rewriting)
            if rounding is not None and computed is None and config.num_bits == 4:
                computed = rounding.fit(layer, weight, config)
            if computed is not None and computed.tensor is not None:
                made = computed
            else:
                made = compress(weight, axes, config, computed)
            self.errors[layer] = relative_error(weight, made)
            return made

        return fit

    def _ignored_nodes(self, ignores: Callable[[str], bool]) -> Iterator[str]:
        """Yield the operations that use an ignored weight; NNCF's scopes list operations."""
        for weight in _weights(self._model):
            if ignores(weight.get_friendly_name()):
                for user in _users(weight):
                    yield user.get_node().get_friendly_name()

    @contextlib.contextmanager
    def _watched_passes(self, rounding: Rounding | None = None) -> Iterator[None]:
        """Replace NNCF's progress bar in each of its passes, and its rounding of one weight."""
        with contextlib.ExitStack() as stack:
            backend = importlib.import_module(_BACKEND)
            stack.enter_context(replaced(backend, "compress_weight", self._compressor(rounding)))
            for name in _PASSES:
                module = importlib.import_module(name)
                stack.enter_context(replaced(module, "track", self._follow))
            module = importlib.import_module(_REWRITING)
            stack.enter_context(replaced(module, "track", self._follow_rewriting))
            yield

    def _follow(
        self, sequence: Iterable[Any], description: str = "", **options: Any
    ) -> Iterator[Any]:
        return self._phases.follow(sequence, description, options.get("weights"))

    def _follow_rewriting(
        self, sequence: Iterable[Any], description: str = "", **options: Any
    ) -> Iterator[Any]:
        """Move each weight that NNCF has rewritten to the mapped file."""
        self._phases.begin("compress")
        sources = {weight.get_friendly_name(): _Source(weight) for weight in _weights(self._model)}
        for weight in self._follow(sequence, description, **options):
            self._rewriting = weight.weight_name
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
                self._mapped.take(constant)
            give_back(source.address, source.size_bytes)


class _Source:
    """Address and consumers of a weight before NNCF rewrites it."""

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
    """Yield the inputs that consume ``node``, directly or through a Convert."""
    for user in node.output(0).get_target_inputs():
        if user.get_node().get_type_name() == "Convert":
            yield from _users(user.get_node())
        else:
            yield user


def _constants(node: Any) -> Iterator[Any]:
    """Yield the constants of NNCF's decompression subgraph: values, scales and zero points."""
    if node.get_type_name() == "Constant":
        yield node
    elif node.get_type_name() in ("Convert", "Multiply", "Reshape", "Subtract"):
        for index in range(node.get_input_size()):
            yield from _constants(node.input_value(index).get_node())
