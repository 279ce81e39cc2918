"""The artifact's graph with its rope factors pinned, and its weights mapped: for every engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import openvino

from ..artifact import MODEL_BIN, MODEL_XML
from ..rope import original_context, pin_factors

if TYPE_CHECKING:
    from ..artifact import Artifact
    from ..rope import ContextChoice


class PinnedModel(NamedTuple):
    """An IR in two parts.

    Whoever compiles it must keep ``weights`` alive as long as the compiled model: openvino keeps
    pointers into that memory and does not own it.
    """

    xml: str
    weights: openvino.Tensor


def open_pinned(artifact: Artifact, context: ContextChoice) -> PinnedModel:
    """Return the artifact's model with the rope factors of ``context``.

    Raises:
        UnsupportedModelError: The factors cannot be had from this export.
    """
    xml = pin_factors(
        (artifact.path / MODEL_XML).read_text(encoding="utf-8"),
        context,
        original_tokens=original_context(artifact.config),
    )
    # Mapped, not read. Mode "c" because openvino wants a writable array; nothing writes.
    mapped = np.memmap(artifact.path / MODEL_BIN, dtype=np.uint8, mode="c")
    return PinnedModel(xml, openvino.Tensor(mapped, shared_memory=True))
