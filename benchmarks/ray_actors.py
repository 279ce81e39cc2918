"""Ray actors against one machine's `iter_batch`, in turns: what Ray costs and what it brings.

python benchmarks/ray_actors.py MODEL [--conversations 512] [--tokens 32] [--rounds 3]

Two questions, each a ratio of tokens per second:

- overhead: one actor on every core against `iter_batch` in a child process on every core. The
  blocks are those of `answer_dataset`. The bar is 0.9.
- scaling: two actors pinned to a core each against one actor pinned to one core. The bar is 1.8
  where the machine has two cores of its own for each.

Each round measures all four; the median of the rounds' ratios is printed, and as JSON at the end.
Loading is left out: the clock runs from the first block's arrival in an actor to the last answer,
which the actors report themselves. With --pinning the last lines compare two processes with a
thread each, on two cores, with OpenVINO's own pinning and without.

What limits it: both actors read the same weights through one memory bus, so a model that is bound
by memory scales by less than a model that is bound by arithmetic.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # 127.0.0.1 stays what it is

import phi3ov
from phi3ov import GenerationOptions, RequestLimits, RuntimeConfig
from phi3ov.integrations.ray import AnswerConversations, LoadOptions
from phi3ov.integrations.ray.dataset import full_block

SETTINGS = LoadOptions(device=("CPU",), limits=RequestLimits())
PINNED = {"ENABLE_CPU_PINNING": "NO"}


class Timed(AnswerConversations):
    """An actor on given cores that adds when it began and ended a block."""

    def __init__(self, path: str, cores: list[list[int]], tokens: int) -> None:
        """Take the next set of cores, counted by Ray's actor of that name, and load the model."""
        import ray

        mine = ray.get(ray.get_actor("cores").take.remote())
        os.sched_setaffinity(0, cores[mine])
        super().__init__(path, options=GenerationOptions(max_new_tokens=tokens), load=SETTINGS)
        ray.get(ray.get_actor("cores").wait_for_all.remote())

    def __call__(self, block: Any) -> Any:
        """Answer the block; the clock is the same for all processes of this machine."""
        import pyarrow as pa

        began = time.monotonic()
        answers = super().__call__(block)
        ended = time.monotonic()
        size = answers.num_rows
        return answers.append_column("began", pa.array([began] * size)).append_column(
            "ended", pa.array([ended] * size)
        )


class Cores:
    """Hands out the numbers of core sets, and holds the actors until all have loaded."""

    def __init__(self, actors: int) -> None:
        """Begin with the first."""
        import asyncio

        self._left = list(range(actors))
        self._loaded = 0
        self._actors = actors
        self._all = asyncio.Event()

    async def take(self) -> int:
        """Return the next number."""
        return self._left.pop(0)

    async def wait_for_all(self) -> None:
        """Return when every actor has loaded its model."""
        self._loaded += 1
        if self._loaded == self._actors:
            self._all.set()
        await self._all.wait()


def prompts(count: int) -> list[str]:
    """Return prompts of which none is another's beginning."""
    return [f"{number}: tell me about the number {number}." for number in range(count)]


