"""What huge pages for the weights change: processor time per token, loads in turns.

    .venv/bin/python benchmarks/huge_pages.py ARTIFACT [--engine paged] [--loads 6]

Each round loads the model once with huge pages and once without, each in a process of its own, and
decodes with one thread. Two equal loads differ by up to 12 %, so several rounds are needed; the
ratio is that of the medians. The last line is the same as JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import phi3ov

PROMPT = "<|user|>\nTell me a long story about a river.<|end|>\n<|assistant|>\n"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--engine", choices=("pipeline", "paged"), default="pipeline")
    parser.add_argument("--loads", type=int, default=6, help="loads of each kind")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each answer")
    options = parser.parse_args()
    times: dict[bool, list[float]] = {True: [], False: []}
    rows: dict[bool, str] = {}
    for number in range(options.loads):
        for huge_pages in (True, False) if number % 2 else (False, True):
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                result = pool.submit(measure, options, huge_pages=huge_pages).result()
            taken, rows[huge_pages] = result
            times[huge_pages].append(taken)
    print("| huge pages | ms per token, several loads | median | what the settings say |")
    print("|---|---|--:|---|")
    for huge_pages, taken_each in times.items():
        listed = ", ".join(f"{taken:.1f}" for taken in taken_each)
        median = statistics.median(taken_each)
        state = "on" if huge_pages else "off"
        print(f"| {state} | {listed} | {median:.1f} | {rows[huge_pages]} |")
    ratio = statistics.median(times[True]) / statistics.median(times[False])
    print(json.dumps({"engine": options.engine, "ratio": round(ratio, 3), "on": times[True],
                      "off": times[False]}))  # fmt: skip


def measure(options: argparse.Namespace, *, huge_pages: bool) -> tuple[float, str]:
    """Return the least processor time per token of three answers of one load, and its setting."""
    config = phi3ov.RuntimeConfig(threads=1, huge_pages=huge_pages)
    with phi3ov.load_model(
        options.artifact, device="CPU", engine=options.engine, config=config, tuning="off"
    ) as model:
        for thread in threading.enumerate():
            if thread.name == "phi3ov-huge-pages":
                thread.join()
        taken = []
        for _ in range(3):
            started = time.process_time()
            reply = model.complete(PROMPT, max_new_tokens=options.tokens)
            taken.append((time.process_time() - started) / reply.usage.completion_tokens * 1000)
        [row] = [str(setting) for setting in model.settings if setting.name == "HUGE_PAGES"]
    return min(taken), row


if __name__ == "__main__":
    main()
