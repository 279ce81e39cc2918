"""Which model a saved file belongs to: checksums of all that token ids and answers depend on.

A manifest holds the SHA-256 of every file, and `phi3ov.load_model` compares them, so the
fingerprint of an export costs nothing. With ``verify=False`` they are not compared: the
fingerprint is that of the export, even if files have changed since. A folder without a manifest
is hashed when its fingerprint is first asked for, which takes seconds for a full-size model.

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
    """What makes two models the same one; each part is compared by itself.

    Attributes:
        weights: SHA-256 over the graph, the weights and the checkpoint's config.
        tokenizer: SHA-256 over tokenizer and stop tokens.
        chat_format: Name of the chat format, and what it does with system messages.
    """

    weights: str
    tokenizer: str
    chat_format: str

    @classmethod
    def of(cls, artifact: Artifact) -> ModelFingerprint:
        """Return the fingerprint of an exported folder.

        Raises:
            OSError: The folder has no manifest, and a file of it cannot be read.
        """
        manifest = artifact.manifest
        return cls(
            weights=_digest(artifact, _WEIGHTS),
            tokenizer=_digest(artifact, _TOKENIZER),
            chat_format=f"{manifest.chat_format}, system messages {manifest.system_messages}",
        )

    @classmethod
    def from_values(cls, values: object) -> ModelFingerprint:
        """Return the fingerprint that a saved file holds.

        Raises:
            ValueError: These are not the values of a fingerprint.
        """
        if (
            not isinstance(values, Mapping)
            or values.keys() != set(cls.__slots__)
            or not all(isinstance(value, str) for value in values.values())
        ):
            raise ValueError("its model is not a fingerprint.")
        return cls(**values)

    def to_values(self) -> dict[str, Any]:
        """Return what `from_values` takes."""
        return asdict(self)

    def require(self, loaded: ModelFingerprint) -> None:
        """Check that the ``loaded`` model is the one of this fingerprint.

        Raises:
            ValueError: It is another; names the parts that differ.

        Example:
            >>> one = ModelFingerprint(weights="1a", tokenizer="2b", chat_format="phi3")
            >>> other = ModelFingerprint(weights="3c", tokenizer="2b", chat_format="phi3")
            >>> one.require(other)
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
    """Return one SHA-256 over names and checksums of those of the files that are there."""
    if artifact.has_checksums:
        records = artifact.manifest.files
        found = {name: records[name].sha256 for name in names if name in records}
    else:
        paths = {name: artifact.path / name for name in names}
        found = {name: hash_file(path) for name, path in paths.items() if path.is_file()}
    lines = "".join(f"{name} {checksum}\n" for name, checksum in found.items())
    return hashlib.sha256(lines.encode()).hexdigest()
