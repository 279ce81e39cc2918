"""Back a loaded model's weights with huge pages, on Linux.

A token reads every weight once. In pages of 4 KiB that is one address translation per 4 KiB, and
which physical pages a load happens to get changes the speed of two equal loads by 12 %. In pages
of 2 MiB the 135M reference decodes 1.15 to 1.25 times as fast (docs/token-time.md). Linux gives
huge pages to programs that ask (``/sys/kernel/mm/transparent_hugepage/enabled`` is "madvise" on
most systems), and OpenVINO does not ask. `RuntimeConfig.huge_pages` switches it off.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
import platform
import re
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from .config import RuntimeConfig
from .settings import HUGE_PAGES, ChosenBy, Setting

_LOGGER = logging.getLogger("phi3ov")

Mappings = Sequence[tuple[int, int]]
"""Begin and end of ranges of memory, in order."""

_MADV_COLLAPSE = 25
"""``madvise``: copy these pages into huge ones now (Linux 6.1)."""
_PAGE_BYTES = 2 * 1024**2
_LEAST_BYTES = 4 * _PAGE_BYTES
_LEAST_SHARE = 0.9
"""Share of a mapping that must be in memory. An empty part would take memory that it does not."""

_PROGRAM_SHARE = 0.5
"""Share of a block in use before a load that makes it the program's. Blocks with less are holes
that the allocator keeps, and gives to the load."""

_GAIN = "a token reads every weight, 1.05 to 1.25 times as fast in huge pages"

_TUNABLES, _HUGE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a child process whose allocator asks for huge pages.

    Only glibc reads it. What the caller has set for it stays.

    Example:
        >>> child_environment({"GLIBC_TUNABLES": "glibc.malloc.check=1"})["GLIBC_TUNABLES"]
        'glibc.malloc.check=1:glibc.malloc.hugetlb=1'
    """
    given = environment.get(_TUNABLES, "")
    if _HUGE in given:
        return dict(environment)
    tunables = f"{given}:{_HUGE}=1" if given else f"{_HUGE}=1"
    return {**environment, _TUNABLES: tunables}


@dataclass(frozen=True, slots=True)
class _Plan:
    """What happens, and why."""

    is_on: bool
    chosen_by: ChosenBy
    reason: str

    def setting(self) -> Setting:
        return Setting(
            name=HUGE_PAGES,
            value="on" if self.is_on else "off",
            chosen_by=self.chosen_by,
            reason=self.reason,
        )


def plan_huge_pages(config: RuntimeConfig, device: str, engine: str = "pipeline") -> Setting:
    """Return the row of `phi3ov.Phi3Model.settings` that a load begins with.

    Args:
        config: The caller's settings.
        device: OpenVINO's name of the device.
        engine: Name of the engine.

    Example:
        >>> from phi3ov import RuntimeConfig
        >>> plan_huge_pages(RuntimeConfig(huge_pages=False), "CPU").value
        'off'
    """
    return _plan(config, device, engine).setting()


def _plan(config: RuntimeConfig, device: str, engine: str) -> _Plan:
    if not config.huge_pages:
        return _Plan(is_on=False, chosen_by="caller", reason="set in RuntimeConfig")
    problem = _find_problem(device, engine)
    if problem is not None:
        return _Plan(is_on=False, chosen_by="phi3ov", reason=problem)
    if engine == "worker":
        tunables = child_environment(os.environ)[_TUNABLES]
        if f"{_HUGE}=1" not in tunables:
            return _Plan(
                is_on=False,
                chosen_by="caller",
                reason=f"the environment has {_TUNABLES}={tunables}",
            )
        how = f"the child's allocator asks for them ({_HUGE}=1)"
    else:
        how = "the memory that loading took is moved after the first answer"
    return _Plan(is_on=True, chosen_by="phi3ov", reason=f"{_GAIN}; {how}")


def _find_problem(device: str, engine: str) -> str | None:
    """Return why weights cannot be in huge pages; None if they can."""
    if device.partition(".")[0] != "CPU":
        return f"the weights of {device} are not in this process's memory"
    if engine == "transformers":
        return "engine='transformers' is for comparisons and leaves its memory as it is"
    if sys.platform != "linux":
        return "only Linux has a call for it"
    if engine == "worker":
        name = platform.libc_ver()[0]
        return None if name == "glibc" else "only glibc's allocator asks for them"
    release = platform.release()
    numbers = [int(number) for number in re.findall(r"\d+", release)[:2]]
    return None if numbers >= [6, 1] else f"Linux 6.1 has the call for it, and this is {release}"


