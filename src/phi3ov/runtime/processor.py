"""The processor's features, and the share of it that this process may use.

OpenVINO reports the processor's name and whether it supports bfloat16, but not whether it has
8-bit dot products (VNNI) or tiles (AMX). archspec reads those on Linux, Windows and macOS.
``settings.py`` chooses settings from them.
"""

from __future__ import annotations

import logging
import math
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_LOGGER = logging.getLogger("phi3ov")

FEATURES = ("avx2", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_tile")
"""Instruction sets that settings depend on, under Linux's names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Processor:
    """Properties of the processor that settings depend on.

    Attributes:
        name: Its name, from OpenVINO.
        features: Those of `FEATURES` that it has; empty if they cannot be read.
        cpus: Number of logical processors that this process may run on (its affinity mask).
        fast_cpus: Number of those that belong to performance cores, on a hybrid processor that
            also has efficient cores; None if all are alike or the system does not report it.
        quota: CPU time that the container allows, in processors; None for no limit.
    """

    name: str
    features: frozenset[str] = frozenset()
    cpus: int = 1
    fast_cpus: int | None = None
    quota: float | None = None

    @property
    def threads_within_quota(self) -> int | None:
        """Number of threads that the quota keeps busy, rounded up; None if it does not limit."""
        if self.quota is None or self.quota >= self.cpus:
            return None
        return max(1, math.ceil(self.quota))


def read_processor(name: str, root: Path = Path("/")) -> Processor:
    """Return this machine's processor features and the share of it that may be used.

    Args:
        name: The processor's name, from OpenVINO's FULL_DEVICE_NAME.
        root: Root of the file system; tests pass another folder.

    Example:
        >>> read_processor("Intel(R) Core(TM) Ultra 7").cpus >= 1
        True
    """
    return Processor(
        name=name,
        features=_read_features(),
        cpus=usable_cpus(),
        fast_cpus=count_fast_cpus(root),
        quota=read_cpu_quota(root),
    )


def _read_features() -> frozenset[str]:
    from archspec.cpu.detect import detected_info

    try:
        found = detected_info().features
    except Exception as error:  # noqa: BLE001 - it reads files, runs programs and calls cpuid
        _LOGGER.warning(
            "The processor's instruction sets cannot be read (%s: %s), so OpenVINO's own settings "
            "are used.",
            type(error).__name__,
            error,
        )
        return frozenset()
    return frozenset(FEATURES) & frozenset(found)


def usable_cpus() -> int:
    """Return the number of logical processors this process may use (``os.process_cpu_count``)."""
    mask = _read_affinity()
    return (os.cpu_count() or 1) if mask is None else len(mask)


def _read_affinity() -> frozenset[int] | None:
    """Return the ids of the processors in the affinity mask; None on systems without masks."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return None


def count_fast_cpus(root: Path = Path("/")) -> int | None:
    """Return the number of usable logical processors on performance cores of a hybrid processor.

    Linux lists both kinds of cores of Intel's hybrid processors. OpenVINO chooses between them by
    itself; ``phi3ov tune`` also tries the performance cores only.

    Args:
        root: Root of the file system; tests pass another folder.

    Returns:
        The number; None if all cores are alike or the system does not list the kinds.
    """
    kinds = []
    for kind in ("cpu_core", "cpu_atom"):
        path = root / "sys/devices" / kind / "cpus"
        try:
            kinds.append(_parse_cpu_list(path.read_text(encoding="ascii")))
        except OSError:
            return None
        except ValueError as error:
            _LOGGER.warning("The kinds of cores in %s cannot be read: %s", path, error)
            return None
    fast, efficient = kinds
    mask = _read_affinity()
    if mask is not None:
        fast, efficient = fast & mask, efficient & mask
    return len(fast) if fast and efficient else None


def _parse_cpu_list(text: str) -> frozenset[int]:
    """Parse a CPU list of the Linux kernel, such as ``0-3,8``."""
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def read_cpu_quota(root: Path = Path("/")) -> float | None:
    """Return the CPU quota of the control groups, in processors; None for no limit.

    A group's limit also applies to the groups inside it, so the smallest limit on the path counts.
    Only Linux has control groups.

    Args:
        root: Root of the file system; tests pass another folder.
    """
    limits = [limit for folder in _control_groups(root) if (limit := _limit_of(folder)) is not None]
    return min(limits, default=None)


def _control_groups(root: Path) -> list[Path]:
    """Return the folders of this process's CPU control groups, versions 1 and 2, root included."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    mounted = root / "sys/fs/cgroup"
    folders = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            bases = [mounted, mounted / "unified"]
        elif "cpu" in controllers.split(","):
            bases = [mounted / controllers, mounted / "cpu"]
        else:
            continue
        inner = PurePosixPath(path.lstrip("/"))
        # Inside a container the path may be the host's and not exist; then the base counts.
        folders += [base / part for base in bases for part in (inner, *inner.parents)]
    return folders


def _limit_of(folder: Path) -> float | None:
    try:
        if (folder / "cpu.max").is_file():  # version 2: "QUOTA PERIOD" or "max PERIOD"
            quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
            return None if quota == "max" else int(quota) / int(period)
        if (folder / "cpu.cfs_quota_us").is_file():  # version 1: -1 means no limit
            quota = (folder / "cpu.cfs_quota_us").read_text(encoding="ascii")
            period = (folder / "cpu.cfs_period_us").read_text(encoding="ascii")
            return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError) as error:
        _LOGGER.warning("The CPU quota in %s cannot be read: %s", folder, error)
    return None
