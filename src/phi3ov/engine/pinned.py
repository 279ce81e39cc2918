"""The artifact's graph with its rope factors pinned, and its weights mapped: for every engine."""

from __future__ import annotations

import mmap
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import openvino

from ..artifact.folder import MODEL_BIN, MODEL_XML
from ..errors import OptionError
from ..runtime.rope import pin_factors

if TYPE_CHECKING:
    from ..artifact.folder import Artifact
    from ..runtime.rope import ContextChoice


_READ_BY_GENAI = (
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "openvino_detokenizer.bin",
    "openvino_detokenizer.xml",
    "openvino_tokenizer.bin",
    "openvino_tokenizer.xml",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
"""Files that openvino-genai looks for next to a graph; other files are not copied."""


class PinnedModel(NamedTuple):
    """An IR in two parts.

    The caller must keep ``weights`` alive as long as the compiled model: openvino keeps
    pointers into that memory and does not own it.
    """

    xml: str
    weights: openvino.Tensor
    mapped: mmap.mmap

    def drop_pages(self) -> None:
        """Take the mapped weights out of the process's resident memory.

        Once a model has computed, its kernels read copies of the weights in an order of their
        own. What is still read here, rows of the embedding table, comes back page by page.
        Nothing happens where the system has no such call (Windows takes idle pages by itself).
        """
        if hasattr(mmap, "MADV_DONTNEED"):
            self.mapped.madvise(mmap.MADV_DONTNEED)


def open_pinned(artifact: Artifact, context: ContextChoice) -> PinnedModel:
    """Return the artifact's model with the rope factors of ``context``.

    Raises:
        UnsupportedModelError: The factors cannot be had from this export.
    """
    xml = _pin(artifact, context)
    # Mapped, not read. A private copy because openvino wants writable memory; nothing writes.
    with (artifact.path / MODEL_BIN).open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    values = np.frombuffer(mapped, dtype=np.uint8)
    return PinnedModel(xml, openvino.Tensor(values, shared_memory=True), mapped)


@contextmanager
def pinned_folder(
    artifact: Artifact, context: ContextChoice, *, inside: str | None = None
) -> Iterator[Path]:
    """Give a folder with the model that `open_pinned` gives, for as long as it is loaded.

    It is the artifact's own where nothing needs to be pinned. Otherwise it is a temporary one with
    the changed XML, the other files that genai reads, and a link to the weights, which stay mapped
    when the link is gone.

    Args:
        artifact: The export.
        context: Which factors.
        inside: Where to make the temporary one; None is the system's place.

    Raises:
        UnsupportedModelError: The factors cannot be had from this export.
        OptionError: The system makes no folder or no links there.
    """
    if context.factors == "none":
        yield artifact.path
        return
    with temporary_folder(inside) as folder:
        (folder / MODEL_XML).write_text(_pin(artifact, context), encoding="utf-8")
        for name in _READ_BY_GENAI:
            if (artifact.path / name).is_file():
                _link_or_copy(artifact.path / name, folder / name)
        _link(artifact.path / MODEL_BIN, folder / MODEL_BIN)
        yield folder


@contextmanager
def temporary_folder(inside: str | None = None) -> Iterator[Path]:
    """Give a temporary folder, for pipelines that take a model's graph from a file only.

    Args:
        inside: Where to make it; None is the system's place.

    Raises:
        OptionError: No folder can be made there.
    """
    try:
        made = tempfile.TemporaryDirectory(prefix="phi3ov-", dir=inside, ignore_cleanup_errors=True)
    except OSError as error:
        raise OptionError(
            "engine='worker' and a draft model need a temporary folder for the graph with its "
            f"LongRoPE factors, and none can be written: {error}. Set TMPDIR (TEMP on Windows) to "
            "a folder that can be, or use engine='pipeline' without a draft model."
        ) from error
    with made as name:
        yield Path(name)


def _pin(artifact: Artifact, context: ContextChoice) -> str:
    return pin_factors(
        (artifact.path / MODEL_XML).read_text(encoding="utf-8"),
        context,
        original_tokens=artifact.config.original_max_position_embeddings,
    )


def _link_or_copy(file: Path, link: Path) -> None:
    try:
        link.hardlink_to(file)
    except OSError:  # another volume, or one without links
        shutil.copyfile(file, link)


def _link(weights: Path, link: Path) -> None:
    try:
        link.symlink_to(weights)
    except OSError:  # Windows without developer mode; a hard link needs the same volume
        try:
            link.hardlink_to(weights)
        except OSError as error:
            raise OptionError(
                "engine='worker' and a draft model need a link to the weights to choose LongRoPE "
                f"factors, and the system refuses one to {weights} in {link.parent}: {error}. "
                "Point TMPDIR (or TEMP) at a folder on the model's own volume, or use "
                "engine='pipeline' without a draft model."
            ) from error
