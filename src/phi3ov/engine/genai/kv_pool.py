"""Size of the KV cache: the caller's limit in bytes, in blocks of genai's paged attention.

Without a fixed size, genai allocates only what the current requests need and overwrites the oldest
blocks of finished requests, so chats that share a model evict each other's prefixes. With a fixed
number of blocks, genai first uses all of them and then evicts the least recently used block. The
memory is only reserved: the system allocates a page when a block is first written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import openvino

from ...artifact.folder import MODEL_XML, Artifact
from ...artifact.ir import exported_kv_precision
from ...errors import OptionError

if TYPE_CHECKING:
    from ..protocol import EngineSetup
    from .draft import SpeculationPlan

BLOCK_TOKENS = {"CPU": 32, "GPU": 16}
"""Tokens per block of genai's KV cache (its ``cpu_block_size`` and ``gpu_block_size``)."""

_SCALE_BYTES = 8
"""Bytes of scale and zero point of quantized values, float32 each (OpenVINO's CPU plugin): one
pair per channel of a block's keys, or per group of a token's channels; the latter for values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KVPool:
    """The blocks of a KV cache.

    Attributes:
        blocks: Number of blocks.
        block_tokens: Tokens per block.
        block_bytes: Bytes per block, over all layers.
        spare_tokens: Tokens beyond prompt and answer that a request may need temporarily for
            speculation.
    """

    blocks: int
    block_tokens: int
    block_bytes: int
    spare_tokens: int = 0

    def blocks_for(self, tokens: int) -> int:
        """Return the maximum number of blocks of a request with ``tokens`` prompt and answer."""
        return -(-(tokens + self.spare_tokens) // self.block_tokens) + 1


def plan_pool(
    setup: EngineSetup,
    properties: Mapping[str, str],
    speculation: SpeculationPlan,
    *,
    contexts: int,
    most_bytes: int,
) -> KVPool:
    """Return the pool for ``setup``.

    Args:
        setup: The engine setup; ``cache_bytes`` None selects the default size.
        properties: The OpenVINO properties that the model is compiled with.
        speculation: The draft model, whose cache counts towards the size, and its draft tokens.
        contexts: Number of full contexts in the default size.
        most_bytes: Maximum of the default size, unless one context needs more.

    Returns:
        A pool with as many blocks as fit the size, enough for at least one full context.

    Raises:
        OptionError: ``cache_bytes`` does not hold one full context, so some accepted requests
            could never be answered.
    """
    block_tokens = block_tokens_of(setup.device)
    block_bytes = kv_block_bytes(setup.artifact, setup.device, properties)
    if speculation.draft_folder:  # genai gives both models the same number of blocks
        draft = Artifact.open(speculation.draft_folder, needs_chat=False)
        block_bytes += kv_block_bytes(draft, setup.device, properties)
    one = KVPool(
        blocks=1,
        block_tokens=block_tokens,
        block_bytes=block_bytes,
        spare_tokens=speculation.spare_tokens,
    )
    least = one.blocks_for(setup.context.tokens)
    if setup.cache_bytes is None:
        blocks = max(least, min(contexts * least, most_bytes // block_bytes))
    else:
        blocks = setup.cache_bytes // block_bytes
        if blocks < least:
            room = (blocks - 1) * block_tokens - speculation.spare_tokens
            way_out = f", or load it with context_tokens={room} at most" if room > 0 else ""
            raise OptionError(
                f"cache_bytes={setup.cache_bytes} does not hold one context of "
                f"{setup.context.tokens} tokens. Give at least {least * block_bytes}{way_out}.",
                option="cache_bytes",
            )
    return replace(one, blocks=blocks)


def block_tokens_of(device: str) -> int:
    """Return the tokens per block on ``device``."""
    return BLOCK_TOKENS.get(device.partition(".")[0], 32)


def kv_block_bytes(artifact: Artifact, device: str, properties: Mapping[str, str]) -> int:
    """Return the bytes of one KV cache block, over all layers."""
    config = artifact.config
    head = config.head_dim
    tokens = block_tokens_of(device)
    exported = exported_kv_precision(artifact.path / MODEL_XML)
    in_bytes = 0
    for part in ("KEY", "VALUE"):
        groups = head // int(properties.get(f"{part}_CACHE_GROUP_SIZE", head))
        by_token = part == "VALUE" or properties.get("KEY_CACHE_QUANT_MODE") == "BY_TOKEN"
        scales = tokens * groups if by_token else head
        bits = _precision_of(part, device, properties, exported).bitwidth
        quantized = bits <= 8
        in_bytes += tokens * head * bits // 8 + (scales * _SCALE_BYTES if quantized else 0)
    return config.num_hidden_layers * config.num_key_value_heads * in_bytes


def _precision_of(
    part: str, device: str, properties: Mapping[str, str], exported: str | None
) -> Any:
    """Return the type of keys or values: set by the caller, the export, or the device's default."""
    named = (
        properties.get(f"{part}_CACHE_PRECISION")
        or properties.get("KV_CACHE_PRECISION")
        or exported
    )
    if named is not None:
        found = getattr(openvino.Type, named, None)
        if not isinstance(found, openvino.Type):
            raise OptionError(
                f"{part}_CACHE_PRECISION is {named!r}, which OpenVINO has no type for."
            )
        return found
    core = openvino.Core()
    if "KV_CACHE_PRECISION" in core.get_property(device, "SUPPORTED_PROPERTIES"):
        return core.get_property(device, "KV_CACHE_PRECISION")
    return openvino.Type.f16
