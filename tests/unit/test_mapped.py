"""Memory that is given back: only what a file holds, which comes back when it is read."""

from __future__ import annotations

import mmap
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from phi3ov.exporter.mapped_weights import give_back

PAGES = 64


def _resident_bytes(path: Path) -> int:
    """How much of the file's mappings this process has in memory, as the kernel counts it."""
    resident, ours = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            ours = line.endswith(str(path))
        elif ours and line.startswith("Rss:"):
            resident += int(line.split()[1]) * 1024
    return resident


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is given back")
def test_what_a_file_holds_leaves_memory_and_comes_back(tmp_path: Path) -> None:
    """Whole pages of the given range only, and with the same content."""
    path = tmp_path / "weights"
    path.write_bytes(bytes(range(256)) * (PAGES * mmap.PAGESIZE // 256))
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    values = np.frombuffer(mapped, dtype=np.uint8)
    total = int(values.sum())
    assert _resident_bytes(path) == PAGES * mmap.PAGESIZE
    inside = values[100 : -2 * mmap.PAGESIZE]
    give_back(inside.ctypes.data, inside.nbytes)
    assert _resident_bytes(path) == 3 * mmap.PAGESIZE
    assert int(values.sum()) == total


def test_other_memory_keeps_its_content() -> None:
    """A weight that is in no file is needed where it is."""
    values = np.arange(PAGES * mmap.PAGESIZE, dtype=np.uint8)
    give_back(values.ctypes.data, values.nbytes)
    assert np.array_equal(values, np.arange(PAGES * mmap.PAGESIZE, dtype=np.uint8))
