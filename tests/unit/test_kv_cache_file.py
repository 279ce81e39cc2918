"""A KV cache file comes back bit for bit, or is refused with the reason."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from phi3ov.artifact.fingerprint import ModelFingerprint
from phi3ov.engine.paged import cache_file as kv_cache_file
from phi3ov.engine.paged.cache_file import CacheFile, CacheOrigin, CacheTensor, write_cache

ORIGIN = CacheOrigin(
    fingerprint=ModelFingerprint(weights="a", tokenizer="b", chat_format="c"),
    numerics={"openvino": "1", "KEY_CACHE_PRECISION": "f16"},
    layout=(
        CacheTensor("key_cache.0", "f16", (1, 32, 4), 256),
        CacheTensor("value_cache.0", "u8", (1, 32, 7), 224),
    ),
)
IDS = tuple(range(50))
BLOCKS = 2
PREAMBLE = struct.Struct("<8sII32s")


def make_buffers(seed: int | None = 1) -> list[NDArray[np.uint8]]:
    """Return buffers of random bytes, or of zeros."""
    shapes = [(BLOCKS, one.block_bytes) for one in ORIGIN.layout]
    if seed is None:
        return [np.zeros(shape, np.uint8) for shape in shapes]
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The content of a cache file."""
    path = tmp_path_factory.mktemp("saved") / "prefix.kv"
    write_cache(path, ORIGIN, IDS, make_buffers())
    return path.read_bytes()


def read(path: Path, *, verify: bool = True) -> tuple[tuple[int, ...], list[NDArray[np.uint8]]]:
    """Read a file as the engine does."""
    file = CacheFile.open(path, ORIGIN, vocabulary_size=1000)
    buffers = make_buffers(None)
    file.read_into(buffers, verify=verify)
    return file.token_ids, buffers


def test_what_was_written_comes_back(saved: bytes, tmp_path: Path) -> None:
    """Ids and bytes are equal, and each tensor begins where a page does."""
    path = tmp_path / "prefix.kv"
    path.write_bytes(saved)
    ids, buffers = read(path)
    assert ids == IDS
    for buffer, original in zip(buffers, make_buffers(), strict=True):
        assert np.array_equal(buffer, original)
        assert saved.index(original.tobytes()) % 4096 == 0


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_damaged_file_is_refused_or_is_the_same(
    data: st.DataObject, saved: bytes, tmp_path: Path
) -> None:
    """Whatever byte changes and wherever the file ends, no other cache comes out."""
    damaged = bytearray(saved)
    if data.draw(st.booleans()):
        del damaged[data.draw(st.integers(0, len(saved) - 1)) :]
    else:
        position = data.draw(st.integers(0, len(saved) - 1))
        damaged[position] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "prefix.kv"
    path.write_bytes(damaged)
    try:
        ids, buffers = read(path)
    except ValueError:
        return
    assert ids == IDS
    assert all(np.array_equal(a, b) for a, b in zip(buffers, make_buffers(), strict=True))
    assert len(damaged) == len(saved)


