"""What the processor that runs the tests can do, where OpenVINO's arithmetic depends on it."""

from __future__ import annotations

from pathlib import Path

import pytest


def rounds_activations() -> bool:
    """Whether OpenVINO has 8-bit products here, so that it rounds activations to 8 bits (VNNI).

    Without, `DYNAMIC_QUANTIZATION_GROUP_SIZE` changes nothing (seen on a processor with AVX2
    alone). Skips the test where the system does not say.
    """
    flags = Path("/proc/cpuinfo")
    if not flags.is_file():
        pytest.skip("only Linux tells what the processor can do")
    return "vnni" in flags.read_text(encoding="utf-8")
