"""The compiled model with paged attention, and a KV cache in numpy buffers.

openvino-genai runs the same graph but gives no access to its cache. A stateful model's
``query_state()`` returns float32 copies for any cache precision. Here keys and values are in
buffers of the precision that the device computes with, so `cache_file` can write them to a file
and read them back bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import openvino
from numpy.typing import NDArray

from ...errors import UnsupportedModelError
from ...runtime.properties import compiling, device_settings
from ...runtime.settings import Setting, passed_properties
from ..pinned import open_pinned
from .cache_file import CacheTensor

if TYPE_CHECKING:
    from ...artifact.folder import Artifact
    from ...runtime.config import RuntimeConfig
    from ...runtime.rope import ContextChoice
    from ...runtime.tuning import TunedSettings

BLOCK_TOKENS = 32
"""Tokens per block of the cache; genai's ``cpu_block_size`` is the same."""

_POSITIONS = "logit_positions"
"""Input added to the graph: positions in the chunk whose logits are returned."""

_ALIGNMENT = 64  # bytes: a cache line, and the widest vector register

_PRECISIONS = (
    "INFERENCE_PRECISION_HINT",
    "KEY_CACHE_PRECISION",
    "VALUE_CACHE_PRECISION",
    "KEY_CACHE_GROUP_SIZE",
    "VALUE_CACHE_GROUP_SIZE",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE",
)


class PagedModel:
    """A compiled model that reads tokens into its cache and returns logits.

    Attributes:
        layout: The cache's tensors, in the order of `buffers`.
        buffers: The bytes of these tensors, one row per block.
        settings: The OpenVINO properties in force.
        numerics: Everything besides the model that determines the cache's numbers: versions,
            device, rope factors and precisions.
    """

    def __init__(
        self,
        artifact: Artifact,
        *,
        device: str,
        config: RuntimeConfig,
        context: ContextChoice,
        tuned: TunedSettings | None = None,
    ) -> None:
        """Compile the artifact's model; see `PagedEngine`."""
        core = openvino.Core()
        self.settings: tuple[Setting, ...] = device_settings(
            config, core, device, artifact=artifact, tuned=tuned
        )
        properties = passed_properties(self.settings)
        self._pinned = open_pinned(artifact, context)  # the mapped weights must outlive the model
        with compiling(artifact.path, device):
            model = core.read_model(self._pinned.xml.encode(), self._pinned.weights)
            _page_attention(model)
            compiled = core.compile_model(model, device, properties)
        self.layout: tuple[CacheTensor, ...] = tuple(
            _describe(port) for port in compiled.inputs if "_cache." in port.get_any_name()
        )
        self.numerics: Mapping[str, str] = {
            "openvino": openvino.get_version(),
            "device": f"{device} {core.get_property(device, 'FULL_DEVICE_NAME')}",
            "rope_factors": context.factors,
        } | {name: str(compiled.get_property(name)) for name in _PRECISIONS}
        self._most_blocks = math.ceil(context.tokens / BLOCK_TOKENS)
        self._request = compiled.create_infer_request()
        self.buffers: tuple[NDArray[np.uint8], ...] = tuple(
            np.zeros((0, tensor.block_bytes), np.uint8) for tensor in self.layout
        )

    def reserve(self, tokens: int, *, keep: int) -> None:
        """Reserve room for ``tokens`` tokens; keeps the cache of the first ``keep`` tokens."""
        needed = math.ceil(tokens / BLOCK_TOKENS)
        if needed > len(self.buffers[0]):
            # Double the size, to avoid a copy for the next tokens; unwritten memory costs nothing.
            blocks = max(needed, min(2 * needed, self._most_blocks))
            self._allocate(blocks, keep=math.ceil(keep / BLOCK_TOKENS))

    def release(self) -> None:
        """Release the cache's memory."""
        self._allocate(1, keep=0)

    def _allocate(self, blocks: int, *, keep: int) -> None:
        """Resize all buffers to ``blocks`` blocks; keeps the content of the first ``keep``."""
        # Allocate all of them before replacing any: memory may run out in between.
        buffers = tuple(_zeros(blocks, tensor.block_bytes) for tensor in self.layout)
        for new, old in zip(buffers, self.buffers, strict=True):
            new[:keep] = old[:keep]
        for tensor, new in zip(self.layout, buffers, strict=True):
            shape = openvino.Shape([blocks, *tensor.block_shape])
            precision = getattr(openvino.Type, tensor.precision)
            # The request holds a reference to the tensor, and the tensor to its buffer.
            self._request.set_tensor(
                tensor.name, openvino.Tensor(new.reshape(-1), shape, precision)
            )
        self.buffers = buffers

    def read(self, token_ids: Sequence[int], *, past: int) -> NDArray[np.float32]:
        """Read ``token_ids`` after the ``past`` tokens in the cache; call `reserve` first.

        Returns:
            The logits after the last id, of shape [vocabulary]; valid until the next call.
        """
        return self._infer(token_ids, past, [len(token_ids) - 1]).reshape(-1)

    def read_all(self, token_ids: Sequence[int], *, past: int) -> NDArray[np.float32]:
        """Read ``token_ids`` as `read` does.

        Returns:
            The logits after each id, of shape [tokens, vocabulary]; valid until the next call.
        """
        return self._infer(token_ids, past, range(len(token_ids)))

    def layer_times(self) -> list[openvino.ProfilingInfo]:
        """Return OpenVINO's counters of the last forward pass, layer by layer.

        They are empty unless the model was loaded with the property ``PERF_COUNT=YES``.
        """
        return list(self._request.profiling_info)

    def _infer(
        self, token_ids: Sequence[int], past: int, positions: Sequence[int]
    ) -> NDArray[np.float32]:
        """Compute one forward pass; return the logits after the tokens at ``positions``."""
        tokens = past + len(token_ids)
        blocks = math.ceil(tokens / BLOCK_TOKENS)
        inputs = {
            "input_ids": np.array(token_ids, np.int64),
            "position_ids": np.arange(past, tokens, dtype=np.int64),
            "past_lens": np.array([past], np.int32),
            "subsequence_begins": np.array([0, len(token_ids)], np.int32),
            "block_indices": np.arange(blocks, dtype=np.int32),
            "block_indices_begins": np.array([0, blocks], np.int32),
            "max_context_len": np.array(tokens, np.int32),
            _POSITIONS: np.array(positions, np.int64),
        }
        for name, values in inputs.items():
            self._request.set_tensor(name, openvino.Tensor(values))
        self._request.infer()
        logits: NDArray[np.float32] = self._request.get_tensor("logits").data.reshape(
            len(positions), -1
        )
        return logits


