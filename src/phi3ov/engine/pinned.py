"""Opens the artifact's graph with pinned rope factors and memory-mapped weights."""

from __future__ import annotations

import filecmp
import mmap
import shutil
import sys
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
"""Files that openvino-genai reads next to a graph; only these are copied."""


_OF_THE_MODEL = ("config.json", "generation_config.json")
"""Files among `_READ_BY_GENAI` that do not concern the tokenizer."""


class PinnedModel(NamedTuple):
    """An IR as graph and weights.

    The caller must keep ``weights`` alive as long as the compiled model: openvino keeps
    pointers into that memory and does not own it.
    """

    xml: str
    weights: openvino.Tensor
    mapped: mmap.mmap

    def drop_pages(self) -> None:
        """Remove the mapped weights from the process's resident memory.

        After the first inference, the kernels read repacked copies of the weights. Only rows of
        the embedding table are still read here, and their pages are loaded again on demand. This
        does nothing on systems without such a call (Windows reclaims idle pages by itself).
        """
        if sys.platform != "win32" and hasattr(mmap, "MADV_DONTNEED"):
            self.mapped.madvise(mmap.MADV_DONTNEED)


def open_pinned(artifact: Artifact, context: ContextChoice) -> PinnedModel:
    """Return the artifact's model with the rope factors of ``context``.

    Raises:
        UnsupportedModelError: The export does not hold these factors.
    """
    xml = _pin(artifact, context)
    # Mapped, not read. Copy on write, because openvino requires writable memory; nothing writes.
    with (artifact.path / MODEL_BIN).open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    values = np.frombuffer(mapped, dtype=np.uint8)
    return PinnedModel(xml, openvino.Tensor(values, shared_memory=True), mapped)


@contextmanager
def pinned_folder(
    artifact: Artifact,
    context: ContextChoice,
    *,
    inside: str | None = None,
    tokenizer_of: Path | None = None,
) -> Iterator[Path]:
    """Provide a folder with the model of `open_pinned`, for pipelines that load from a folder.

    If neither factors nor tokenizer need to be changed, this is the artifact's folder. Otherwise
    it is a temporary folder with the changed XML, the other files that genai reads, and a link to
    the weights, which stay mapped after the link is removed.

    Args:
        artifact: The export.
        context: The context, with the factors to pin.
        inside: Parent of the temporary folder; None for the system's default.
        tokenizer_of: A folder whose tokenizer files replace the artifact's; None keeps those.

    Raises:
        UnsupportedModelError: The export does not hold these factors.
        OptionError: A folder or a link cannot be created there.
    """
    has_own_tokenizer = tokenizer_of is None or _same_files(tokenizer_of, artifact.path)
    if context.factors == "none" and has_own_tokenizer:
        yield artifact.path
        return
    with temporary_folder(inside) as folder:
        (folder / MODEL_XML).write_text(_pin(artifact, context), encoding="utf-8")
        for name in _READ_BY_GENAI:
            source = artifact.path
            if tokenizer_of is not None and name not in _OF_THE_MODEL:
                source = tokenizer_of
            if (source / name).is_file():
                _link_or_copy(source / name, folder / name)
        _link(artifact.path / MODEL_BIN, folder / MODEL_BIN)
        yield folder


@contextmanager
def temporary_folder(inside: str | None = None) -> Iterator[Path]:
    """Create a temporary folder, for pipelines that load a graph from a file only.

    Args:
        inside: Parent of the folder; None for the system's default.

    Raises:
        OptionError: The folder cannot be created there.
    """
    try:
        made = tempfile.TemporaryDirectory(prefix="phi3ov-", dir=inside, ignore_cleanup_errors=True)
    except OSError as error:
        raise OptionError(
            "engine='worker' and a draft model need a temporary folder for the graph with its "
            f"LongRoPE factors, and none can be written: {error}. Set TMPDIR (TEMP on Windows) to "
            "a folder that can be, or use engine='pipeline' without a draft model.",
            option="engine",
        ) from error
    with made as name:
        yield Path(name)


def _same_files(folder: Path, other: Path) -> bool:
    """Whether the tokenizer files of two folders are equal."""
    names = [name for name in _READ_BY_GENAI if name not in _OF_THE_MODEL]
    _, different, missing = filecmp.cmpfiles(folder, other, names, shallow=False)
    apart = [name for name in missing if (folder / name).exists() or (other / name).exists()]
    return not different and not apart


def _pin(artifact: Artifact, context: ContextChoice) -> str:
    return pin_factors(
        (artifact.path / MODEL_XML).read_text(encoding="utf-8"),
        context,
        original_tokens=artifact.config.original_max_position_embeddings,
    )


def _link_or_copy(file: Path, link: Path) -> None:
    try:
        link.hardlink_to(file)
    except OSError:  # another volume, or a file system without links
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
                "engine='pipeline' without a draft model.",
                option="engine",
            ) from error
