"""Model fingerprint: ties a saved file to the model whose token ids and answers it holds.

A manifest holds the SHA-256 of every file, and `phi3ov.load_model` verifies them, so the
fingerprint of an export costs nothing. With ``verify=False`` nothing is verified: the fingerprint
is that of the export, even if files have changed since. A folder without a manifest is hashed
when its fingerprint is first needed, which takes seconds for a full-size model.

Device, precision and context are left out: they belong to a run, not to the model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .folder import MODEL_BIN, MODEL_XML, Artifact, hash_file

_WEIGHTS = (MODEL_XML, MODEL_BIN, "config.json")
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")  # stop ids too


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFingerprint:
    """Identity of a model, in three parts that are compared separately.

    Attributes:
        weights: SHA-256 over the graph, the weights and the checkpoint's config.
        tokenizer: SHA-256 over tokenizer and stop tokens.
        chat_format: Name of the chat format, its treatment of system messages, and the texts that
            the checkpoint's own template adds to it.
    """

    weights: str
    tokenizer: str
    chat_format: str

    @classmethod
    def of(cls, artifact: Artifact) -> ModelFingerprint:
        """Return the fingerprint of an exported folder.

        Raises:
            OSError: The folder has no manifest, and one of its files cannot be read.
        """
        manifest = artifact.manifest
        added = f", {dict(manifest.chat_extension)}" if manifest.chat_extension else ""
        return cls(
            weights=_digest(artifact, _WEIGHTS),
            tokenizer=_digest(artifact, _TOKENIZER),
            chat_format=f"{manifest.chat_format}, system messages {manifest.system_messages}"
            + added,
        )

    @classmethod
    def from_values(cls, values: object) -> ModelFingerprint:
        """Parse the fingerprint in a saved file.

        Raises:
            ValueError: ``values`` do not describe a fingerprint.
        """
        if (
            not isinstance(values, Mapping)
            or values.keys() != set(cls.__slots__)
            or not all(isinstance(value, str) for value in values.values())
        ):
            raise ValueError("its model is not a fingerprint.")
        return cls(**values)

    def to_values(self) -> dict[str, Any]:
        """Return plain values for JSON, as `from_values` reads them."""
        return asdict(self)

    def require(self, loaded: ModelFingerprint) -> None:
        """Check that the ``loaded`` model has this fingerprint.

        Raises:
            ValueError: It has another fingerprint; names the parts that differ.

        Example:
            >>> saved = ModelFingerprint(weights="1a", tokenizer="2b", chat_format="phi3")
            >>> loaded = ModelFingerprint(weights="3c", tokenizer="2b", chat_format="phi3")
            >>> saved.require(loaded)
            Traceback (most recent call last):
                ...
            ValueError: it was saved with another model: weights differ. Load the model that it \
was saved with.
        """
        differing = [
            part for part in self.__slots__ if getattr(self, part) != getattr(loaded, part)
        ]
        if differing:
            raise ValueError(
                f"it was saved with another model: {' and '.join(differing)} differ. Load the "
                "model that it was saved with."
            )


def _digest(artifact: Artifact, names: tuple[str, ...]) -> str:
    """Return one SHA-256 over names and checksums of those of the files that exist."""
    if artifact.has_checksums:
        records = artifact.manifest.files
        found = {name: records[name].sha256 for name in names if name in records}
    else:
        paths = {name: artifact.path / name for name in names}
        found = {name: hash_file(path) for name, path in paths.items() if path.is_file()}
    lines = "".join(f"{name} {checksum}\n" for name, checksum in found.items())
    return hashlib.sha256(lines.encode()).hexdigest()
