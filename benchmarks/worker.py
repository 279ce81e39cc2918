"""Many chats at once: ``engine="worker"`` beside ``engine="pipeline"``.

    make install
    .venv/bin/python benchmarks/worker.py                    # builds the reference if need be
    .venv/bin/python benchmarks/worker.py --artifact FOLDER  # any other export

Each token reads every weight once, whether one chat gets it or sixteen do; so a batch costs
little more than one, until the arithmetic takes longer than the reading. The pipeline answers
one chat after the other. Both engines stay loaded and take turns, round after round, so that
what else the machine does hits both; ratios within a round count, the median over rounds.

What a token costs in processor time, of this process and the worker's together, is measured as
well: other work on the machine hardly changes that.

Meanwhile a thread of this process sleeps a millisecond at a time: its ticks per second, against
those while nothing is generated, are what is left of the interpreter for the application.

Prints a Markdown table; the last line is the same as JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import psutil
from reference_artifact import make_reference_artifact

import phi3ov
from phi3ov.engine.protocol import EngineName

ENGINES: tuple[EngineName, ...] = ("pipeline", "worker")
SUBJECTS = ("a lighthouse", "two foxes", "a train", "the sea", "an old clock", "a garden")


class Ticker:
    """Sleeps a millisecond at a time and keeps the moments when it woke up."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.per_second = 0.0
        self.longest_stall_seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Tick while the block runs."""
        moments = [time.perf_counter()]
        over = threading.Event()

        def tick() -> None:
            while not over.is_set():
                time.sleep(0.001)
                moments.append(time.perf_counter())

        thread = threading.Thread(target=tick)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self.per_second = (len(moments) - 1) / (moments[-1] - moments[0])
            pauses = [after - before for before, after in pairwise(moments)]
            self.longest_stall_seconds = max(pauses)


def main() -> None:
    """Load both engines, let them take turns, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--artifact", type=Path, default=Path("build/reference-int4"))
    parser.add_argument("--chats", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    make_reference_artifact(options.artifact)
    idle = Ticker()
    with idle.running():
        time.sleep(2)
    load_seconds: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    for _ in range(options.rounds):
        for engine in ENGINES:
            started = time.perf_counter()
            phi3ov.load_model(options.artifact, device="CPU", engine=engine).close()
            load_seconds[engine].append(time.perf_counter() - started)
    with ExitStack() as stack:
        models = {
            engine: stack.enter_context(
                phi3ov.load_model(options.artifact, device="CPU", engine=engine)
            )
            for engine in ENGINES
        }
        for model in models.values():  # the first answer repacks weights
            phi3ov.Phi3Chat(model).generate("Hello", max_new_tokens=8)
        numbers = count()
        rounds = [
            {
                (engine, chats): measure(models[engine], chats, options.new_tokens, numbers)
                for chats in options.chats
                for engine in ENGINES
            }
            for _ in range(options.rounds)
        ]
    rows = [summarize(rounds, engine, chats) for engine in ENGINES for chats in options.chats]
    result = {
        "idle_ticks_per_second": round(idle.per_second),
        "load_seconds": {
            engine: round(statistics.median(seconds), 2) for engine, seconds in load_seconds.items()
        },
        "rows": rows,
    }
    print(
        "| engine | chats | tokens/s in all | x pipeline, one chat | CPU ms per token | ticks/s "
        "| longest stall, ms |"
    )
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")
    print(json.dumps(result))


def measure(
    model: phi3ov.Phi3Model, chats: int, new_tokens: int, numbers: Iterator[int]
) -> dict[str, float]:
    """Let ``chats`` ask at once; each question is a new one."""
    questions = [
        f"Story {number}. Write a very long story about {SUBJECTS[number % len(SUBJECTS)]}."
        for number in (next(numbers) for _ in range(chats))
    ]

    def ask(question: str) -> int:
        reply = phi3ov.Phi3Chat(model).generate(question, max_new_tokens=new_tokens)
        return reply.usage.completion_tokens

    ticker = Ticker()
    with ThreadPoolExecutor(chats) as threads, ticker.running():
        started, cpu_started = time.perf_counter(), cpu_seconds()
        tokens = sum(threads.map(ask, questions))
        seconds, cpu = time.perf_counter() - started, cpu_seconds() - cpu_started
    return {
        "tokens_per_second": tokens / seconds,
        "cpu_ms_per_token": 1000 * cpu / tokens,
        "ticks_per_second": ticker.per_second,
        "longest_stall_seconds": ticker.longest_stall_seconds,
    }


def cpu_seconds() -> float:
    """Return the processor time that this process and its children have taken."""
    this = psutil.Process()
    times = [process.cpu_times() for process in (this, *this.children(recursive=True))]
    return sum(spent.user + spent.system for spent in times)


def summarize(rounds: list[Any], engine: EngineName, chats: int) -> dict[str, str | float]:
    """Return the medians of one row."""
    own = [measured[engine, chats] for measured in rounds]
    least = min(chats for _, chats in rounds[0])
    ratios = [
        measured[engine, chats]["tokens_per_second"]
        / measured["pipeline", least]["tokens_per_second"]
        for measured in rounds
    ]
    return {
        "engine": engine,
        "chats": chats,
        "tokens_per_second": round(
            statistics.median(measured["tokens_per_second"] for measured in own)
        ),
        "ratio": round(statistics.median(ratios), 2),
        "cpu_ms_per_token": round(
            statistics.median(measured["cpu_ms_per_token"] for measured in own), 1
        ),
        "ticks_per_second": round(
            statistics.median(measured["ticks_per_second"] for measured in own)
        ),
        "longest_stall_ms": round(
            1000 * max(measured["longest_stall_seconds"] for measured in own), 1
        ),
    }


if __name__ == "__main__":
    main()
