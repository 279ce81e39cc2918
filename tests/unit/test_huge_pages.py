"""Huge pages for weights: which memory is moved, that it stays what it was, and what is said."""

from __future__ import annotations

import mmap
import os
import platform
import sys
import threading

import pytest

from phi3ov.errors import OptionError
from phi3ov.runtime.config import RuntimeConfig
from phi3ov.runtime.huge_pages import (
    HugePages,
    Mappings,
    child_environment,
    collapse_pages,
    dense_mappings,
    plan_huge_pages,
)
from phi3ov.runtime.settings import Setting, passed_properties

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


def test_memory_that_was_there_before_is_left_alone() -> None:
    """The kernel joins neighbours to one mapping; only the new part of it counts."""
    joined = mapping("7f0000000000", "7f0008000000", 128)
    start, end = 0x7F0000000000, 0x7F0008000000
    assert list(dense_mappings(joined, [(start, end)])) == []
    old = [(start - MEBIBYTE, start + 32 * MEBIBYTE), (end - 32 * MEBIBYTE, end + MEBIBYTE)]
    assert list(dense_mappings(joined, old)) == [(start + 32 * MEBIBYTE, end - 32 * MEBIBYTE)]
    within = [(start + 63 * MEBIBYTE, start + 65 * MEBIBYTE)]
    assert list(dense_mappings(joined, within)) == [
        (start, start + 62 * MEBIBYTE),
        (start + 66 * MEBIBYTE, end),
    ]
    assert list(dense_mappings(joined, [(0, start), (end, end + MEBIBYTE)])) == [(start, end)]


def test_it_can_be_switched_off() -> None:
    """By name, and the settings say that the caller did."""
    off = plan_huge_pages(RuntimeConfig(huge_pages=False), "CPU")
    assert (off.name, off.value, off.chosen_by) == ("HUGE_PAGES", "off", "caller")
    with pytest.raises(OptionError, match="huge_pages='no' must be True or False"):
        RuntimeConfig(huge_pages="no")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"belongs in the field huge_pages"):
        RuntimeConfig(properties={"HUGE_PAGES": "on"})


def test_openvino_is_not_told() -> None:
    """The row stands among the settings, and is no property."""
    row = plan_huge_pages(RuntimeConfig(), "CPU")
    other = Setting(name="NUM_STREAMS", value="1", chosen_by="phi3ov", reason="one chat")
    assert passed_properties([row, other]) == {"NUM_STREAMS": "1"}
    assert "HUGE_PAGES" not in RuntimeConfig().to_properties()


@pytest.mark.parametrize(
    "case",
    [
        ("linux", "6.1.0-13-amd64", "glibc", "CPU", "pipeline", "on", "after the first answer"),
        ("linux", "6.18.4", "glibc", "CPU", "paged", "on", "after the first answer"),
        ("linux", "6.18.4", "", "CPU", "pipeline", "on", "after the first answer"),
        ("linux", "5.15.0", "glibc", "CPU", "worker", "on", "the child's allocator asks"),
        ("linux", "5.15.0", "glibc", "CPU", "pipeline", "off", "Linux 6.1 has the call"),
        ("linux", "6.0.1", "glibc", "CPU", "paged", "off", "this is 6.0.1"),
        ("linux", "6.18.4", "", "CPU", "worker", "off", "only glibc's allocator"),
        ("win32", "10", "", "CPU", "pipeline", "off", "only Linux"),
        ("darwin", "24.1", "", "CPU", "worker", "off", "only Linux"),
        ("linux", "6.18.4", "glibc", "GPU.0", "pipeline", "off", "weights of GPU.0 are not in"),
        ("linux", "6.18.4", "glibc", "CPU", "transformers", "off", "leaves its memory as it is"),
    ],
)
def test_the_plan_follows_system_device_and_engine(
    monkeypatch: pytest.MonkeyPatch,
    case: tuple[str, ...],
) -> None:
    """And the reason says what is missing."""
    system, release, libc, device, engine, value, reason = case
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "release", lambda: release)
    monkeypatch.setattr(platform, "libc_ver", lambda: (libc, "2.36"))
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    row = plan_huge_pages(RuntimeConfig(), device, engine)
    assert (row.value, row.chosen_by) == (value, "phi3ov")
    assert reason in row.reason


def test_what_the_environment_says_of_the_allocator_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker's child keeps the caller's own choice, and the settings name it."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")
    row = plan_huge_pages(RuntimeConfig(), "CPU", "worker")
    assert (row.value, row.chosen_by) == ("off", "caller")
    assert "GLIBC_TUNABLES=glibc.malloc.hugetlb=0" in row.reason


def join_mover() -> None:
    """Wait for the thread that moves memory."""
    for thread in threading.enumerate():
        if thread.name == "phi3ov-huge-pages":
            thread.join()


