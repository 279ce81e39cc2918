"""When several tokens per pass pay: prompt lookup, and a draft model, beside neither.

    .venv/bin/python benchmarks/speculation.py --artifact FOLDER [--draft FOLDER]

A pass reads all weights once, for one token or for a few, so where memory is the limit each
accepted token is nearly free, and each refused one costs its arithmetic. Four tasks: an answer
that repeats its prompt, one that repeats part of it, one that is new, and one that never says a
token twice, in which there is nothing to look up. "fixed" checks all candidates in each pass,
whether they pay or not. The models stay loaded and take turns, every second round in the other
order; the ratio within a round counts, the median over rounds.

Prints a Markdown table; the last line is the same as JSON. With ``--limit 0.97`` it fails where
adaptive prompt lookup makes an answer with nothing to look up slower than that.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import phi3ov

LOOKUP = "prompt lookup"
TEXT = (
    "The harbour office opens at eight. Ships longer than forty metres need a pilot, who comes "
    "aboard two miles before the lighthouse. The fee is paid at the office, in cash or by card. "
)
STORY = "Write a long story about a fox and a train."
NOTHING = "nothing to look up"
TASKS: dict[str, tuple[str, dict[str, float]]] = {
    "repeat": (f"Repeat this text word for word: {TEXT}", {}),
    "answer from the text": (
        f"{TEXT} What do ships longer than forty metres need, and who pays?",
        {},
    ),
    "write something new": (STORY, {}),
    NOTHING: (STORY, {"repetition_penalty": 3.0}),
}
"""By name: the message, and the options of the call."""


def main() -> None:
    """Load the model once with each kind of speculation, let them take turns, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--artifact", type=Path, default=Path("build/reference-int4"))
    parser.add_argument("--draft", type=Path)
    parser.add_argument("--new-tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engine", choices=("pipeline", "worker"), default="pipeline")
    parser.add_argument("--together", type=int, default=1, help="answers at once (worker)")
    parser.add_argument("--threads", type=int, help="default: phi3ov's choice")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--limit", type=float)
    options = parser.parse_args()
    kinds: dict[str, Any] = {
        "none": None,
        LOOKUP: phi3ov.PromptLookup(),
        f"{LOOKUP}, fixed": phi3ov.PromptLookup(adaptive=False),
    }
    if options.draft is not None:
        kinds["draft model"] = phi3ov.DraftModel(options.draft)
        kinds["draft model, fixed"] = phi3ov.DraftModel(options.draft, adaptive=False)
    with ExitStack() as stack:
        models = {
            kind: stack.enter_context(
                phi3ov.load_model(
                    options.artifact,
                    device="CPU",
                    engine=options.engine,
                    speculation=speculation,
                    config=phi3ov.RuntimeConfig(threads=options.threads),
                    tuning="off",
                )
            )
            for kind, speculation in kinds.items()
        }
        rounds = [
            {
                (task, kind): measure(models[kind], task, options.new_tokens, options.together)
                for task in options.tasks
                for kind in in_turn(list(kinds), number)
            }
            for number in range(options.rounds)
        ]
    rows = [summarize(rounds, task, kind) for task in options.tasks for kind in kinds]
    print("| task | speculation | candidates/pass | tokens/pass | tokens/s | x none |")
    print("|---|---|--:|--:|--:|--:|")
    for row in rows:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")
    print(json.dumps(rows))
    if options.limit is not None:
        [ratio] = [
            row["ratio"] for row in rows if (row["task"], row["speculation"]) == (NOTHING, LOOKUP)
        ]
        if not isinstance(ratio, float) or ratio < options.limit:
            raise SystemExit(f"{NOTHING}: {ratio} of the speed without, at least {options.limit}")


def in_turn(kinds: list[str], number: int) -> list[str]:
    """Return the order of a round."""
    return kinds if number % 2 == 0 else kinds[::-1]


def measure(model: phi3ov.Phi3Model, task: str, new_tokens: int, together: int) -> dict[str, float]:
    """Answer ``together`` times at once."""
    prompt, options = TASKS[task]
    asked = [[phi3ov.Message("user", f"{number}. {prompt}")] for number in range(together)]
    if together == 1:
        asked = [[phi3ov.Message("user", prompt)]]
    started = time.perf_counter()
    replies = [
        result.reply
        for result in model.iter_batch(asked, max_new_tokens=new_tokens, **options)  # type: ignore[call-overload]
    ]
    seconds = time.perf_counter() - started
    tokens = sum(reply.usage.completion_tokens for reply in replies)
    passes = tokens - sum(reply.usage.accepted_tokens for reply in replies)
    checked = sum(reply.usage.checked_tokens for reply in replies)
    return {
        "candidates_per_pass": checked / passes if passes else 0.0,
        "tokens_per_pass": tokens / passes if passes else 0.0,
        "tokens_per_second": replies[0].timings.tokens_per_second
        if together == 1
        else tokens / seconds,
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
        "candidates_per_pass": round(
            statistics.median(measured["candidates_per_pass"] for measured in own), 2
        ),
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
