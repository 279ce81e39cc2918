"""Memory of a process and its children, as the operating system counts it.

*Resident* is what counts against the machine now. Part of it are pages of mapped files, which
the system takes back when it needs room; *anonymous* is the rest, which it cannot take back.
"""

from __future__ import annotations

import threading
import time
from typing import NamedTuple

import psutil


class Memory(NamedTuple):
    """Bytes of a process and its children; pages that two of them share count twice."""

    resident: int
    anonymous: int


def memory_of(pid: int) -> Memory:
    """Return what a process and its children hold now; nothing if it has ended."""
    resident = anonymous = 0
    try:
        family = [psutil.Process(pid)]
        family += family[0].children(recursive=True)
    except psutil.NoSuchProcess:
        return Memory(0, 0)
    for process in family:
        try:
            info = process.memory_info()
        except psutil.NoSuchProcess:
            continue
        resident += info.rss
        anonymous += info.rss - getattr(info, "shared", 0)  # Linux counts mapped files there
    return Memory(resident, anonymous)


class Peak:
    """Samples `memory_of` every 50 ms until it is stopped."""

    def __init__(self, pid: int) -> None:
        """Start."""
        self.resident = self.anonymous = 0
        self.started = time.perf_counter()
        self._pid = pid
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def stop(self) -> dict[str, float]:
        """Stop and return seconds and peaks."""
        seconds = time.perf_counter() - self.started
        self._over.set()
        self._thread.join()
        return {
            "seconds": seconds,
            "peak_resident_bytes": self.resident,
            "peak_anonymous_bytes": self.anonymous,
        }

    def _sample(self) -> None:
        while not self._over.wait(0.05):
            now = memory_of(self._pid)
            self.resident = max(self.resident, now.resident)
            self.anonymous = max(self.anonymous, now.anonymous)
