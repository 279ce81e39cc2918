"""Artifact folder: its manifest ``phi3ov.json`` and the check of its files against it.

An artifact is a folder that `phi3ov.export_model` made. It holds the OpenVINO model and
tokenizer, the checkpoint's own tokenizer and configs, and the manifest. The manifest records the
source, the recipe, the weights that the model holds, and size and SHA-256 of every file.
`exporter` creates an artifact, `loading` opens it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import ArtifactError, UnsupportedModelError
from ..family import Phi3Config
from ..prompt.extension import Extension
from ..prompt.formats import FORMATS, ChatFormat
from .foreign import UNKNOWN, describe_layers, describe_limits, render_format
from .ir import (
    WeightLayer,
    WeightSummary,
    bits_per_weight,
    chooses_factors,
    read_provenance,
    summarize,
)

_LOGGER = logging.getLogger("phi3ov")

MANIFEST_NAME = "phi3ov.json"
MODEL_XML = "openvino_model.xml"
MODEL_BIN = "openvino_model.bin"
FORMAT_VERSION = 1
"""Version of the manifest format; a folder with another version is refused."""

_CHUNK_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """Size and SHA-256 of one file when the export finished.

    Attributes:
        size_bytes: Size in bytes.
        sha256: SHA-256 as 64 hexadecimal digits.
    """

    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The content of ``phi3ov.json``.

    Attributes:
        source: Hub id of the exported checkpoint, or the name of its folder.
        revision: Requested branch, tag or commit; None for a folder.
        commit: The commit that the revision resolved to; None for a folder.
        source_bytes: Bytes of the checkpoint's weights.
        recipe: The requested compression, by its field names.
        weights: The weights that the model holds, by precision and group size.
        chat_format: Name of the chat format that the checkpoint's own template writes.
        system_messages: How that template treats system messages.
        versions: Versions of the tools that made the export.
        files: Every other file of the folder, by its path with forward slashes.
        layers: Every weight of the model, one by one.
        chat_extension: Texts that the checkpoint's own template adds to that format, by name; see
            `phi3ov.prompt.extension.Extension`. The file leaves an empty one out.
        notes: Files that the folder lacks, the reason, and who needs them; a sentence each.
        format_version: Version of this manifest's format.
    """

    source: str
    revision: str | None
    commit: str | None
    source_bytes: int
    recipe: Mapping[str, Any]
    weights: tuple[WeightSummary, ...]
    chat_format: str
    system_messages: str
    versions: Mapping[str, str]
    files: Mapping[str, FileRecord]
    layers: tuple[WeightLayer, ...] = ()
    notes: tuple[str, ...] = ()
    chat_extension: Mapping[str, str | bool] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        """Return the text of ``phi3ov.json``, which is the same for the same content."""
        values = asdict(self)
        for layer in values["layers"]:
            for name in ("error", "int4_effect"):
                if layer[name] is None:
                    del layer[name]
        if not self.chat_extension:  # earlier versions refuse a field that they do not know
            del values["chat_extension"]
        return json.dumps(values, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Parse the text of ``phi3ov.json``.

        Raises:
            ArtifactError: The text is not a manifest, or has another format version.
        """
        try:
            values = json.loads(text)
            version = values["format_version"]
            if version != FORMAT_VERSION:
                raise ArtifactError(
                    f"{MANIFEST_NAME} has format_version={version!r}; this phi3ov reads "
                    f"{FORMAT_VERSION}. Export the checkpoint again, or install the phi3ov that "
                    "made it."
                )
            values["weights"] = tuple(WeightSummary(**entry) for entry in values["weights"])
            values["layers"] = tuple(WeightLayer(**entry) for entry in values.get("layers", ()))
            values["files"] = {name: FileRecord(**one) for name, one in values["files"].items()}
            values["notes"] = tuple(map(str, values.get("notes", ())))
            Extension.from_values(values.get("chat_extension", {}))
            unknown = values.keys() - {known.name for known in fields(cls)}
            if unknown:
                raise TypeError(f"unknown fields {sorted(unknown)}")
            return cls(**values)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, ArtifactError):
                raise
            raise ArtifactError(f"{MANIFEST_NAME} cannot be read: {error!r}.") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """An exported folder whose manifest has been read.

    Attributes:
        path: The folder.
        manifest: The content of ``phi3ov.json``.
        config: The model's dimensions, from the checkpoint's ``config.json``.
    """

    path: Path
    manifest: Manifest
    config: Phi3Config

    @classmethod
    def open(cls, path: str | Path, *, needs_chat: bool = True) -> Artifact:
        """Read the manifest of an exported folder and check that all its files are present.

        File sizes are compared; `verify` compares contents.

        Args:
            path: The folder.
            needs_chat: Whether a folder that phi3ov did not export must have a chat template. A
                draft model needs none.

        Raises:
            ArtifactError: phi3ov did not export the folder, or files are missing or of another
                size; lists all of them.
            UnsupportedModelError: ``config.json`` describes a model that phi3ov does not support.

        Example:
            >>> Artifact.open("models/no-such-folder")
            Traceback (most recent call last):
                ...
            phi3ov.errors.ArtifactError: models/no-such-folder is not a folder. Export a \
checkpoint into it first: phi3ov.export_model(source, 'models/no-such-folder').
        """
        folder = Path(path)
        if not folder.is_dir():
            raise ArtifactError(
                f"{folder} is not a folder. Export a checkpoint into it first: "
                f"phi3ov.export_model(source, {str(path)!r})."
            )
        manifest_path = folder / MANIFEST_NAME
        try:
            if manifest_path.is_file():
                manifest = Manifest.from_json(manifest_path.read_text(encoding="utf-8"))
            else:
                manifest = _describe_foreign(folder, needs_chat=needs_chat)
        except UnicodeDecodeError as error:
            raise ArtifactError(f"{manifest_path} is not UTF-8: {error}.") from error
        except OSError as error:
            raise ArtifactError(f"{folder} cannot be read: {error}.") from error
        problems = [
            problem
            for name, record in manifest.files.items()
            for problem in _size_problems(folder, name, record)
        ]
        if problems:
            raise ArtifactError(f"{folder} is not as it was exported:", problems=tuple(problems))
        try:
            config = Phi3Config.read(folder / "config.json")
        except UnsupportedModelError:
            raise
        except (OSError, ValueError, RecursionError) as error:
            raise ArtifactError(f"{folder / 'config.json'} cannot be read: {error!r}.") from error
        return cls(path=folder, manifest=manifest, config=config)

    @property
    def chat_format(self) -> ChatFormat:
        """The chat format that the manifest names, with the texts that its template adds.

        Raises:
            ArtifactError: This version of phi3ov does not know the chat format, or cannot write
                the texts.
        """
        extension = Extension.from_values(self.manifest.chat_extension)
        for chat_format in FORMATS:
            if (chat_format.name, chat_format.system_messages) == (
                self.manifest.chat_format,
                self.manifest.system_messages,
            ):
                if problem := extension.find_problem(chat_format.own_tokens):
                    raise ArtifactError(f"{MANIFEST_NAME}: chat_extension: {problem}.")
                return chat_format.extended(extension)
        raise ArtifactError(
            f"chat_format={self.manifest.chat_format!r} with system_messages="
            f"{self.manifest.system_messages!r} is unknown to this phi3ov. Install a newer one."
        )

    @property
    def vocabulary_size(self) -> int:
        """Number of token ids: rows of the embedding matrix."""
        return self.config.vocab_size

    @property
    def size_bytes(self) -> int:
        """Total bytes of all files except the manifest."""
        if not self.has_checksums:
            return sum(path.stat().st_size for path in self.path.iterdir() if path.is_file())
        return sum(record.size_bytes for record in self.manifest.files.values())

    @property
    def has_checksums(self) -> bool:
        """Whether a manifest holds checksums of the files, as in every export of phi3ov."""
        return bool(self.manifest.files)

    @property
    def has_long_factors(self) -> bool:
        """Whether the model holds LongRoPE's long factors, which exports before mid-2026 lack."""
        return self.config.has_longrope and chooses_factors(self.path / MODEL_XML)

    @property
    def bits_per_weight(self) -> float:
        """Average bits per parameter, scales and zero points included."""
        return bits_per_weight(self.manifest.weights)

    def verify(self) -> None:
        """Read every file and compare it with its SHA-256 in the manifest.

        Raises:
            ArtifactError: Files are missing or changed, listing every problem; or there is no
                manifest to compare with.
        """
        if not self.has_checksums:
            raise ArtifactError(
                f"{self.path} has no {MANIFEST_NAME}: phi3ov did not export it, so there is "
                "nothing to compare its files with."
            )
        problems = []
        for name, record in self.manifest.files.items():
            path = self.path / PurePosixPath(name)
            found = _size_problems(self.path, name, record)
            if not found and hash_file(path) != record.sha256:
                found = [f"{name}: its content has changed (SHA-256 differs)"]
            problems += found
        if problems:
            raise ArtifactError(f"{self.path} is not as it was exported:", problems=tuple(problems))


def _describe_foreign(folder: Path, *, needs_chat: bool) -> Manifest:
    """Build the manifest of a folder without one, from its IR and templates.

    Args:
        folder: The folder.
        needs_chat: Whether to read the chat format from its template.

    Raises:
        ArtifactError: The folder is not an OpenVINO export.
        UnsupportedModelError: phi3ov does not know its chat format.
    """
    if not (folder / MODEL_XML).is_file():
        hint = "Export the checkpoint with phi3ov.export_model()."
        parts = sorted(path.name for path in folder.glob("openvino_*_model.xml"))
        if (folder / "config.json").is_file():
            hint = "It holds a checkpoint: export it first with phi3ov.export_model()."
        if parts:
            hint = f"It is a model in several parts ({', '.join(parts)}), as multimodal models are."
        raise ArtifactError(f"{folder} has no {MANIFEST_NAME}. {hint}")
    layers = describe_layers(folder)
    chat_format = render_format(folder) if needs_chat else None
    origin = read_provenance(folder / MODEL_XML)
    _LOGGER.warning(
        "%s was not exported by phi3ov: its source, %sand whether a file has changed are unknown.",
        folder,
        "" if origin.recipe else "its recipe, ",
    )
    notes = describe_limits(folder)
    for note in notes:
        _LOGGER.warning("%s: %s", folder, note)
    return Manifest(
        source=UNKNOWN,
        revision=None,
        commit=None,
        source_bytes=0,
        recipe=origin.recipe or {"mode": UNKNOWN},
        weights=summarize(layers),
        layers=layers,
        chat_format=UNKNOWN if chat_format is None else chat_format.name,
        system_messages=UNKNOWN if chat_format is None else chat_format.system_messages,
        chat_extension={} if chat_format is None else chat_format.extension.to_values(),
        versions=origin.versions,
        files={},
        notes=notes,
    )


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file as a hexadecimal string; hashing releases the GIL."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def record_files(folder: Path) -> dict[str, FileRecord]:
    """Return size and SHA-256 of every file below ``folder`` except the manifest."""
    return {
        path.relative_to(folder).as_posix(): FileRecord(
            size_bytes=path.stat().st_size, sha256=hash_file(path)
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST_NAME
    }


def _size_problems(folder: Path, name: str, record: FileRecord) -> list[str]:
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts or "\\" in name or ":" in name:
        return [f"{name}: leads out of the folder"]
    path = folder / parts
    if not path.is_file():
        return [f"{name}: missing"]
    size_bytes = path.stat().st_size
    if size_bytes != record.size_bytes:
        return [f"{name}: {size_bytes} bytes instead of {record.size_bytes}"]
    return []
