"""`iter_batch` through the worker beside openvino-genai's own batched call, with as many at once.

    .venv/bin/python benchmarks/batched.py ARTIFACT --at-once 1 8 16 --limit 0.95

Both stay loaded, each in processes of its own, and take turns, every second round in the other
order. Every answer has the same number of tokens (no stop ids), and both compute the same number
of answers at once: openvino-genai's call gets that many prompts, because its ``max_num_seqs`` has
no effect while ``dynamic_split_fuse`` is on (its default), and a larger batch is faster. With one
at once it is `LLMPipeline` on paged attention.

The ratio is taken within a round, and the median over rounds counts. Processor time per token, of
all processes of a way, hardly depends on what else the machine does. Prints a Markdown table; the
last line is the same as JSON. With ``--limit`` it fails where a ratio of the speeds is lower.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import psutil

import phi3ov

RAW, OURS = "openvino-genai", "phi3ov worker"


class Raw:
    """openvino-genai in a process of its own, with nothing set."""

    def __init__(self, artifact: Path, at_once: int) -> None:
        """Load."""
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(artifact), "--raw", "--at-once", str(at_once)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def answer(self, prompts: list[list[int]], new_tokens: int) -> None:
        """Compute one group of answers."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([prompts, new_tokens]) + "\n")
        self.process.stdin.flush()
        if not self.process.stdout.readline():
            raise RuntimeError("The process with openvino-genai has ended.")

    def cpu_seconds(self) -> float:
        """Return its processor time."""
        return spent_seconds(psutil.Process(self.process.pid))

    def close(self) -> None:
        """End it."""
        self.process.communicate()


class Ours:
    """phi3ov's worker, through its public API."""

    def __init__(self, artifact: Path, at_once: int) -> None:
        """Load."""
        limits = phi3ov.RequestLimits(max_running=at_once)
        self.model = phi3ov.load_model(
            artifact, engine="worker", device="CPU", limits=limits, tuning="off"
        )
        self.model.tokenizer.stop_tokens = {}

    def answer(self, messages: list[str], new_tokens: int) -> None:
        """Compute one group of answers."""
        asked = [[phi3ov.Message("user", text)] for text in messages]
        for result in self.model.iter_batch(asked, max_new_tokens=new_tokens):
            if result.reply.usage.completion_tokens != new_tokens:
                raise RuntimeError("An answer ended before its last token.")

    def cpu_seconds(self) -> float:
        """Return the processor time of this process and the worker's."""
        this = psutil.Process()
        workers = [child for child in this.children() if "worker" in " ".join(child.cmdline())]
        return sum(map(spent_seconds, (this, *workers)))

    def close(self) -> None:
        """Unload."""
        self.model.close()


def spent_seconds(process: psutil.Process) -> float:
    """Return a process's processor time."""
    times = process.cpu_times()
    return float(times.user + times.system)


def main() -> None:
    """Measure in turns and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--groups", type=int, default=2, help="answered one after the other")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--limit", type=float)
    parser.add_argument("--raw", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.raw:
        run_raw(options.artifact, options.at_once[0])
        return
    rows = [compare(at_once, options) for at_once in options.at_once]
    print("| at once | x openvino-genai | processor time per token, ms | openvino-genai's |")
    print("|--:|--:|--:|--:|")
    for row in rows:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")
    print(json.dumps(rows))
    slow = [row for row in rows if options.limit is not None and row["ratio"] < options.limit]
    if slow:
        raise SystemExit(f"slower than {options.limit} of openvino-genai: {slow}")


def compare(at_once: int, options: argparse.Namespace) -> dict[str, float]:
    """Let both answer in turns, with ``at_once`` answers at the same time."""
    raw, ours = Raw(options.artifact, at_once), Ours(options.artifact, at_once)
    numbers = count()
    taken: dict[str, list[tuple[float, float]]] = {RAW: [], OURS: []}

    def measure(way: str) -> None:
        messages = [
            f"Story {next(numbers)}: write about a lighthouse."
            for _ in range(at_once * options.groups)
        ]
        tokenizer = ours.model.tokenizer
        prompts = [tokenizer.encode_prompt([phi3ov.Message("user", text)]) for text in messages]
        program: Any = raw if way == RAW else ours
        cpu, begun = program.cpu_seconds(), time.perf_counter()
        program.answer(prompts if way == RAW else messages, options.new_tokens)
        seconds, cpu = time.perf_counter() - begun, program.cpu_seconds() - cpu
        taken[way].append((seconds, 1000 * cpu / len(messages) / options.new_tokens))

    for number in range(options.rounds + 1):
        for way in (RAW, OURS) if number % 2 == 0 else (OURS, RAW):
            measure(way)
    raw.close()
    ours.close()
    rounds = list(zip(taken[RAW], taken[OURS], strict=True))[1:]  # the first one repacks weights
    return {
        "at_once": at_once,
        "ratio": round(median(theirs[0] / own[0] for theirs, own in rounds), 3),
        "cpu_ms": round(median(own[1] for _, own in rounds), 2),
        "raw_cpu_ms": round(median(theirs[1] for theirs, _ in rounds), 2),
    }


def run_raw(artifact: Path, at_once: int) -> None:
    """Answer what comes on standard input, in groups of ``at_once``."""
    import numpy as np
    import openvino
    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    if at_once == 1:
        pipeline = openvino_genai.LLMPipeline(str(artifact), "CPU", scheduler_config=scheduler)
    else:
        pipeline = openvino_genai.ContinuousBatchingPipeline(str(artifact), scheduler, "CPU")
    for line in sys.stdin:
        prompts, new_tokens = json.loads(line)
        config = openvino_genai.GenerationConfig(max_new_tokens=new_tokens)
        config.ignore_eos = True
        config.apply_chat_template = False
        tensors = [openvino.Tensor(np.array([ids], dtype=np.int64)) for ids in prompts]
        for first in range(0, len(tensors), at_once):
            group = tensors[first : first + at_once]
            if at_once == 1:
                pipeline.generate(group[0], config)
            else:
                pipeline.generate(group, [config] * len(group))
        print("done", flush=True)


if __name__ == "__main__":
    main()
