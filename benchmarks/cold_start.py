"""From the start of the interpreter to the first token: phi3ov beside raw openvino-genai.

    .venv/bin/python benchmarks/cold_start.py ARTIFACT

Every sample is a new process. The programs take turns, every second round in the other order; the
ratio to raw openvino-genai is taken within a round, and the median over rounds counts. The model's
files are in the system's page cache, as after a first use. Prints a Markdown table with what each
part of a start takes; the last line is the same as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

_RAW = """
import openvino_genai, openvino, numpy
imported = time.perf_counter()
scheduler = openvino_genai.SchedulerConfig()
scheduler.enable_prefix_caching = True
scheduler.num_kv_blocks = 256
pipeline = openvino_genai.LLMPipeline(folder, "CPU", scheduler_config=scheduler)
loaded = time.perf_counter()
config = openvino_genai.GenerationConfig()
config.max_new_tokens = 1
config.apply_chat_template = False
pipeline.generate(openvino.Tensor(numpy.array([list(range(5, 37))], dtype=numpy.int64)), config)
parts = {}
"""

_OURS = """
import phi3ov
from phi3ov import GenerationOptions, load_model
imported = time.perf_counter()
model = load_model(folder, device="CPU", tuning="off", **options)
loaded = time.perf_counter()
one = GenerationOptions(max_new_tokens=1)
model.stream_ids(list(range(5, 37)), options=one).drain()
times = model.load_timings
parts = {
    "read": times.read_seconds,
    "compile": times.compile_seconds,
    "verify": times.verify_seconds,
    "warm_up": times.warm_up_seconds,
}
"""

RAW = "openvino-genai"
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    RAW: (_RAW, {}),
    "phi3ov": (_OURS, {}),
    "phi3ov, verify=False": (_OURS, {"verify": False}),
    "phi3ov, warm_up=False": (_OURS, {"warm_up": False}),
    "phi3ov, neither": (_OURS, {"verify": False, "warm_up": False}),
    "phi3ov, worker engine": (_OURS, {"engine": "worker"}),
}
PARTS = ("import", "read", "compile", "verify", "warm_up", "first_token", "total")
"""``compile`` is the whole construction of raw openvino-genai's pipeline."""


def main() -> None:
    """Measure in turns and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    options = parser.parse_args()
    ways = [RAW, *(way for way in options.ways if way != RAW)]
    samples: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    start(RAW, options.artifact)  # brings files and libraries into the page cache
    for number in range(options.rounds):
        for way in ways if number % 2 == 0 else ways[::-1]:
            samples[way].append(start(way, options.artifact))
    rows = {way: summarize(taken, samples[RAW]) for way, taken in samples.items()}
    print("| | import | read | compile | verify | warm-up | first token | total, s | x raw |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for way, row in rows.items():
        cells = " | ".join(f"{row[part]:.2f}" if row[part] else "" for part in PARTS)
        print(f"| {way} | {cells} | {row['ratio']:.2f} |")
    print(json.dumps(rows))


def start(way: str, artifact: Path) -> dict[str, float]:
    """Start one process and return the seconds of its parts."""
    code, options = WAYS[way]
    program = (
        f"import json, time\nbegun = time.perf_counter()\nfolder = {str(artifact)!r}\n"
        f"options = {options!r}\n{code}\n"
        "first = time.perf_counter()\n"
        "print(json.dumps({'imported': imported - begun, 'loaded': loaded - imported, "
        "'first': first - loaded, 'parts': parts}), flush=True)\n"
        "import os; os._exit(0)\n"
    )
    begun = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, env=os.environ, text=True
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    total = time.perf_counter() - begun
    process.wait()
    said = json.loads(line)
    parts = said["parts"] or {"compile": said["loaded"]}
    return {
        "import": said["imported"],
        "first_token": said["first"],
        "total": total,
        **{part: parts.get(part, 0.0) for part in ("read", "compile", "verify", "warm_up")},
    }


def summarize(taken: list[dict[str, float]], raw: list[dict[str, float]]) -> dict[str, float]:
    """Return the median of each part, and of the ratio to the raw start of the same round."""
    row = {part: round(median(sample[part] for sample in taken), 3) for part in PARTS}
    ratios = [own["total"] / other["total"] for own, other in zip(taken, raw, strict=True)]
    return row | {"ratio": round(median(ratios), 3)}


if __name__ == "__main__":
    main()
