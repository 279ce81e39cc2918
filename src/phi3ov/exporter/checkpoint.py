"""A Phi-3 checkpoint on disk: found, downloaded if need be, and checked before any work.

`Checkpoint.resolve` takes a folder or a hub id and returns a folder whose config names a model
that phi3ov supports and whose weights are safetensors. Converting it is ``exporter.py``'s work.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ..artifact.download import download, is_hub_id
from ..errors import ExportError, UnsupportedModelError
from ..family import Phi3Config
from ..weight_files import TensorHeader, read_headers

NEEDED_FILES = ("config.json", "tokenizer.json")
_DOWNLOADED = (
    "*.safetensors",
    "*.safetensors.index.json",
    "*.jinja",
    "added_tokens.json",
    "config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
)
"""What is fetched from the hub: no pickled weights, no code, no ONNX, no pictures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A folder with a supported checkpoint.

    Attributes:
        path: The folder.
        config: Its dimensions.
        source: What the caller named: a hub id, or a folder.
        revision: The revision that was asked for; None for a folder.
        commit: The commit that it stands for; None for a folder.
    """

    path: Path
    config: Phi3Config
    source: str
    revision: str | None = None
    commit: str | None = None

    @classmethod
    def resolve(cls, source: str | Path, *, revision: str | None = None) -> Checkpoint:
        """Find the checkpoint, downloading it if ``source`` is a hub id, and check it.

        Raises:
            ExportError: It is not there, cannot be downloaded, or lacks a file.
            UnsupportedModelError: It is no Phi-3 that phi3ov supports.
        """
        folder = Path(source)
        if folder.is_dir():
            if revision is not None:
                raise ExportError(
                    f"revision={revision!r} goes with a hub id, but {folder} is a folder."
                )
            return cls(path=folder, config=_check_folder(folder), source=str(source))
        if isinstance(source, Path) or not is_hub_id(source):
            raise ExportError(
                f"source={str(source)!r} is neither a folder nor a hub id such as "
                "'microsoft/Phi-3-mini-4k-instruct'."
            )
        path = download(source, revision=revision, files=_DOWNLOADED)
        return cls(
            path=path,
            config=_check_folder(path),
            source=source,
            revision=revision or "main",
            commit=path.name,  # the hub's cache names snapshots by their commit
        )

    @property
    def public_source(self) -> str:
        """The hub id, or the folder's name without the path that leads there."""
        return self.source if self.revision else self.path.resolve().name

    @property
    def weights_bytes(self) -> int:
        """Bytes of the weight files that transformers reads."""
        return sum(file.stat().st_size for file in weight_files(self.path))

    def check_tensors(self) -> None:
        """Check that the weight files hold every tensor that the config speaks of.

        transformers would draw the missing ones at random, and only warn. It reads no file that
        its index does not name, so neither does this.

        Raises:
            ExportError: Some are missing, or a weight file is damaged; names them.
        """
        needed = set(self.config.tensor_shapes())
        for file in weight_files(self.path):
            needed -= _read_headers(file).keys()
        if needed:
            missing = sorted(needed)
            more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
            raise ExportError(f"{self.path} has no tensors {', '.join(missing[:4])}{more}.")


def _check_folder(folder: Path) -> Phi3Config:
    """Check that ``folder`` holds a supported checkpoint and return its dimensions."""
    for name in NEEDED_FILES:
        if not (folder / name).is_file():
            raise ExportError(f"{folder} has no {name}{_hint(folder, name)}.")
    try:
        config = Phi3Config.read(folder / "config.json")
    except UnsupportedModelError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise ExportError(f"{folder / 'config.json'} is not JSON: {error}.") from error
    _check_weight_files(folder)
    return config


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the files that transformers reads weights from, in its order of preference.

    Others may lie beside them, such as another library's copy of the same weights.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return (single,)
    return tuple(folder / name for name in _read_index(index)) if index.is_file() else ()


def _check_weight_files(folder: Path) -> None:
    """Check that the weights are whole safetensors files, and all in this folder."""
    present = {file.name for file in folder.glob("*.safetensors")}
    index = folder / "model.safetensors.index.json"
    strange = set(_read_index(index)) - present if index.is_file() else set()
    if strange:
        raise ExportError(
            f"{index} names {', '.join(map(repr, sorted(strange)[:3]))}, which is no safetensors "
            "file in this folder."
        )
    files = weight_files(folder)
    if not files:
        pickled = sorted(file.name for file in folder.glob("*.bin"))
        found = f"only {', '.join(sorted(present))}" if present else "none"
        if pickled:
            found = f"only {', '.join(pickled)}, and pickled weights can run code"
        raise ExportError(
            f"{folder} has no safetensors weights ({found}): neither model.safetensors nor "
            "model.safetensors.index.json."
        )
    for file in files:
        _read_headers(file)


def _read_index(index: Path) -> list[str]:
    """Return the names of the files that an index of weights names, sorted."""
    try:
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return sorted({str(name) for name in named})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ExportError(f"{index} is no index of weights: {error!r}.") from error


def _read_headers(file: Path) -> dict[str, TensorHeader]:
    try:
        return read_headers(file)
    except (OSError, ValueError) as error:
        raise ExportError(f"{file}: {error}.") from error


def _hint(folder: Path, name: str) -> str:
    if name == "tokenizer.json" and (folder / "tokenizer.model").is_file():
        return (
            " (it has a tokenizer.model: AutoTokenizer.from_pretrained(folder).save_pretrained("
            "folder) writes a tokenizer.json)"
        )
    return " and is no checkpoint in Hugging Face layout" if name == "config.json" else ""
