"""Huge pages for weights: which memory is moved, and that it stays what it was."""

from __future__ import annotations

import mmap
import os
import sys

from phi3ov.runtime.huge_pages import child_environment, collapse_pages, dense_mappings

MEBIBYTE = 1024**2


def mapping(first: str, last: str, anonymous_mebibytes: int, rest: str = "") -> str:
    """Return one mapping as the kernel lists it."""
    return (
        f"{first}-{last} rw-p 00000000 00:00 0 {rest}\n"
        f"Size:              131072 kB\nAnonymous:         {anonymous_mebibytes * 1024} kB\n"
        "VmFlags: rd wr mr mw me ac sd\n"
    )


def test_large_mappings_that_are_in_memory_are_moved() -> None:
    """In whole huge pages. Reserved memory, files, stacks and small mappings stay as they are."""
    weights = mapping("7f0000100000", "7f0008100000", 128)
    heap = mapping("560000000000", "560008000000", 128, "[heap]")
    reserved = mapping("7f1000000000", "7f1008000000", 12)
    stack = mapping("7ffd00000000", "7ffd08000000", 128, "[stack]")
    small = mapping("7f2000000000", "7f2000400000", 4)
    file = "7f3000000000-7f3008000000 rw-p 00000000 fe:00 77 /weights.bin\nAnonymous: 131072 kB\n"
    found = list(dense_mappings(weights + reserved + stack + small + file + heap))
    assert found == [(0x7F0000200000, 0x7F0008000000), (0x560000000000, 0x560008000000)]
    assert list(dense_mappings("")) == []


if sys.platform == "linux":  # only there are huge pages asked for

    def test_the_content_of_moved_memory_stays() -> None:
        """Whether or not the kernel has huge pages to give."""
        with mmap.mmap(-1, 64 * MEBIBYTE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
            content = os.urandom(MEBIBYTE)
            for start in range(0, len(memory), MEBIBYTE):
                memory[start : start + MEBIBYTE] = content
            assert collapse_pages() >= 0
            assert all(
                memory[start : start + MEBIBYTE] == content
                for start in range(0, len(memory), MEBIBYTE)
            )

    def test_a_childs_allocator_asks_for_huge_pages() -> None:
        """What the caller has set stays; nothing of this process changes."""
        assert child_environment({"A": "b"}) == {
            "A": "b",
            "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        }
        own = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}
        assert child_environment(own) == own