if sys.platform == "linux":  # only there are huge pages asked for

    def filled(size: int) -> mmap.mmap:
        """Return memory that is in use."""
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        for start in range(0, size, MEBIBYTE):
            memory[start : start + MEBIBYTE] = os.urandom(16) * (MEBIBYTE // 16)
        return memory

    def test_the_content_of_moved_memory_stays() -> None:
        """Whether or not the kernel has huge pages to give."""
        with filled(64 * MEBIBYTE) as memory:
            content = bytes(memory)
            moved, failure = collapse_pages()
            assert moved or failure
            assert bytes(memory) == content

    def test_a_load_says_what_was_moved(monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing before the first answer; then the memory that came since the load began."""
        monkeypatch.setattr(platform, "release", lambda: "6.1.0")
        taken: list[tuple[int, int]] = []
        pages = HugePages(RuntimeConfig(), "CPU", "pipeline")
        pages.begin()
        with filled(64 * MEBIBYTE):

            def collapse(before: Mappings) -> tuple[Mappings, str | None]:
                taken.extend(before)
                return [(0, 64 * MEBIBYTE)], None

            monkeypatch.setattr("phi3ov.runtime.huge_pages.collapse_pages", collapse)
            assert "are moved" in pages.setting.reason or "is moved" in pages.setting.reason
            pages.finish()
            join_mover()
            assert (pages.setting.value, "64 MiB were moved" in pages.setting.reason) == (
                "on",
                True,
            )
            assert taken == sorted(taken)
            assert taken
            pages.finish()  # later answers move nothing
            join_mover()
            assert len(taken) == len(set(taken))

    @pytest.mark.parametrize("failure", [None, "Invalid argument"])
    def test_a_load_whose_memory_cannot_be_moved_says_so(
        monkeypatch: pytest.MonkeyPatch, failure: str | None
    ) -> None:
        """With the kernel's reason; the next load tries again."""
        monkeypatch.setattr(platform, "release", lambda: "6.1.0")
        monkeypatch.setattr(
            "phi3ov.runtime.huge_pages.collapse_pages", lambda _before: ((), failure)
        )
        pages = HugePages(RuntimeConfig(), "CPU", "paged")
        pages.begin()
        pages.finish()
        join_mover()
        assert pages.setting.value == "off"
        assert (failure or "large enough") in pages.setting.reason
        pages.begin()
        assert pages.setting.value == "on"

    def test_a_load_that_is_switched_off_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
        """The call is never made."""

        def collapse(_before: Mappings) -> tuple[Mappings, str | None]:
            raise AssertionError("called")

        monkeypatch.setattr("phi3ov.runtime.huge_pages.collapse_pages", collapse)
        pages = HugePages(RuntimeConfig(huge_pages=False), "CPU", "pipeline")
        pages.begin()
        pages.finish()
        join_mover()
        assert pages.setting.value == "off"

    def huge_bytes(memory: mmap.mmap) -> int | None:
        """Return how much of a mapping lies in huge pages; None if the kernel does not list it."""
        import ctypes

        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        inside = False
        with open("/proc/self/smaps", encoding="utf-8") as file:  # noqa: PTH123
            for line in file:
                name, *values = line.split()
                if not name.endswith(":"):
                    first, _, last = name.partition("-")
                    inside = int(first, 16) <= address < int(last, 16)
                elif inside and name == "AnonHugePages:":
                    return int(values[0]) * 1024
        return None

    def test_only_memory_of_the_load_is_moved() -> None:
        """Memory of the program around phi3ov stays in the pages that it has."""
        host = filled(64 * MEBIBYTE)
        host.madvise(mmap.MADV_DONTDUMP)  # keeps the kernel from joining it with the other
        pages = HugePages(RuntimeConfig(), "CPU", "pipeline")
        pages.begin()
        loaded = filled(64 * MEBIBYTE)
        before = huge_bytes(host)
        pages.finish()
        join_mover()
        assert huge_bytes(host) == before == 0
        if pages.setting.value == "on":
            assert (huge_bytes(loaded) or 0) > 0

    def test_memory_that_was_mapped_and_empty_is_the_loads() -> None:
        """As what an allocator keeps of freed memory, and gives to the next load."""
        kept = mmap.mmap(-1, 64 * MEBIBYTE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        kept.madvise(mmap.MADV_DONTDUMP)
        pages = HugePages(RuntimeConfig(), "CPU", "pipeline")
        pages.begin()
        for start in range(0, len(kept), MEBIBYTE):
            kept[start : start + MEBIBYTE] = bytes(MEBIBYTE - 1) + b"x"
        pages.finish()
        join_mover()
        if pages.setting.value == "on":
            assert (huge_bytes(kept) or 0) > 32 * MEBIBYTE
        kept.close()

    def test_a_childs_allocator_asks_for_huge_pages() -> None:
        """What the caller has set stays; nothing of this process changes."""
        assert child_environment({"A": "b"}) == {
            "A": "b",
            "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        }
        own = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}
        assert child_environment(own) == own
