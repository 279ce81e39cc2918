"""Thousands of turns on one loaded model: does its memory stay where it was?

    make install
    .venv/bin/python benchmarks/soak.py                       # builds the reference if need be
    .venv/bin/python benchmarks/soak.py --artifact FOLDER --turns 3000 --svg docs/soak.svg

Several chats at once take turns of every kind: conversations that grow until their oldest turns
are dropped, new ones, forks, answers that are cancelled, that run out of time, and that fail
because they do not fit. After each turn the resident memory of this process and of the worker's
is noted. It rises at first (weights repacked, the KV cache up to its bound, kernels for the
lengths of prompts); then it should be flat, so the slope is that of the second half.

Prints a Markdown table; the last line is JSON. ``--svg`` draws both curves.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import psutil
from phi3ov_bench.plot import draw_memory
from reference_artifact import make_reference_artifact

import phi3ov
from phi3ov.engine.protocol import EngineName

SUBJECTS = ("a lighthouse", "two foxes", "a train", "the sea", "an old clock", "a garden")


class Soak:
    """Takes turns on one model and notes the memory after each."""

    def __init__(
        self, model: phi3ov.Phi3Model, *, turns: int, new_tokens: int, minutes: float
    ) -> None:
        """Prepare a number of turns, or a number of minutes of them."""
        self._model = model
        self._turns = turns
        self._new_tokens = new_tokens
        self._deadline = time.perf_counter() + 60 * minutes
        self._process = psutil.Process()
        self._lock = threading.Lock()
        self._taken = 0
        self.megabytes: list[float] = []
        self.endings: dict[str, int] = {}
        self.tokens = 0

    def run(self, chats: int) -> float:
        """Take the turns with ``chats`` at once; return the seconds."""
        started = time.perf_counter()
        with ThreadPoolExecutor(chats) as threads:
            for done in [threads.submit(self._converse, seed) for seed in range(chats)]:
                done.result()
        return time.perf_counter() - started

    def _converse(self, seed: int) -> None:
        draw = random.Random(seed)
        chat = phi3ov.Phi3Chat(self._model, system="You tell stories.")
        while self._take_number():
            kind = draw.choices(
                ("turn", "new", "fork", "cancel", "timeout", "refused"), (70, 8, 6, 8, 4, 4)
            )[0]
            if kind == "new":
                chat = phi3ov.Phi3Chat(self._model, system="You tell stories.")
            elif kind == "fork":
                chat = chat.fork()
            question = f"Go on with {draw.choice(SUBJECTS)}, part {draw.randrange(10**6)}."
            self._note(self._take_turn(chat, kind, question))

    def _take_number(self) -> bool:
        with self._lock:
            self._taken += 1
            return self._taken <= self._turns and time.perf_counter() < self._deadline

    def _take_turn(self, chat: phi3ov.Phi3Chat, kind: str, question: str) -> str:
        options = phi3ov.Options(max_new_tokens=self._new_tokens, on_overflow="drop_oldest")
        if kind == "refused":
            options |= phi3ov.Options(max_new_tokens=10**6)
        if kind == "timeout":
            options |= phi3ov.Options(timeout_seconds=0.05)
        try:
            with chat.stream(question, **options) as stream:
                for _ in stream:
                    if kind == "cancel":
                        break
        except phi3ov.ContextLengthError:
            return "refused"
        self.tokens += stream.reply.usage.completion_tokens
        return stream.reply.finish_reason

    def _note(self, ending: str) -> None:
        with self._lock:
            family = [self._process, *self._process.children(recursive=True)]
            self.megabytes.append(sum(process.memory_info().rss for process in family) / 1e6)
            self.endings[ending] = self.endings.get(ending, 0) + 1


def main() -> None:
    """Soak each engine in turn, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--artifact", type=Path, default=Path("build/reference-int4"))
    parser.add_argument(
        "--engines", nargs="+", choices=get_args(EngineName), default=["pipeline", "worker"]
    )
    parser.add_argument("--turns", type=int, default=3000)
    parser.add_argument("--minutes", type=float, default=60, help="the most for each engine")
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--context-tokens", type=int, default=1024)
    parser.add_argument("--chats", type=int, default=4)
    parser.add_argument("--svg", type=Path)
    options = parser.parse_args()
    make_reference_artifact(options.artifact)
    curves: dict[str, list[float]] = {}
    rows = []
    for engine in options.engines:
        with phi3ov.load_model(
            options.artifact,
            device="CPU",
            engine=engine,
            context_tokens=options.context_tokens,
        ) as model:
            soak = Soak(
                model,
                turns=options.turns,
                new_tokens=options.new_tokens,
                minutes=options.minutes,
            )
            seconds = soak.run(options.chats)
        curves[engine] = soak.megabytes
        rows.append(summarize(engine, soak, seconds))
    print(
        "| engine | turns | minutes | MB after a third | after two | at the end "
        "| MB per 1 000 turns, second half |"
    )
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print("| " + " | ".join(str(value) for value in list(row.values())[:7]) + " |")
    if options.svg is not None:
        options.svg.write_text(draw_memory(curves), encoding="utf-8", newline="\n")
    print(json.dumps({"rows": rows, "megabytes": {k: thin(v) for k, v in curves.items()}}))


def summarize(engine: str, soak: Soak, seconds: float) -> dict[str, Any]:
    """Return the figures of one engine."""
    turns = len(soak.megabytes)
    steady = soak.megabytes[turns // 2 :]
    slope = statistics.linear_regression(range(len(steady)), steady).slope
    return {
        "engine": engine,
        "turns": turns,
        "minutes": round(seconds / 60, 1),
        "after_a_third": round(soak.megabytes[turns // 3]),
        "after_two": round(soak.megabytes[2 * turns // 3]),
        "at_the_end": round(steady[-1]),
        "megabytes_per_1000_turns": round(1000 * slope, 1),
        "endings": soak.endings,
        "tokens": soak.tokens,
    }


def thin(curve: list[float]) -> list[int]:
    """Return at most a hundred points."""
    return [round(value) for value in curve[:: max(1, len(curve) // 100)]]


if __name__ == "__main__":
    main()