class HugePages:
    """Moves the memory that a load takes into huge pages, after its first answer.

    The first answer repacks the weights. Memory that the process held before the load is left
    alone: it belongs to the program around phi3ov. What other threads of that program allocate
    while the model loads cannot be told apart, and moves as well; its content stays.

    Attributes:
        setting: The row of `phi3ov.Phi3Model.settings`.
    """

    def __init__(self, config: RuntimeConfig, device: str, engine: str) -> None:
        """Plan for a load; see `plan_huge_pages`."""
        self._plan = _plan(config, device, engine)
        self._before: Mappings | None = None
        self.setting: Setting = self._plan.setting()

    def begin(self) -> None:
        """Remember the memory that the process holds now. Call it before a model is compiled."""
        if self._plan.is_on:
            self._before = _read_memory()
            self.setting = self._plan.setting()

    def finish(self) -> None:
        """Move the memory that was taken since `begin`, on a thread; only once for each `begin`."""
        before, self._before = self._before, None
        if before is not None:
            name = "phi3ov-huge-pages"
            threading.Thread(target=self._move, args=(before,), name=name, daemon=True).start()

    def _move(self, before: Mappings) -> None:
        ranges, failure = collapse_pages(before)
        moved = sum(end - begin for begin, end in ranges)
        plan = self._plan
        if moved:
            reason = f"{_GAIN}; {moved >> 20} MiB were moved after the first answer"
            plan = replace(plan, reason=reason)
        else:
            why = failure or "no mapping of the load is large enough and in memory"
            plan = replace(plan, is_on=False, reason=f"nothing was moved: {why}")
        self.setting = plan.setting()
        _LOGGER.info("%s", self.setting)


def collapse_pages(before: Mappings = ()) -> tuple[Mappings, str | None]:
    """Move large allocations of this process into huge pages.

    What they hold stays, and so does the memory that they take.

    Args:
        before: Begin and end of the mappings to leave alone, in order.

    Returns:
        What was moved, in order, and the reason why other memory was not, if any.
    """
    try:
        madvise = ctypes.CDLL(None, use_errno=True).madvise
        madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        smaps = Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace")
    except (OSError, AttributeError) as error:
        return (), str(error)
    moved: list[tuple[int, int]] = []
    failure = None
    for begin, end in dense_mappings(smaps, before):
        for start in range(begin, end, 64 * _PAGE_BYTES):  # other threads get their turns
            size = min(64 * _PAGE_BYTES, end - start)
            if madvise(start, size, _MADV_COLLAPSE) == 0:
                moved.append((start, start + size))
            else:  # no such call, no memory, or the mapping is gone by now
                failure = os.strerror(ctypes.get_errno())
    return tuple(sorted(moved)), failure


def _read_memory() -> Mappings:
    """Return begin and end of the memory that this process holds now, in whole huge pages.

    The allocator keeps memory that the program has freed, for example after an export, and gives
    it to the load. It returns that to the system first, so that it does not count.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError) as error:  # another allocator than glibc's
        _LOGGER.debug("The allocator keeps what it has: %s", error)
    maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    found = [mapping for line in maps.splitlines() if (mapping := _anonymous(line)) is not None]
    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:  # noqa: PTH123
            return tuple(
                block for mapping in found for block in _resident_blocks(pagemap, *mapping)
            )
    except OSError as error:
        _LOGGER.debug("Which memory is in use cannot be read: %s", error)
        return tuple(found)


def _resident_blocks(pagemap: BinaryIO, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the blocks of one mapping that the process uses.

    Args:
        pagemap: ``/proc/self/pagemap``, 8 bytes for each page.
        begin: First address.
        end: Address after the last.
    """
    import numpy as np

    page = mmap.PAGESIZE
    for start in range(begin, end, _PAGE_BYTES):
        stop = min(start + _PAGE_BYTES, end)
        pagemap.seek(start // page * 8)
        entries = np.frombuffer(pagemap.read((stop - start) // page * 8), dtype="<u8")
        held = np.count_nonzero(entries >> np.uint64(62))  # in memory, or swapped out
        if held >= _PROGRAM_SHARE * len(entries):
            yield start, stop


def _anonymous(line: str) -> tuple[int, int] | None:
    """Return begin and end of the mapping that a line describes, if it is an allocation."""
    name, *values = line.split()
    is_private = values[0] == "rw-p" and values[2:4] == ["00:00", "0"]
    if not is_private or (len(values) > 4 and values[4] != "[heap]"):
        return None
    first, _, last = name.partition("-")
    return int(first, 16), int(last, 16)


def dense_mappings(smaps: str, before: Sequence[tuple[int, int]] = ()) -> Iterator[tuple[int, int]]:
    """Yield begin and end of large allocations that are in memory, in whole huge pages.

    Args:
        smaps: Content of ``/proc/self/smaps``.
        before: Begin and end of the mappings to leave out, in order.
    """
    found: tuple[int, int] | None = None
    for line in smaps.splitlines():
        name, *values = line.split()
        if not name.endswith(":"):  # the first line of a mapping
            found = _anonymous(line)
        elif name == "Anonymous:" and found is not None:
            begin, end = found
            if int(values[0]) * 1024 < _LEAST_SHARE * (end - begin):
                continue
            for first, last in _without(begin, end, before):
                aligned = -(-first // _PAGE_BYTES) * _PAGE_BYTES
                whole = (last - aligned) // _PAGE_BYTES * _PAGE_BYTES
                if whole >= _LEAST_BYTES:
                    yield aligned, aligned + whole


def _without(begin: int, end: int, before: Mappings) -> Iterator[tuple[int, int]]:
    """Yield the parts of a mapping that none of the mappings ``before`` covers."""
    for first, last in before:
        if last <= begin or first >= end:
            continue
        if first > begin:
            yield begin, first
        begin = last
    if begin < end:
        yield begin, end
