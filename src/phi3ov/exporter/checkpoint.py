"""A Phi-3 checkpoint on disk: located, downloaded if needed, and checked before any work.

`Checkpoint.resolve` takes a folder or a hub id and returns a folder whose config describes a model
that phi3ov supports and whose weights are safetensors. `export` converts it.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..artifact.download import download, is_hub_id
from ..errors import ExportError, UnsupportedModelError
from ..family import Phi3Config
from .experts import stored_shapes, write_stacked
from .llama import as_phi3, is_llama, tensor_shapes, write_phi3
from .tensors import EMBEDDING, HEAD, CheckpointTensors

_LOGGER = logging.getLogger("phi3ov")

NEEDED_FILES = ("config.json", "tokenizer.json")
TRAVELLING_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
)
"""Files that an artifact keeps from the checkpoint, besides the weights."""

_DOWNLOADED = ("*.safetensors", "*.safetensors.index.json", "*.jinja", *TRAVELLING_FILES)
"""Patterns of files to download: no pickled weights, code, ONNX models or pictures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A folder with a supported checkpoint.

    Attributes:
        path: The folder.
        config: Its dimensions.
        source: The hub id or folder that the caller passed.
        revision: The requested revision; None for a folder.
        commit: The commit that the revision resolves to; None for a folder.
        llama: Whether its weights and config.json are in Llama's layout.
    """

    path: Path
    config: Phi3Config
    source: str
    revision: str | None = None
    commit: str | None = None
    llama: bool = False

    @classmethod
    def resolve(cls, source: str | Path, *, revision: str | None = None) -> Checkpoint:
        """Find the checkpoint, downloading it if ``source`` is a hub id, and check it.

        Raises:
            ExportError: The checkpoint does not exist, cannot be downloaded, or lacks a file.
            UnsupportedModelError: phi3ov does not support this model, or it is quantized already.
        """
        folder = Path(source)
        if folder.is_dir():
            if revision is not None:
                raise ExportError(
                    f"revision={revision!r} goes with a hub id, but {folder} is a folder."
                )
            config, llama = _check_folder(folder)
            return cls(path=folder, config=config, source=str(source), llama=llama)
        if isinstance(source, Path) or not is_hub_id(source):
            raise ExportError(
                f"source={str(source)!r} is neither a folder nor a hub id such as "
                "'microsoft/Phi-3-mini-4k-instruct'."
            )
        path = download(source, revision=revision, files=_DOWNLOADED)
        config, llama = _check_folder(path)
        return cls(
            path=path,
            config=config,
            llama=llama,
            source=source,
            revision=revision or "main",
            commit=path.name,  # the hub's cache names snapshots by their commit
        )

    @property
    def public_source(self) -> str:
        """The hub id, or the folder's name without its parent path."""
        return self.source if self.revision else self.path.resolve().name

    @property
    def weights_bytes(self) -> int:
        """Bytes of the weight files that transformers reads."""
        return sum(file.stat().st_size for file in weight_files(self.path))

    @property
    def tensors(self) -> CheckpointTensors:
        """The tensors that transformers reads, from the headers of the weight files.

        Raises:
            ExportError: A weight file is damaged.
        """
        return CheckpointTensors.read(self.path, weight_files(self.path))

    @property
    def parameters(self) -> int:
        """Number of values in all tensors."""
        return sum(math.prod(shape) for shape in self.config.tensor_shapes().values())

    @property
    def source_bits(self) -> float:
        """Average bits per value in the weight files."""
        return 8 * self.weights_bytes / self.parameters

    def check_tensors(self) -> Checkpoint:
        """Check names, shapes, types and values of all weights. Reads every weight file once.

        Like transformers, this reads only the files that the index names.

        Returns:
            The checkpoint, with embeddings untied if config.json says that they are tied but the
            files hold two different matrices. transformers reads such a checkpoint the same way.

        Raises:
            ExportError: Tensors are missing, unexpected, of another shape, or hold values that
                are not finite; names them.
            UnsupportedModelError: A tensor is quantized already.
        """
        tensors = self.tensors
        tensors.check(self._stored_shapes())
        tensors.check_values()
        if not self.config.tie_word_embeddings or not tensors.has_own_head():
            return self
        _LOGGER.warning(
            "%s: config.json says tie_word_embeddings=true, but the weight files hold %s and %s, "
            "and they differ. Both are kept, as transformers keeps them.",
            self.path, EMBEDDING, HEAD,
        )  # fmt: skip
        return replace(self, config=replace(self.config, tie_word_embeddings=False))

    def _stored_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor that the files must hold, by its name."""
        if self.llama:
            return tensor_shapes(self.config)
        if self.config.has_experts:
            return stored_shapes(self.config)
        return self.config.tensor_shapes()

    @property
    def is_restacked(self) -> bool:
        """Whether the export writes the weights again first, with matrices joined to one."""
        return self.llama or self.config.has_experts

    def write_restacked(
        self, folder: Path, follow: Callable[[Iterable[str], str], Iterable[str]]
    ) -> None:
        """Write the checkpoint with joined matrices: Phi-3's layout, or stacked experts.

        Args:
            folder: An existing, empty folder to write the result to.
            follow: As in `llama.write_phi3`.
        """
        for name in TRAVELLING_FILES:
            if name != "config.json" and (self.path / name).is_file():
                shutil.copyfile(self.path / name, folder / name)
        write = write_phi3 if self.llama else write_stacked
        write(self.tensors, self.phi3_values(), self.config, folder, follow)

    def phi3_values(self) -> dict[str, Any]:
        """Return the content of config.json; that of Llama's layout is converted to Phi-3's."""
        values: dict[str, Any] = json.loads((self.path / "config.json").read_text(encoding="utf-8"))
        return as_phi3(values) if self.llama else values


def _read_config(path: Path) -> tuple[Phi3Config, bool]:
    """Return a checkpoint's dimensions, and whether its layout is Llama's."""
    values = json.loads(path.read_text(encoding="utf-8"))
    _refuse_quantized(values)
    llama = is_llama(values)
    return Phi3Config.parse(as_phi3(values) if llama else values), llama


def _refuse_quantized(values: object) -> None:
    """Refuse weights that any tool has already quantized: rounding twice would lose more."""
    if not isinstance(values, dict):
        return
    for name in ("quantization_config", "quantization", "compression_config"):
        settings = values.get(name)
        if not settings:
            continue
        method = "an unnamed method"
        if isinstance(settings, dict):
            method = str(settings.get("quant_method") or settings.get("mode") or method)
            if name == "quantization" and "quant_method" not in settings:
                method = "MLX"
            bits = settings.get("bits") or ("4" if settings.get("load_in_4bit") else None)
            method += f" ({bits} bits)" if bits else ""
        raise UnsupportedModelError(
            f"config.json: {name}: the weights are quantized already, by {method}. Rounding them "
            "again would cost quality twice. Export the original 16-bit checkpoint that they were "
            "made of (its hub page names it as base model)."
        )


def _check_folder(folder: Path) -> tuple[Phi3Config, bool]:
    """Check that ``folder`` holds a supported checkpoint.

    Returns:
        Its dimensions, and whether its layout is Llama's.
    """
    for name in NEEDED_FILES:
        if not (folder / name).is_file():
            raise ExportError(f"{folder} has no {name}{_hint(folder, name)}.")
    try:
        found = _read_config(folder / "config.json")
    except UnsupportedModelError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise ExportError(f"{folder / 'config.json'} is not JSON: {error}.") from error
    _check_weight_files(folder)
    return found


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the files that transformers reads weights from, in its order of preference.

    The folder may hold more files, such as another library's copy of the same weights.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return (single,)
    return tuple(folder / name for name in _read_index(index)) if index.is_file() else ()


def _check_weight_files(folder: Path) -> None:
    """Check that all weight files are in this folder and are complete safetensors files."""
    present = {file.name for file in folder.glob("*.safetensors")}
    index = folder / "model.safetensors.index.json"
    strange = set(_read_index(index)) - present if index.is_file() else set()
    if strange:
        raise ExportError(
            f"{index} names {', '.join(map(repr, sorted(strange)[:3]))}, which is not a "
            "safetensors file in this folder."
        )
    files = weight_files(folder)
    if not files:
        pickled = sorted(file.name for file in folder.glob("*.bin"))
        gguf = sorted(file.name for file in folder.glob("*.gguf"))
        found = f"only {', '.join(sorted(present))}" if present else "none"
        if pickled:
            found = f"only {', '.join(pickled)}, and pickled weights can run code"
        elif gguf:
            found = f"only {', '.join(gguf)}, which llama.cpp has quantized already"
        raise ExportError(
            f"{folder} has no safetensors weights ({found}): neither model.safetensors nor "
            "model.safetensors.index.json."
        )
    CheckpointTensors.read(folder, files)


def _read_index(index: Path) -> list[str]:
    """Return the sorted names of the files that a weight index lists."""
    try:
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return sorted({str(name) for name in named})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ExportError(f"{index} is not an index of weights: {error!r}.") from error


def _hint(folder: Path, name: str) -> str:
    if name == "tokenizer.json" and (folder / "tokenizer.model").is_file():
        return (
            " (it has a tokenizer.model: AutoTokenizer.from_pretrained(folder).save_pretrained("
            "folder) writes a tokenizer.json)"
        )
    if name != "config.json":
        return ""
    if (folder / "adapter_config.json").is_file():
        return (
            ". It is a LoRA adapter: export its base model, and load that with "
            "load_model(..., adapter=LoraAdapter(path=...))"
        )
    return " and is not a checkpoint in Hugging Face layout"