def _page_attention(model: Any) -> None:
    """Convert a stateful model to paged attention, with logits of selected tokens only."""
    from openvino import _offline_transformations, opset13

    _offline_transformations.paged_attention_transformation(model)
    head = model.output("logits").node.input_value(0).get_node()
    if head.get_type_name() == "Add":  # the bias of a mixture of experts' output layer
        head = head.input_value(0).get_node()
    if head.get_type_name() != "MatMul":
        raise UnsupportedModelError(
            f"The IR's logits come from a {head.get_type_name()}; engine='paged' knows exports "
            "whose logits come from a MatMul. Load it with engine='pipeline'."
        )
    positions = opset13.parameter([-1], np.int64, name=_POSITIONS)
    positions.output(0).get_tensor().set_names({_POSITIONS})
    chosen = opset13.gather(head.input_value(0), positions, opset13.constant(0))
    head.input(0).replace_source_output(chosen.output(0))
    model.add_parameters([positions])
    model.validate_nodes_and_infer_types()


def _describe(port: Any) -> CacheTensor:
    shape = tuple(dimension.get_length() for dimension in list(port.get_partial_shape())[1:])
    precision = port.get_element_type()
    return CacheTensor(
        name=port.get_any_name(),
        precision=precision.get_type_name(),
        block_shape=shape,
        block_bytes=math.prod(shape) * precision.bitwidth // 8,
    )


def _zeros(blocks: int, block_bytes: int) -> NDArray[np.uint8]:
    """Return aligned zeros; the system allocates their memory when it is first written."""
    size = blocks * block_bytes
    raw = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].reshape(blocks, block_bytes)
