"""When several tokens per pass pay: prompt lookup, and a draft model, beside neither.

    .venv/bin/python benchmarks/speculation.py --artifact FOLDER [--draft FOLDER]

A pass reads all weights once, for one token or for a few, so where memory is the limit each
accepted token is nearly free, and each refused one costs its arithmetic. Three tasks: an answer
that repeats its prompt, one that repeats part of it, and one that is new. The models stay loaded
and take turns, round after round; the ratio within a round counts, the median over rounds.

Prints a Markdown table; the last line is the same as JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import phi3ov

TEXT = (
    "The harbour office opens at eight. Ships longer than forty metres need a pilot, who comes "
    "aboard two miles before the lighthouse. The fee is paid at the office, in cash or by card. "
)
TASKS = {
    "repeat": f"Repeat this text word for word: {TEXT}",
    "answer from the text": f"{TEXT} What do ships longer than forty metres need, and who pays?",
    "write something new": "Write a long story about a fox and a train.",
}


def main() -> None:
    """Load the model once with each kind of speculation, let them take turns, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--artifact", type=Path, default=Path("build/reference-int4"))
    parser.add_argument("--draft", type=Path)
    parser.add_argument("--new-tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    kinds: dict[str, Any] = {"none": None, "prompt lookup": phi3ov.PromptLookup()}
    if options.draft is not None:
        kinds["draft model"] = phi3ov.DraftModel(path=options.draft)
    with ExitStack() as stack:
        models = {
            kind: stack.enter_context(
                phi3ov.load_model(options.artifact, device="CPU", speculation=speculation)
            )
            for kind, speculation in kinds.items()
        }
        rounds = [
            {
                (task, kind): measure(model, prompt, options.new_tokens)
                for task, prompt in TASKS.items()
                for kind, model in models.items()
            }
            for _ in range(options.rounds)
        ]
    rows = [summarize(rounds, task, kind) for task in TASKS for kind in kinds]
    print("| task | speculation | tokens/pass | tokens/s | x none |")
    print("|---|---|---|---|---|")
    for row in rows:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")
    print(json.dumps(rows))


def measure(model: phi3ov.Phi3Model, prompt: str, new_tokens: int) -> dict[str, float]:
    """Answer once."""
    reply = phi3ov.Phi3Chat(model).generate(prompt, max_new_tokens=new_tokens)
    return {
        "tokens_per_pass": reply.usage.tokens_per_pass,
        "tokens_per_second": reply.timings.tokens_per_second,
    }


def summarize(rounds: list[Any], task: str, kind: str) -> dict[str, str | float]:
    """Return the medians of one row."""
    own = [measured[task, kind] for measured in rounds]
    ratios = [
        measured[task, kind]["tokens_per_second"] / measured[task, "none"]["tokens_per_second"]
        for measured in rounds
        if measured[task, "none"]["tokens_per_second"]  # 0 of an answer that stopped at once
    ]
    return {
        "task": task,
        "speculation": kind,
        "tokens_per_pass": round(
            statistics.median(measured["tokens_per_pass"] for measured in own), 2
        ),
        "tokens_per_second": round(
            statistics.median(measured["tokens_per_second"] for measured in own), 1
        ),
        "ratio": round(statistics.median(ratios), 2) if ratios else "no answer",
    }


if __name__ == "__main__":
    main()
