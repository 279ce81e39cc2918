"""The artifact's graph with its rope factors pinned, and its weights mapped: for every engine."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import openvino

from ..artifact import MODEL_BIN, MODEL_XML
from ..errors import OptionError
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
    xml = _pin(artifact, context)
    # Mapped, not read. Mode "c" because openvino wants a writable array; nothing writes.
    mapped = np.memmap(artifact.path / MODEL_BIN, dtype=np.uint8, mode="c")
    return PinnedModel(xml, openvino.Tensor(mapped, shared_memory=True))


@contextmanager
def pinned_folder(artifact: Artifact, context: ContextChoice) -> Iterator[Path]:
    """Give a folder with the model that `open_pinned` gives, for as long as it is loaded.

    It is the artifact's own where nothing needs to be pinned, else a temporary one with the
    changed XML and a link to the weights, which stay mapped when the link is gone.

    Raises:
        UnsupportedModelError: The factors cannot be had from this export.
        OptionError: The system makes no links there.
    """
    if context.factors == "none":
        yield artifact.path
        return
    with tempfile.TemporaryDirectory(prefix="phi3ov-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / MODEL_XML).write_text(_pin(artifact, context), encoding="utf-8")
        (folder / "config.json").write_bytes((artifact.path / "config.json").read_bytes())
        _link(artifact.path / MODEL_BIN, folder / MODEL_BIN)
        yield folder


def _pin(artifact: Artifact, context: ContextChoice) -> str:
    return pin_factors(
        (artifact.path / MODEL_XML).read_text(encoding="utf-8"),
        context,
        original_tokens=original_context(artifact.config),
    )


def _link(weights: Path, link: Path) -> None:
    try:
        link.symlink_to(weights)
    except OSError:  # Windows without developer mode; a hard link needs the same volume
        try:
            link.hardlink_to(weights)
        except OSError as error:
            raise OptionError(
                f"engine='worker' needs a link to {weights} in {link.parent} to choose LongRoPE "
                f"factors, and the system refuses one: {error}. Point TMPDIR (or TEMP) at a "
                "folder on the model's own volume, or use engine='pipeline'."
            ) from error
