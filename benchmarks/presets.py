"""Size, speed and quality of every recipe on the reference checkpoint.

    make install
    .venv/bin/python benchmarks/presets.py                  # builds build/reference if need be
    .venv/bin/python benchmarks/presets.py --source FOLDER  # any other checkpoint

Exports the source once per recipe, measures each export with `phi3ov.quality.compare`, and
times greedy decoding of all of them in turns, round after round, so that what else the machine
does hits all alike; speeds are ratios to the default within a round, the median over rounds.
Decoding reads every weight once per token, so on a large model speed follows size; a 135M model
half fits into a CPU's caches and shows less of it.

Prints a Markdown table; the last line is the same as JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from phi3ov_bench.plot import draw_recipes

import phi3ov
from phi3ov import Int4Compression
from phi3ov.exporter.recipes import Compression
from phi3ov.quality.report import compare
from phi3ov.reference.build import build_reference

BASE = "default"
_ADJUSTED = Int4Compression(on_indivisible="adjust")  # 128 does not divide the reference's 576
RECIPES: dict[str, Compression] = {
    "fp16": "fp16",
    "int8": "int8",
    BASE: _ADJUSTED,
    "asymmetric": replace(_ADJUSTED, symmetric=False),
    "accurate": Int4Compression.accurate(),
    "small": replace(Int4Compression.small(), on_indivisible="adjust"),
    "small, calibrated": replace(
        Int4Compression.small(), on_indivisible="adjust", awq=True, scale_estimation=True
    ),
    "npu": Int4Compression.npu(),
    "npu, calibrated": replace(Int4Compression.npu(), awq=True, scale_estimation=True),
}
PROMPT = "Write a long story about a lighthouse keeper."


def main() -> None:
    """Export, measure, time, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, default=Path("build/reference"))
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--max-tokens", type=int, default=8192, help="of text, for the quality")
    parser.add_argument("--rounds", type=int, default=5, help="of decoding")
    parser.add_argument("--new-tokens", type=int, default=128, help="per round and recipe")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--svg", type=Path, help="draw size and divergence into this file")
    options = parser.parse_args()
    if not options.source.exists():
        build_reference(options.source)
    import torch

    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as root:
        rows = {name: _measure(name, Path(root), options) for name in options.recipes}
        speeds = _time_decoding({name: Path(root) / name for name in rows}, options)
    merged = {name: row | speeds[name] for name, row in rows.items()}
    if options.svg is not None:
        options.svg.write_text(draw_recipes(merged), encoding="utf-8", newline="\n")
    sys.stdout.write(f"{_table(merged)}\n{json.dumps(merged)}\n")


def _measure(name: str, root: Path, options: argparse.Namespace) -> dict[str, Any]:
    _say(f"{name}: export")
    report = phi3ov.export_model(
        options.source, root / name, compression=RECIPES[name], progress=False
    )
    _say(f"{name}: quality")
    quality = compare(
        options.source, root / name, max_tokens=options.max_tokens, prompts=(), progress=False
    )
    return {
        "megabytes": round(sum(kind.size_bytes for kind in report.weights) / 1e6, 1),
        "bits_per_weight": round(quality.bits_per_weight, 2),
        "mean_kl": round(quality.mean_kl, 5),
        "p99_kl": round(quality.p99_kl, 5),
        "perplexity": round(quality.artifact_perplexity, 3),
        "source_perplexity": round(quality.source_perplexity, 3),
        "top1_agreement": round(quality.top1_agreement, 4),
        "predictions": quality.tokens,
        "export_seconds": round(sum(report.phase_seconds.values()), 1),
    }


def _time_decoding(
    folders: dict[str, Path], options: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    rates: dict[str, list[float]] = {name: [] for name in folders}
    config = phi3ov.RuntimeConfig(threads=options.threads)
    with ExitStack() as stack:
        models = {
            name: stack.enter_context(phi3ov.load_model(folder, device="CPU", config=config))
            for name, folder in folders.items()
        }
        for turn in range(-1, options.rounds):  # the first is for warming up
            for name, model in models.items():
                chat = phi3ov.Phi3Chat(model)
                reply = chat.generate(PROMPT, max_new_tokens=options.new_tokens)
                if turn >= 0:
                    rates[name].append(reply.timings.tokens_per_second)
            _say(f"decoding: round {turn + 1} of {options.rounds}")
    base = rates.get(BASE) or next(iter(rates.values()))
    return {
        name: {
            "tokens_per_second": round(statistics.median(one), 1),
            "speed_ratio": round(
                statistics.median(rate / other for rate, other in zip(one, base, strict=True)), 2
            ),
        }
        for name, one in rates.items()
    }


def _table(rows: dict[str, dict[str, Any]]) -> str:
    source = next(iter(rows.values()))["source_perplexity"]
    lines = [
        "| recipe | weights (MB) | bits per weight | decoding | KL mean | KL p99 | perplexity "
        f"(source {source:.2f}) | same first choice | export (s) |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, row in rows.items():
        lines.append(
            f"| {name} | {row['megabytes']:.0f} | {row['bits_per_weight']:.2f} "
            f"| {row['speed_ratio']:.2f}× | {row['mean_kl']:.4f} | {row['p99_kl']:.3f} "
            f"| {row['perplexity']:.2f} | {row['top1_agreement']:.1%} "
            f"| {row['export_seconds']:.0f} |"
        )
    return "\n".join(lines)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
