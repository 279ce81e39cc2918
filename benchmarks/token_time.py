"""Where the time of a token goes: one chat, after its first token.

    .venv/bin/python benchmarks/token_time.py ARTIFACT

Two parts. First OpenVINO's own counters of one forward pass over one token, by the kind of
operation. Then one and the same decoding through more and more layers, in turns: the forward pass
alone, raw openvino-genai without and with a streamer, and phi3ov's engines with `generate` and
`stream`. The ratio to raw openvino-genai with a streamer is taken within a round, the median over
rounds counts. Prints Markdown tables; the last line is the same as JSON.

``--cpu-time`` measures processor time of this process instead of the clock, with one thread, for a
machine that is busy; the worker computes in a process of its own and is left out then.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import openvino
import openvino_genai

import phi3ov
from phi3ov.engine.paged.model import PagedModel
from phi3ov.runtime.rope import choose_context

PROMPT_TOKENS = 64
Clock = Callable[[], float]
Decode = Callable[[int], float]
"""Decodes a given number of tokens and returns the seconds per token after the first."""


def main() -> None:
    """Profile, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--cpu-time", action="store_true")
    options = parser.parse_args()
    threads = options.threads or (1 if options.cpu_time else None)
    clock = time.process_time if options.cpu_time else time.perf_counter
    artifact = phi3ov.Artifact.open(options.artifact)
    rng = np.random.default_rng(0)
    prompt = [int(each) for each in rng.integers(0, artifact.vocabulary_size, PROMPT_TOKENS)]
    kinds = profile(artifact, prompt, threads)
    with ExitStack() as stack:
        ways = open_ways(artifact, prompt, threads, clock, stack, worker=not options.cpu_time)
        rows = measure(ways, options.tokens, options.rounds)
    print(json.dumps({"layers": kinds, "ways": rows}))


def profile(artifact: phi3ov.Artifact, prompt: list[int], threads: int | None) -> dict[str, Any]:
    """Print and return what each kind of operation takes in a pass over one token."""
    config = phi3ov.RuntimeConfig(threads=threads, properties={"PERF_COUNT": "YES"})
    model = open_paged(artifact, config)
    model.reserve(PROMPT_TOKENS + 64, keep=0)
    model.read(prompt, past=0)
    least: dict[str, float] = {}  # of each layer, over the passes: what nothing has disturbed
    kind_of: dict[str, str] = {}
    for place in range(48):
        model.read([prompt[place]], past=PROMPT_TOKENS + place)
        for layer in model.layer_times():
            if layer.status == openvino.ProfilingInfo.Status.EXECUTED:
                seconds = layer.real_time.total_seconds()
                least[layer.node_name] = min(seconds, least.get(layer.node_name, seconds))
                kind_of[layer.node_name] = f"{layer.node_type} ({layer.exec_type})"
    kinds: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for name, seconds in least.items():
        kinds[kind_of[name]] += seconds
        counts[kind_of[name]] += 1
    total = sum(kinds.values())
    print("| operation (kernel) | layers | ms per token | share |\n|---|--:|--:|--:|")
    for name, seconds in sorted(kinds.items(), key=lambda item: -item[1]):
        if seconds > 0.005 * total:
            print(f"| {name} | {counts[name]} | {1e3 * seconds:.2f} | {seconds / total:.0%} |")
    print(f"| all | {sum(counts.values())} | {1e3 * total:.2f} | |\n")
    return {name: round(1e3 * seconds, 3) for name, seconds in kinds.items()}


def open_paged(artifact: phi3ov.Artifact, config: phi3ov.RuntimeConfig) -> PagedModel:
    """Compile the graph that openvino-genai runs, with paged attention."""
    context = choose_context(artifact.config, None)
    return PagedModel(artifact, device="CPU", config=config, context=context)


