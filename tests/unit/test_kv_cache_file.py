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
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from phi3ov.artifact.fingerprint import ModelFingerprint
from phi3ov.engine.paged import cache_file
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
    """Ids and bytes are equal."""
    path = tmp_path / "prefix.kv"
    path.write_bytes(saved)
    ids, buffers = read(path)
    assert ids == IDS
    for buffer, original in zip(buffers, make_buffers(), strict=True):
        assert np.array_equal(buffer, original)


def test_any_safetensors_reader_shows_what_the_file_is(saved: bytes, tmp_path: Path) -> None:
    """The format is an open one: a tensor per input, and metadata that a person can read."""
    path = tmp_path / "prefix.kv"
    path.write_bytes(saved)
    with safe_open(path, "numpy") as file:
        assert {*file.keys()} == {tensor.name for tensor in ORIGIN.layout}
        metadata = file.metadata()
    assert metadata["format"] == "phi3ov KV cache"
    assert json.loads(metadata["token_ids"]) == [*IDS]
    assert json.loads(metadata["numerics"]) == ORIGIN.numerics


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


Header = dict[str, Any]


def rebuilt(
    saved: bytes,
    change: Callable[[Header], object] = lambda _header: None,
    *,
    buffers: dict[str, NDArray[np.generic]] | None = None,
    **metadata: str,
) -> bytes:
    """Return the file with a changed header and a right checksum of it.

    Args:
        saved: The file.
        change: Changes the parsed values of the header.
        buffers: Tensors in place of those of the file.
        metadata: Metadata in place of that of the file, as it is.
    """
    length = int.from_bytes(saved[:8], "little")
    texts: dict[str, str] = json.loads(saved[8 : 8 + length])["__metadata__"]
    fixed = {name: texts.pop(name) for name in ("format", "format_version")}
    del texts["sha256"]
    header = {name: json.loads(text) for name, text in texts.items()}
    change(header)
    items = fixed | {name: json.dumps(value) for name, value in header.items()} | metadata
    items["sha256"] = hashlib.sha256(json.dumps(sorted(items.items())).encode()).hexdigest()
    if buffers is None:
        names = [tensor.name for tensor in ORIGIN.layout]
        buffers = dict(zip(names, make_buffers(), strict=True))
    return save(buffers, items)


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
    path.write_bytes(rebuilt(saved))
    read(path)  # so that it is the change that is refused
    path.write_bytes(rebuilt(saved, change))
    with pytest.raises(ValueError, match=reason):
        read(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a KV cache"),
        (b"phi3ovK", "not a KV cache"),
        (bytes(100), "not a KV cache"),
        ((2**63).to_bytes(8, "little") + b"{}", "(?i)header ?too ?large"),
        ((2**30).to_bytes(8, "little") + b"{}", "(?i)header ?too ?large"),
        ((2).to_bytes(8, "little") + b"{}", "not a KV cache"),
        (save({"weight": np.zeros(4)}, {"format": "pt"}), "not a KV cache"),
        (save({}), "not a KV cache"),
    ],
)
def test_what_is_no_cache_file_is_refused(content: bytes, reason: str, tmp_path: Path) -> None:
    """Sizes are bounded before anything is read or parsed."""
    (tmp_path / "prefix.kv").write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        read(tmp_path / "prefix.kv")


def test_a_file_of_the_former_layout_says_what_to_do(tmp_path: Path) -> None:
    """Earlier versions wrote a layout of their own; the cache can be made again."""
    preamble = struct.pack("<8sII32s", b"phi3ovKV", 1, 2, hashlib.sha256(b"{}").digest())
    (tmp_path / "prefix.kv").write_bytes(preamble + b"{}")
    with pytest.raises(ValueError, match=r"earlier phi3ov.*Save it again with save_kv_cache"):
        read(tmp_path / "prefix.kv")


