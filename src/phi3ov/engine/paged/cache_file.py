"""The KV cache file of `PagedEngine`: a safetensors file with the cache and its origin.

Each tensor is the keys or values of one layer, as bytes (``U8``) of shape [blocks, bytes per
block]. The metadata, each value as JSON, holds the model's fingerprint, the numerics, the layout,
the token ids, a CRC-32 per tensor, and a SHA-256 of all of these.

safetensors refuses headers that are too long, and tensors that overlap, leave holes or exceed the
file. This module compares every size and shape with the loaded model. The CRC-32 finds damage, but
it is not a signature: a person who can write the file can choose the numbers in it, and with them
the model's answers. Nothing else can be changed that way.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ...artifact.fingerprint import ModelFingerprint
from ...atomic_file import replace_by_path

FORMAT = "phi3ov KV cache"
FORMAT_VERSION = 2
"""Version of the metadata; a file of another version is refused."""
_FORMER_MAGIC = b"phi3ovKV"  # version 1 was a layout of phi3ov's own
_THREADS = 4

Buffers = Sequence[NDArray[np.uint8]]


@dataclass(frozen=True, slots=True)
class CacheTensor:
    """Keys or values of one layer.

    Attributes:
        name: The graph's input, such as ``key_cache.0``.
        precision: OpenVINO's name of the element type.
        block_shape: Shape of one block: KV heads, rows, columns. Quantized caches keep their
            scales in further rows or columns.
        block_bytes: Bytes of one block.
    """

    name: str
    precision: str
    block_shape: tuple[int, ...]
    block_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheOrigin:
    """Model and settings that determine a cache's numbers, and their layout in memory.

    Attributes:
        fingerprint: The model.
        numerics: Versions, device, rope factors, precisions.
        layout: The tensors.
    """

    fingerprint: ModelFingerprint
    numerics: Mapping[str, str]
    layout: tuple[CacheTensor, ...]

    def to_values(self) -> dict[str, Any]:
        """Return the metadata that must be equal in the file and in the loaded model."""
        layout = [asdict(tensor) | {"block_shape": [*tensor.block_shape]} for tensor in self.layout]
        return {"numerics": dict(self.numerics), "layout": layout}


def write_cache(
    path: Path, origin: CacheOrigin, token_ids: Sequence[int], buffers: Buffers
) -> None:
    """Write the cache of ``token_ids``; overwrites an existing file atomically.

    Args:
        path: The file.
        origin: The model and its settings.
        token_ids: The tokens that the cache holds.
        buffers: The used blocks of each tensor.

    Raises:
        OSError: The file cannot be written.
    """
    with ThreadPoolExecutor(_THREADS) as threads:
        checksums = list(threads.map(zlib.crc32, [buffer.data for buffer in buffers]))
    values = {
        "model": origin.fingerprint.to_values(),
        **origin.to_values(),
        "token_ids": [*token_ids],
        "crc32": checksums,
    }
    metadata = {name: json.dumps(value) for name, value in values.items()}
    metadata |= {"format": FORMAT, "format_version": str(FORMAT_VERSION)}
    metadata["sha256"] = _digest(metadata)
    tensors = dict(zip((tensor.name for tensor in origin.layout), buffers, strict=True))
    with replace_by_path(path) as temporary:
        try:
            save_file(tensors, temporary, metadata)
        except SafetensorError as error:
            raise OSError(f"{path} cannot be written: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheFile:
    """A file whose metadata matches the loaded model; its data has not been read.

    Attributes:
        path: The file.
        token_ids: The tokens that the cache holds.
        checksums: CRC-32 of each tensor, by the tensor's name.
    """

    path: Path
    token_ids: tuple[int, ...]
    checksums: Mapping[str, int]

    @classmethod
    def open(cls, path: Path, origin: CacheOrigin, *, vocabulary_size: int) -> CacheFile:
        """Read the metadata, and check that the file belongs to this model and its settings.

        Raises:
            ValueError: The file is damaged, or belongs to another model or other settings; says
                how.
            OSError: The file cannot be read.
        """
        metadata, names = _read_header(path)
        values = _parse_metadata(metadata)
        ModelFingerprint.from_values(values["model"]).require(origin.fingerprint)
        _require_equal(values, origin.to_values())
        token_ids = _integers("token_ids", values["token_ids"], vocabulary_size)
        checksums = _integers("crc32", values["crc32"], 2**32)
        expected = [tensor.name for tensor in origin.layout]
        if len(checksums) != len(expected) or not token_ids:
            raise ValueError("its header announces no cache.")
        if set(expected) != set(names):
            raise ValueError("its tensors are not those of this model.")
        found = dict(zip(expected, checksums, strict=True))
        return cls(path=path, token_ids=token_ids, checksums=found)

    def read_into(self, buffers: Buffers, *, verify: bool) -> None:
        """Read the data into ``buffers``, whose sizes the model determines.

        Args:
            buffers: Room for the used blocks of each tensor, in the order of the layout.
            verify: Whether to compare with the checksums.

        Raises:
            ValueError: The data has another size, or is damaged. The content of ``buffers`` is
                undefined then.
            OSError: The file cannot be read.
        """
        with _open(self.path) as file:

            def read(name: str, buffer: NDArray[np.uint8]) -> bool:
                found = file.get_slice(name)
                if found.get_dtype() != "U8" or tuple(found.get_shape()) != buffer.shape:
                    raise ValueError(
                        f"its tensor {name} is {found.get_dtype()} of shape {found.get_shape()} "
                        f"instead of U8 of shape {[*buffer.shape]}."
                    )
                buffer[:] = file.get_tensor(name)
                return not verify or zlib.crc32(buffer.data) == self.checksums[name]

            with ThreadPoolExecutor(_THREADS) as threads:
                right = list(threads.map(read, self.checksums, buffers))
        if not all(right):
            raise ValueError(
                f"it is damaged: {right.count(False)} of {len(right)} tensors do not match their "
                "checksum."
            )


def _open(path: Path) -> Any:
    """Open the file as safetensors.

    Raises:
        ValueError: The file is not safetensors, is damaged, or has the layout of an earlier
            phi3ov.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(len(_FORMER_MAGIC))
    if start == _FORMER_MAGIC:
        raise ValueError(
            "it was saved by an earlier phi3ov, in a format that is no longer supported. Save it "
            "again with save_kv_cache()."
        )
    try:
        return safe_open(path, "numpy")
    except SafetensorError as error:
        raise ValueError(
            f"it was cut off, is damaged or is not a KV cache that phi3ov saved: {error}."
        ) from error


