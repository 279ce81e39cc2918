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
from typing import Any

import psutil

from .peers import python_of
from .processor import processor_features, processor_name
from .session import surroundings

INSTRUCTIONS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8")
"""What the kernels of int4 and int8 weights make use of, as Linux names it; the best one last."""


def describe_machine() -> dict[str, Any]:
    """Return what the results depend on."""
    features = processor_features()
    return {
        "processor": processor_name(),
        "instructions": [name for name in INSTRUCTIONS if name in features],
        "cores": psutil.cpu_count(logical=False) or psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def machine_label() -> str:
    """Return a short name for this kind of machine: maker and arithmetic, as in ``amd-vnni``."""
    name, features = processor_name().lower(), processor_features()
    maker = next((maker for maker in ("intel", "amd") if maker in name), platform.machine().lower())
    kinds = (("amx_int8", "amx"), ("avx512_vnni", "vnni"), ("avx_vnni", "avx-vnni"))
    found = next((label for feature, label in kinds if feature in features), None)
    return f"{maker}-{found or ('avx2' if 'avx2' in features else 'other')}"


def measure_bandwidth(threads: int) -> dict[str, float]:
    """Return bytes per second of both reads, in the environment of raw openvino-genai."""
    command = [str(python_of("genai")), "-m", "phi3ov_bench.adapters.bandwidth", str(threads)]
    environment = surroundings(1)  # a thread to each part, not within one
    result = subprocess.run(
        command, check=True, capture_output=True, text=True, env=environment
    ).stdout
    return dict(json.loads(result.splitlines()[-1]))
