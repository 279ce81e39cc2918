"""The machine: what it is, and how fast its processor reads memory.

Bandwidth is the limit that decoding is compared with, so it is measured in the same run, with
the same number of threads, by reads that compute as little as possible: NumPy's dot product of
a large array with itself, a thread to each part, and OpenVINO's product of a vector and a large
matrix, which is what decoding consists of. Both read 512 MB, far more than any cache holds. The
faster one counts.
"""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import psutil

from .peers import python_of
from .session import surroundings

INSTRUCTIONS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8")
"""What the kernels of int4 and int8 weights make use of, as Linux names it."""


def describe_machine() -> dict[str, Any]:
    """Return what the results depend on."""
    processor = platform.processor()
    instructions: list[str] = []
    information = Path("/proc/cpuinfo")
    if information.is_file():
        lines = information.read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        processor = names[0] if names else processor
        flags = next((line.split() for line in lines if line.startswith("flags")), [])
        instructions = [name for name in INSTRUCTIONS if name in flags]
    return {
        "processor": processor,
        "instructions": instructions,
        "cores": psutil.cpu_count(logical=False) or psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def measure_bandwidth(threads: int) -> dict[str, float]:
    """Return bytes per second of both reads, in the environment of raw openvino-genai."""
    command = [str(python_of("genai")), "-m", "phi3ov_bench.adapters.bandwidth", str(threads)]
    environment = surroundings(1)  # a thread to each part, not within one
    result = subprocess.run(
        command, check=True, capture_output=True, text=True, env=environment
    ).stdout
    return dict(json.loads(result.splitlines()[-1]))