def sealed(saved: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """Return the file with a changed header and a right checksum of it; the data as it was."""
    length = PREAMBLE.unpack(saved[: PREAMBLE.size])[2]
    end = PREAMBLE.size + length
    header = json.loads(saved[PREAMBLE.size : end])
    change(header)
    text = json.dumps(header).encode()
    digest = hashlib.sha256(text).digest()
    start = PREAMBLE.pack(b"phi3ovKV", 1, len(text), digest) + text
    return start + bytes(-len(start) % 4096) + saved[end + -end % 4096 :]


HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "one name more": (lambda header: header.update(more=1), "exactly"),
    "one name less": (lambda header: header.pop("crc32"), "exactly"),
    "another model": (lambda header: header["model"].update(weights="x"), "weights differ"),
    "no fingerprint": (lambda header: header.update(model=[]), "fingerprint"),
    "another precision": (
        lambda header: header["numerics"].update(KEY_CACHE_PRECISION="u8"),
        "KEY_CACHE_PRECISION was 'u8', is 'f16'",
    ),
    "another openvino": (lambda header: header["numerics"].update(openvino="0"), "openvino was"),
    "numerics less": (lambda header: header["numerics"].pop("openvino"), "how it was computed"),
    "numerics of a list": (lambda header: header.update(numerics=[]), "how it was computed"),
    "larger blocks": (
        lambda header: header["layout"][0].update(block_bytes=2**60),
        "tensors are not those",
    ),
    "a tensor less": (lambda header: header["layout"].pop(), "tensors are not those"),
    "an id beyond the vocabulary": (
        lambda header: header["token_ids"].append(1000),
        "token_ids are not integers from 0 to 999",
    ),
    "a negative id": (lambda header: header["token_ids"].append(-1), "token_ids"),
    "a truth value as id": (lambda header: header["token_ids"].append(True), "token_ids"),
    "ids that are no list": (lambda header: header.update(token_ids="1"), "token_ids"),
    "no ids": (lambda header: header.update(token_ids=[]), "announces no cache"),
    "a checksum less": (lambda header: header["crc32"].pop(), "announces no cache"),
    "another checksum": (lambda header: header["crc32"].reverse(), "2 of 2 tensors"),
    "checksums of text": (lambda header: header.update(crc32=["a", "b"]), "crc32"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_header_is_refused(name: str, saved: bytes, tmp_path: Path) -> None:
    """A right checksum is not enough: every value must be what this model gives."""
    change, reason = HOSTILE[name]
    path = tmp_path / "prefix.kv"
    path.write_bytes(sealed(saved, lambda _header: None))
    read(path)  # so that it is the change that is refused
    path.write_bytes(sealed(saved, change))
    with pytest.raises(ValueError, match=reason):
        read(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no KV cache"),
        (b"phi3ovKV", "no KV cache"),
        (bytes(100), "no KV cache"),
        (PREAMBLE.pack(b"phi3ovKV", 2, 0, bytes(32)), "format_version=2"),
        (PREAMBLE.pack(b"phi3ovKV", 1, 2**32 - 1, bytes(32)), "at most"),
        (PREAMBLE.pack(b"phi3ovKV", 1, 10, bytes(32)) + b"{}", "header does not match"),
        (
            PREAMBLE.pack(b"phi3ovKV", 1, 10**5, hashlib.sha256(b"[" * 10**5).digest())
            + b"[" * 10**5,
            "nested too deeply",
        ),
        (
            PREAMBLE.pack(b"phi3ovKV", 1, 2, hashlib.sha256(b"[]").digest()) + b"[]",
            "exactly",
        ),
    ],
)
def test_what_is_no_cache_file_is_refused(content: bytes, reason: str, tmp_path: Path) -> None:
    """Sizes are bounded before anything is read or parsed."""
    (tmp_path / "prefix.kv").write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        read(tmp_path / "prefix.kv")


def test_data_of_another_size_is_not_read(saved: bytes, tmp_path: Path) -> None:
    """The size is compared first, also where checksums are not."""
    path = tmp_path / "prefix.kv"
    for content in (saved[:-1], saved + b"x"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{len(content)} bytes instead of {len(saved)}"):
            read(path, verify=False)


def test_without_verification_data_is_taken_as_it_is(saved: bytes, tmp_path: Path) -> None:
    """The choice is the caller's; the header is checked all the same."""
    path = tmp_path / "prefix.kv"
    path.write_bytes(saved[:-1] + bytes([saved[-1] ^ 1]))
    _, buffers = read(path, verify=False)
    assert buffers[1][-1, -1] == make_buffers()[1][-1, -1] ^ 1
    with pytest.raises(ValueError, match="1 of 2 tensors"):
        read(path)


def test_reads_that_give_less_than_asked_are_continued(
    saved: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One read may give less than there is room for, as for files above 2 GB."""

    class Slow:
        def __init__(self, content: bytes) -> None:
            self.content = content

        def readinto(self, view: memoryview) -> int:
            count = min(3, len(view), len(self.content))
            view[:count], self.content = self.content[:count], self.content[count:]
            return count

    buffer = np.zeros((2, 5), np.uint8)
    kv_cache_file._fill(Slow(b"0123456789"), buffer)
    assert buffer.tobytes() == b"0123456789"
    with pytest.raises(ValueError, match="too early"):
        kv_cache_file._fill(Slow(b"0123"), buffer)


def test_a_failed_write_leaves_the_file_as_it_was(
    saved: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk costs the new cache, not the old one, and leaves nothing behind."""
    path = tmp_path / "prefix.kv"
    path.write_bytes(saved)

    def fail(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_cache(path, replace(ORIGIN, numerics={}), IDS, make_buffers(2))
    assert path.read_bytes() == saved
    assert list(tmp_path.iterdir()) == [path]
