"""What this processor can do, as Linux names it. Nothing is imported that has to be installed."""

from __future__ import annotations

import platform
from pathlib import Path


def processor_name() -> str:
    """Return the processor's name."""
    return _first("model name") or platform.processor()


def processor_features() -> frozenset[str]:
    """Return the processor's features; empty where the system does not list them."""
    return frozenset(_first("flags").split())


def _first(field: str) -> str:
    """Return the first value of a field in ``/proc/cpuinfo``; empty if the field is missing."""
    information = Path("/proc/cpuinfo")
    if not information.is_file():
        return ""
    for line in information.read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value.strip()
    return ""