def test_metadata_that_is_not_as_written_is_refused(saved: bytes, tmp_path: Path) -> None:
    """Another version, a checksum that does not match, and JSON that is nested without end."""
    path = tmp_path / "prefix.kv"
    path.write_bytes(rebuilt(saved, format_version="3"))
    with pytest.raises(ValueError, match=r"format_version=3; this phi3ov reads 2"):
        read(path)
    path.write_bytes(rebuilt(saved, numerics="[" * 10**5))
    with pytest.raises(ValueError, match="nested too deeply"):
        read(path)
    position = saved.index(b"[0, 1, 2") + 4
    path.write_bytes(saved[:position] + b"7" + saved[position + 1 :])
    with pytest.raises(ValueError, match="header does not match"):
        read(path)


WRONG: dict[str, Callable[[list[NDArray[np.uint8]]], dict[str, NDArray[np.generic]]]] = {
    "a block less": lambda made: {"key_cache.0": made[0][1:], "value_cache.0": made[1]},
    "another name": lambda made: {"key_cache.0": made[0], "value_cache.1": made[1]},
    "a tensor more": lambda made: {"key_cache.0": made[0], "value_cache.0": made[1], "x": made[1]},
    "another type": lambda made: {"key_cache.0": made[0].view(np.int8), "value_cache.0": made[1]},
    "swapped": lambda made: {"key_cache.0": made[1], "value_cache.0": made[0]},
}


@pytest.mark.parametrize("name", WRONG)
def test_tensors_that_the_model_does_not_have_are_refused(
    name: str, saved: bytes, tmp_path: Path
) -> None:
    """Names, types and sizes are compared before any data is taken, with or without checksums."""
    path = tmp_path / "prefix.kv"
    path.write_bytes(rebuilt(saved, buffers=WRONG[name](make_buffers())))
    with pytest.raises(ValueError, match=r"its tensors? "):
        read(path, verify=False)


def test_data_of_another_size_is_not_read(saved: bytes, tmp_path: Path) -> None:
    """The size is compared first, also where checksums are not."""
    path = tmp_path / "prefix.kv"
    for content in (saved[:-1], saved + b"x"):
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"cut off.*(not fully covered|MetadataIncompleteBuffer)"
        ):
            read(path, verify=False)


@pytest.mark.parametrize("end", [8, 300])
def test_a_hole_or_an_overlap_is_refused(end: int, saved: bytes, tmp_path: Path) -> None:
    """Offsets that do not follow each other are no safetensors file."""
    length = int.from_bytes(saved[:8], "little")
    header = json.loads(saved[8 : 8 + length])
    header["key_cache.0"]["data_offsets"][1] -= end
    header["key_cache.0"]["shape"] = [header["key_cache.0"]["data_offsets"][1]]
    text = json.dumps(header).encode()
    path = tmp_path / "prefix.kv"
    path.write_bytes(len(text).to_bytes(8, "little") + text + saved[8 + length :])
    with pytest.raises(ValueError, match=r"(?i)offset"):
        read(path, verify=False)


def test_without_verification_data_is_taken_as_it_is(saved: bytes, tmp_path: Path) -> None:
    """The choice is the caller's; the header is checked all the same."""
    path = tmp_path / "prefix.kv"
    path.write_bytes(saved[:-1] + bytes([saved[-1] ^ 1]))
    _, buffers = read(path, verify=False)
    assert buffers[1][-1, -1] == make_buffers()[1][-1, -1] ^ 1
    with pytest.raises(ValueError, match="1 of 2 tensors"):
        read(path)


@pytest.mark.parametrize("failing", ["save_file", "fsync"])
def test_a_failed_write_leaves_the_file_as_it_was(
    failing: str, saved: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk costs the new cache, not the old one, and leaves nothing behind."""
    path = tmp_path / "prefix.kv"
    path.write_bytes(saved)

    def fail(*_arguments: object) -> None:
        if failing == "save_file":  # the library has an error of its own for a full disk
            raise SafetensorError("No space left on device (os error 28)")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr({"fsync": os, "save_file": cache_file}[failing], failing, fail)
    with pytest.raises(OSError, match="No space"):
        write_cache(path, replace(ORIGIN, numerics={}), IDS, make_buffers(2))
    assert path.read_bytes() == saved
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_only_the_owner_can_read_the_file(tmp_path: Path) -> None:
    """The token ids are somebody's text."""
    write_cache(tmp_path / "prefix.kv", ORIGIN, IDS, make_buffers())
    assert (tmp_path / "prefix.kv").stat().st_mode & 0o777 == 0o600
