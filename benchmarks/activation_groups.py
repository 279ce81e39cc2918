"""Activations rounded in larger groups: what is gained in speed, what is lost in quality.

    make install
    .venv/bin/python benchmarks/activation_groups.py quality --source build/reference
    .venv/bin/python benchmarks/activation_groups.py speed FOLDER   # an export, best a large one

OpenVINO's CPU plugin rounds activations to 8 bits before they meet compressed weights, so many
at a time with one scale (``RuntimeConfig.dynamic_quantization_group_size``). Each group costs a
multiplication per output, so larger ones are faster; one large value in a group leaves few of
the 256 steps to the others, so larger ones are less exact. 0 rounds nothing; a size above the
weights' own group rounds nothing either.

``quality`` exports the source with each recipe and compares with `phi3ov.quality.compare`, with
float32 arithmetic otherwise. ``speed`` loads an export once per size, round after round, and
times a prompt of 512 tokens and an answer of up to 64.

Prints a Markdown table; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from quality_at_size.recipes import RECIPES

import phi3ov
from phi3ov.quality.report import compare
from phi3ov.reference.build import build_reference

PREFILL_TOKENS, DECODE_TOKENS = 512, 64


def main() -> None:
    """Measure one of the two, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[0, 32, 64, 128])
    parser.add_argument("--threads", type=int, default=2)
    kinds = parser.add_subparsers(dest="kind", required=True)
    quality = kinds.add_parser("quality")
    quality.add_argument("--source", type=Path, default=Path("build/reference"))
    quality.add_argument(
        "--recipes", nargs="+", choices=RECIPES, default=["int8", "default", "accurate"]
    )
    quality.add_argument("--max-tokens", type=int, default=8192)
    speed = kinds.add_parser("speed")
    speed.add_argument("folder", type=Path)
    speed.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rows = measure_quality(options) if options.kind == "quality" else measure_speed(options)
    header = list(rows[0])
    sys.stdout.write(f"| {' | '.join(header)} |\n|{'---|' * len(header)}\n")
    for row in rows:
        sys.stdout.write(f"| {' | '.join(str(value) for value in row.values())} |\n")
    sys.stdout.write(f"{json.dumps(rows)}\n")


def measure_quality(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each recipe and size."""
    import torch

    torch.set_num_threads(options.threads)
    if not options.source.exists():
        build_reference(options.source)
    rows = []
    with tempfile.TemporaryDirectory() as root:
        for recipe in options.recipes:
            folder = Path(root) / recipe
            phi3ov.export_model(options.source, folder, compression=RECIPES[recipe], progress=False)
            for size in options.sizes:
                config = phi3ov.RuntimeConfig(
                    inference_precision="f32",
                    kv_cache_precision="f32",
                    dynamic_quantization_group_size=size,
                )
                report = compare(
                    options.source,
                    folder,
                    max_tokens=options.max_tokens,
                    prompts=(),
                    config=config,
                    progress=False,
                )
                row = {
                    "recipe": recipe,
                    "group": size,
                    "KL mean": round(report.mean_kl, 4),
                    "KL p99": round(report.p99_kl, 3),
                    "same first choice": f"{report.top1_agreement:.1%}",
                }
                rows.append(row)
                print(row, file=sys.stderr, flush=True)
    return rows


def measure_speed(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each size: tokens per second, medians over the rounds."""
    prefill: dict[int, list[float]] = {size: [] for size in options.sizes}
    decode: dict[int, list[float]] = {size: [] for size in options.sizes}
    for turn in range(options.rounds):
        for size in options.sizes:
            config = phi3ov.RuntimeConfig(
                threads=options.threads, dynamic_quantization_group_size=size
            )
            with phi3ov.load_model(
                options.folder, device="CPU", config=config, verify=False
            ) as model:
                ids = model.tokenizer.encode_text("The lighthouse keeper counts waves. " * 200)
                prompt = model.tokenizer.decode(ids[:PREFILL_TOKENS])
                timings = model.complete(prompt, max_new_tokens=DECODE_TOKENS).timings
                prefill[size].append(PREFILL_TOKENS / timings.first_token_seconds)
                decode[size].append(timings.tokens_per_second)
            print(turn, size, prefill[size][-1], decode[size][-1], file=sys.stderr, flush=True)
    base = options.sizes[0]
    return [
        {
            "group": size,
            "prefill, tokens/s": round(statistics.median(prefill[size]), 1),
            f"of {base}'s prefill": ratio(prefill[size], prefill[base]),
            "decode, tokens/s": round(statistics.median(decode[size]), 1),
            f"of {base}'s decode": ratio(decode[size], decode[base]),
        }
        for size in options.sizes
    ]


def ratio(rates: list[float], others: list[float]) -> float:
    """Return the median of the ratios within a round."""
    return round(statistics.median(a / b for a, b in zip(rates, others, strict=True)), 2)


if __name__ == "__main__":
    main()