def with_ray(model: str, cores: list[list[int]], arguments: argparse.Namespace) -> float:
    """Return the tokens per second of actors on these sets of cores."""
    import ray
    from ray.data import ActorPoolStrategy

    counter = ray.remote(num_cpus=0)(Cores).options(name="cores").remote(len(cores))
    rows = [{"prompt": prompt} for prompt in prompts(arguments.conversations)]
    size = min(full_block(SETTINGS), arguments.conversations // len(cores))
    dataset = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // size))
    answers = dataset.map_batches(
        Timed,
        fn_constructor_args=(model, cores, arguments.tokens),
        batch_format="pyarrow",
        batch_size=None,
        num_cpus=len(cores[0]),
        compute=ActorPoolStrategy(size=len(cores), max_tasks_in_flight_per_actor=2),
    ).take_all()
    ray.kill(counter)
    return rate(
        sum(row["usage"]["completion_tokens"] for row in answers),
        max(row["ended"] for row in answers) - min(row["began"] for row in answers),
    )


def without_ray(model: str, arguments: argparse.Namespace) -> float:
    """Return the tokens per second of `iter_batch` on every core."""
    with phi3ov.load_model(model, engine="worker", device="CPU") as loaded:
        batch = [[phi3ov.Message("user", prompt)] for prompt in prompts(arguments.conversations)]
        began = time.monotonic()
        results = list(loaded.iter_batch(batch, max_new_tokens=arguments.tokens))
        seconds = time.monotonic() - began
    return rate(sum(result.reply.usage.completion_tokens for result in results), seconds)


def rate(tokens: int, seconds: float) -> float:
    """Return tokens per second."""
    return tokens / seconds


def measure_child(model: str, conversations: int, tokens: int, *, pinned: bool) -> None:
    """Load with one thread, wait for a line on stdin, answer, and print the rate."""
    config = RuntimeConfig(threads=1, properties={} if pinned else PINNED)
    with phi3ov.load_model(model, engine="worker", device="CPU", config=config) as loaded:
        print("loaded", flush=True)
        sys.stdin.readline()
        began = time.monotonic()
        batch = [[phi3ov.Message("user", prompt)] for prompt in prompts(conversations)]
        results = list(loaded.iter_batch(batch, max_new_tokens=tokens))
        seconds = time.monotonic() - began
    print(rate(sum(item.reply.usage.completion_tokens for item in results), seconds), flush=True)


def two_processes(model: str, arguments: argparse.Namespace, *, pinned: bool) -> float:
    """Return the tokens per second of two processes with a thread each, at the same time."""
    command = [sys.executable, __file__, model, "--child", "pinned" if pinned else "free"]
    command += ["--conversations", str(arguments.conversations // 4)]
    command += ["--tokens", str(arguments.tokens)]
    children = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline().strip() == "loaded"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    return sum(float(child.communicate(timeout=600)[0]) for child in children)


def main() -> None:
    """Measure in turns and print ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--conversations", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pinning", action="store_true")
    parser.add_argument("--child", choices=["pinned", "free"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    model = str(Path(arguments.model).absolute())
    if arguments.child:
        measure_child(
            model,
            arguments.conversations,
            arguments.tokens,
            pinned=arguments.child == "pinned",
        )
        return
    import ray

    cores = sorted(os.sched_getaffinity(0))
    first, second = [cores[0]], [cores[1]]
    ray.init(
        num_cpus=len(cores),
        include_dashboard=False,
        object_store_memory=200 * 2**20,
        log_to_driver=False,
        logging_level="ERROR",
        _node_ip_address="127.0.0.1",
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    ratios: dict[str, list[float]] = {"overhead": [], "scaling": []}
    for number in range(arguments.rounds):
        plain = without_ray(model, arguments)
        actor = with_ray(model, [cores], arguments)
        alone = with_ray(model, [first], arguments)
        pair = with_ray(model, [first, second], arguments)
        ratios["overhead"].append(actor / plain)
        ratios["scaling"].append(pair / alone)
        print(
            f"round {number + 1}: iter_batch {plain:.0f}, one actor {actor:.0f} "
            f"({actor / plain:.2f}); one core {alone:.0f}, two actors on a core each {pair:.0f} "
            f"({pair / alone:.2f}) tokens/s",
            flush=True,
        )
    ray.shutdown()
    if arguments.pinning:
        ratios["pinning"] = []
        for _ in range(arguments.rounds):
            pinned = two_processes(model, arguments, pinned=True)
            free = two_processes(model, arguments, pinned=False)
            ratios["pinning"].append(free / pinned)
            print(f"two processes: pinned {pinned:.0f}, free {free:.0f} tokens/s", flush=True)
    print(json.dumps({name: round(statistics.median(ratio), 3) for name, ratio in ratios.items()}))


if __name__ == "__main__":
    main()