def _read_header(path: Path) -> tuple[dict[str, str], list[str]]:
    """Return the file's metadata and the names of its tensors."""
    with _open(path) as file:
        return file.metadata() or {}, list(file.keys())


def _parse_metadata(metadata: dict[str, str]) -> dict[str, Any]:
    """Return the parsed values of the metadata.

    Raises:
        ValueError: The metadata is damaged, or is not that of a KV cache; says how.
    """
    if metadata.get("format") != FORMAT:
        raise ValueError("it is not a KV cache that phi3ov saved.")
    if metadata.get("format_version") != str(FORMAT_VERSION):
        raise ValueError(
            f"it has format_version={metadata.get('format_version')}; this phi3ov reads "
            f"{FORMAT_VERSION}."
        )
    if metadata.get("sha256") != _digest(metadata):
        raise ValueError("it is damaged: its header does not match its checksum.")
    texts = {
        name: text
        for name, text in metadata.items()
        if name not in ("format", "format_version", "sha256")
    }
    names = {"model", "numerics", "layout", "token_ids", "crc32"}
    if texts.keys() != names:
        raise ValueError(f"its header does not hold exactly {', '.join(sorted(names))}.")
    try:
        return {name: json.loads(text) for name, text in texts.items()}
    except RecursionError as error:
        raise ValueError("its header is nested too deeply.") from error


def _digest(metadata: Mapping[str, str]) -> str:
    """Return the SHA-256 of all metadata except the digest itself."""
    items = sorted(item for item in metadata.items() if item[0] != "sha256")
    return hashlib.sha256(json.dumps(items).encode()).hexdigest()


def _require_equal(saved: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Check that this model, under its settings, would compute the same numbers.

    Raises:
        ValueError: It would not; names each difference.
    """
    before, now = saved["numerics"], here["numerics"]
    if type(before) is not dict or before.keys() != now.keys():
        raise ValueError("its header does not say how it was computed.")
    differing = [
        f"{name} was {before[name]!r}, is {now[name]!r}"
        for name in now
        if before[name] != now[name]
    ]
    if differing:
        raise ValueError(
            f"it was computed with other settings: {'; '.join(differing)}. Save it again with "
            "these settings, or load the model with those."
        )
    if saved["layout"] != here["layout"]:
        raise ValueError("its tensors are not those of this model.")


def _integers(name: str, values: object, limit: int) -> tuple[int, ...]:
    if type(values) is not list or not all(
        type(value) is int and 0 <= value < limit for value in values
    ):
        raise ValueError(f"{name} are not integers from 0 to {limit - 1}.")
    return tuple(values)
