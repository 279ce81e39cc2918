"""What `load_model(verify=True)` costs: loading with and without reading every byte again.

    .venv/bin/python benchmarks/verify_cost.py MODEL [--repeat 3]

The physics: SHA-256 runs at 1 to 2 GB/s on a core that has instructions for it, and compiling
leaves one free now and then; the file is read once for both, because the second reader finds it
in the page cache. Each load is a process of its own, with and without check by turns.

The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from phi3ov import Artifact

_LOAD = """
import sys, time
import phi3ov, openvino_genai
started = time.perf_counter()
model = phi3ov.load_model(sys.argv[1], device="CPU", verify=sys.argv[2] == "True")
print(time.perf_counter() - started)
model.close()
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    artifact = Artifact.open(options.model)
    started = time.perf_counter()
    artifact.verify()
    alone = time.perf_counter() - started
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(options.repeat):
        for verify, times in seconds.items():
            command = [sys.executable, "-c", _LOAD, str(options.model), str(verify)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            times.append(float(done.stdout.split()[-1]))
    without, beside = (statistics.median(times) for times in seconds.values())
    print(f"check alone          {alone:6.1f} s  ({artifact.size_bytes / 1e9 / alone:.2f} GB/s)")
    print(f"load without check   {without:6.1f} s")
    print(f"load with check      {beside:6.1f} s  ({beside / without:.2f} times)")
    print(json.dumps({"alone": alone, "without": seconds[False], "with": seconds[True]}))


if __name__ == "__main__":
    main()
