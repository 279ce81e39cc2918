"""A KV cache as a file: what `PagedEngine` writes, and what it believes of what it reads.

    magic, version, length and SHA-256 of the header      48 bytes
    header: JSON                                          model, numerics, token ids, tensors
    data: each tensor's blocks as they lie in memory      each begins at a multiple of 4096 bytes

Sizes and shapes come from the loaded model, never from the file, which must agree with them. A
CRC-32 per tensor finds damage. It is not a signature: whoever can write the file can write any
numbers into it, and with them the model's answers, but nothing else.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ...artifact.fingerprint import ModelFingerprint
from ...atomic_file import replace_file

MAGIC = b"phi3ovKV"
FORMAT_VERSION = 1
"""Version of the file's layout; a file of another version is refused."""
MOST_HEADER_BYTES = 16 * 1024 * 1024
"""The longest header that is read; 131 072 token ids take about 1 MB."""
_PREAMBLE = struct.Struct("<8sII32s")
_PAGE_BYTES = 4096
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
    """What a cache's numbers depend on, and how they lie in memory.

    Attributes:
        fingerprint: The model.
        numerics: Versions, device, rope factors, precisions.
        layout: The tensors.
    """

    fingerprint: ModelFingerprint
    numerics: Mapping[str, str]
    layout: tuple[CacheTensor, ...]

    def to_values(self) -> dict[str, Any]:
        """Return the header's part that must be equal here and there."""
        return {
            "numerics": dict(self.numerics),
            "layout": [asdict(one) | {"block_shape": [*one.block_shape]} for one in self.layout],
        }


def write_cache(
    path: Path, origin: CacheOrigin, token_ids: Sequence[int], buffers: Buffers
) -> None:
    """Write the cache of ``token_ids``, all at once.

    Args:
        path: The file.
        origin: The model and its settings.
        token_ids: What the cache holds.
        buffers: The used blocks of each tensor.

    Raises:
        OSError: The file cannot be written.
    """
    with ThreadPoolExecutor(_THREADS) as threads:
        checksums = list(threads.map(zlib.crc32, [one.data for one in buffers]))
    values = {
        "model": origin.fingerprint.to_values(),
        **origin.to_values(),
        "token_ids": [*token_ids],
        "crc32": checksums,
    }
    header = json.dumps(values).encode()
    digest = hashlib.sha256(header).digest()
    with replace_file(path) as file:
        file.write(_PREAMBLE.pack(MAGIC, FORMAT_VERSION, len(header), digest) + header)
        starts = _starts(_PREAMBLE.size + len(header), [one.nbytes for one in buffers])
        for start, buffer in zip(starts, buffers, strict=True):
            file.write(bytes(start - file.tell()))
            file.write(buffer.data)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheFile:
    """A file whose header has been read and found right; its data has not been looked at.

    Attributes:
        path: The file.
        token_ids: What the cache holds.
        checksums: CRC-32 of each tensor.
        header_bytes: Where the header ends.
    """

    path: Path
    token_ids: tuple[int, ...]
    checksums: tuple[int, ...]
    header_bytes: int

    @classmethod
    def open(cls, path: Path, origin: CacheOrigin, *, vocabulary_size: int) -> CacheFile:
        """Read the header, and check that it is one of this model under these settings.

        Raises:
            ValueError: It is not, or it is damaged; says how.
            OSError: The file cannot be read.
        """
        with path.open("rb") as file:
            header, header_bytes = _read_header(file)
        names = {"model", "numerics", "layout", "token_ids", "crc32"}
        if type(header) is not dict or header.keys() != names:
            raise ValueError(f"its header does not hold exactly {', '.join(sorted(names))}.")
        ModelFingerprint.from_values(header["model"]).require(origin.fingerprint)
        _require_equal(header, origin.to_values())
        token_ids = _integers("token_ids", header["token_ids"], vocabulary_size)
        checksums = _integers("crc32", header["crc32"], 2**32)
        if len(checksums) != len(origin.layout) or not token_ids:
            raise ValueError("its header announces no cache.")
        return cls(path=path, token_ids=token_ids, checksums=checksums, header_bytes=header_bytes)

    def read_into(self, buffers: Buffers, *, verify: bool) -> None:
        """Read the data into ``buffers``, which have the sizes that the model gives them.

        Args:
            buffers: Room for the used blocks of each tensor.
            verify: Whether to compare with the checksums.

        Raises:
            ValueError: The file is of another size, or damaged. ``buffers`` then hold anything.
            OSError: The file cannot be read.
        """
        sizes = [one.nbytes for one in buffers]
        starts = list(_starts(self.header_bytes, sizes))
        expected, size = starts[-1] + sizes[-1], self.path.stat().st_size
        if size != expected:
            raise ValueError(f"it has {size} bytes instead of {expected}: it was cut off.")

        def read(start: int, buffer: NDArray[np.uint8], checksum: int) -> bool:
            with self.path.open("rb", buffering=0) as file:
                file.seek(start)
                _fill(file, buffer)
            return not verify or zlib.crc32(buffer.data) == checksum

        with ThreadPoolExecutor(_THREADS) as threads:
            right = list(threads.map(read, starts, buffers, self.checksums))
        if not all(right):
            raise ValueError(
                f"it is damaged: {right.count(False)} of {len(right)} tensors do not match their "
                "checksum."
            )


def _read_header(file: BinaryIO) -> tuple[Any, int]:
    """Return the parsed header and where it ends."""
    preamble = file.read(_PREAMBLE.size)
    if len(preamble) < _PREAMBLE.size or not preamble.startswith(MAGIC):
        raise ValueError("it is no KV cache that phi3ov saved.")
    _, version, length, digest = _PREAMBLE.unpack(preamble)
    if version != FORMAT_VERSION:
        raise ValueError(f"it has format_version={version}; this phi3ov reads {FORMAT_VERSION}.")
    if length > MOST_HEADER_BYTES:
        raise ValueError(
            f"its header has {length} bytes, and at most {MOST_HEADER_BYTES} are read."
        )
    content = file.read(length)
    if hashlib.sha256(content).digest() != digest:
        raise ValueError("it is damaged: its header does not match its checksum.")
    try:
        return json.loads(content), _PREAMBLE.size + length
    except RecursionError as error:
        raise ValueError("its header is nested too deeply.") from error


def _require_equal(saved: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Check that the numbers would come out the same here.

    Raises:
        ValueError: Names each difference, or says that the tensors lie otherwise.
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
            f"it was computed otherwise: {'; '.join(differing)}. Save it again with these "
            "settings, or load the model with those."
        )
    if saved["layout"] != here["layout"]:
        raise ValueError("its tensors are not those of this model.")


def _integers(name: str, values: object, limit: int) -> tuple[int, ...]:
    if type(values) is not list or not all(type(one) is int and 0 <= one < limit for one in values):
        raise ValueError(f"{name} are not integers from 0 to {limit - 1}.")
    return tuple(values)


def _starts(header_bytes: int, sizes: Sequence[int]) -> Iterator[int]:
    """Return where each tensor begins."""
    position = header_bytes
    for size in sizes:
        position += -position % _PAGE_BYTES
        yield position
        position += size


def _fill(file: Any, buffer: NDArray[np.uint8]) -> None:
    """Read until ``buffer`` is full; one call may give less."""
    view = buffer.data.cast("B")
    while view:
        count = file.readinto(view)
        if not count:
            raise ValueError("it ends too early.")
        view = view[count:]