def open_ways(
    artifact: phi3ov.Artifact,
    prompt: list[int],
    threads: int | None,
    clock: Clock,
    stack: ExitStack,
    *,
    worker: bool,
) -> dict[str, Decode]:
    """Return each way of decoding, from the graph alone to phi3ov's stream."""
    config = phi3ov.RuntimeConfig(threads=threads)
    paged = open_paged(artifact, config)
    properties = {
        setting.name: setting.value
        for setting in paged.settings
        if setting.chosen_by in ("caller", "phi3ov")
    }
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.enable_prefix_caching = True
    scheduler.num_kv_blocks = 256
    raw = openvino_genai.LLMPipeline(
        str(artifact.path), "CPU", scheduler_config=scheduler, **properties
    )
    ways: dict[str, Decode] = {
        "forward pass alone": lambda tokens: graph_alone(paged, prompt, tokens, clock),
        "openvino-genai, no streamer": lambda tokens: genai(raw, prompt, tokens, clock, None),
        RAW: lambda tokens: genai(raw, prompt, tokens, clock, _Counter()),
    }
    engines: tuple[Any, ...] = ("pipeline", "worker") if worker else ("pipeline",)
    for engine in engines:
        model = stack.enter_context(
            phi3ov.load_model(
                artifact.path, device="CPU", engine=engine, config=config, tuning="off"
            )
        )
        model.tokenizer.stop_tokens = {}  # every answer has its full length
        ways[f"phi3ov {engine}, generate"] = generating(model, prompt, clock)
        ways[f"phi3ov {engine}, stream"] = streaming(model, prompt, clock)
    return ways


RAW = "openvino-genai, streamer"


def graph_alone(model: PagedModel, prompt: list[int], tokens: int, clock: Clock) -> float:
    """Read one token after the other, whatever the logits say."""
    model.reserve(PROMPT_TOKENS + tokens, keep=0)
    model.read(prompt, past=0)
    begun = clock()
    for place in range(tokens - 1):
        model.read([prompt[place % PROMPT_TOKENS]], past=PROMPT_TOKENS + place)
    return (clock() - begun) / (tokens - 1)


def genai(
    pipeline: Any, prompt: list[int], tokens: int, clock: Clock, streamer: _Counter | None
) -> float:
    """Decode with openvino-genai by itself."""
    config = openvino_genai.GenerationConfig()
    config.ignore_eos = True
    config.apply_chat_template = False
    ids = openvino.Tensor(np.array([prompt], dtype=np.int64))
    took = []
    for number in (1, tokens):  # the difference is decoding
        config.max_new_tokens = number
        begun = clock()
        pipeline.generate(ids, config, *(() if streamer is None else (streamer,)))
        took.append(clock() - begun)
    return (took[1] - took[0]) / (tokens - 1)


class _Counter(openvino_genai.StreamerBase):  # type: ignore[misc]
    def write(self, _token: Any) -> openvino_genai.StreamingStatus:
        return openvino_genai.StreamingStatus.RUNNING

    def end(self) -> None:
        """Nothing is held back."""


def generating(model: phi3ov.Phi3Model, prompt: list[int], clock: Clock) -> Decode:
    """Return decoding with `generate`: text is made at the end."""

    def decode(tokens: int) -> float:
        took = []
        for number in (1, tokens):
            begun = clock()
            options = phi3ov.GenerationOptions(max_new_tokens=number)
            model.stream_ids(prompt, options=options).drain()
            took.append(clock() - begun)
        return (took[1] - took[0]) / (tokens - 1)

    return decode


def streaming(model: phi3ov.Phi3Model, prompt: list[int], clock: Clock) -> Decode:
    """Return decoding with `stream`: text is made token by token."""

    def decode(tokens: int) -> float:
        took = []
        for number in (1, tokens):
            begun = clock()
            options = phi3ov.GenerationOptions(max_new_tokens=number)
            for _ in model.stream_ids(prompt, options=options):
                pass
            took.append(clock() - begun)
        return (took[1] - took[0]) / (tokens - 1)

    return decode


def measure(ways: dict[str, Decode], tokens: int, rounds: int) -> dict[str, Any]:
    """Let the ways take turns; print and return medians and ratios."""
    for decode in ways.values():
        decode(8)
    values: dict[str, list[float]] = defaultdict(list)
    for number in range(rounds):
        names = list(ways) if number % 2 == 0 else list(ways)[::-1]
        for name in names:
            values[name].append(ways[name](tokens))
    print("| way | ms per token | x openvino-genai |\n|---|--:|--:|")
    rows = {}
    for name, taken in values.items():
        ratio = median(own / raw for own, raw in zip(taken, values[RAW], strict=True))
        rows[name] = {"ms": round(1e3 * median(taken), 3), "ratio": round(ratio, 3)}
        print(f"| {name} | {rows[name]['ms']:.2f} | {ratio:.3f} |")
    return rows


if __name__ == "__main__":
    main()
