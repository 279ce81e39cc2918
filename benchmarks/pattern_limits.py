"""How long openvino-genai takes for the first tokens of a pattern: genai's own way and phi3ov's.

What it depends on is the vocabulary, so any exported model with a real one will do:

    python benchmarks/pattern_limits.py ARTIFACT

Each pattern runs in a process of its own, which is ended after a minute. Decisions 29 and 30.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time

TOKENS = 12
MOST_SECONDS = 60
PATTERNS = (
    ".*" * 50, ".?" * 10, ".?" * 20, ".?" * 40, "[a-z]?" * 20, "[a-z]?" * 50, "(.|){10}",
    "(.|){30}", ".{1,20}.{1,20}", r"(\w+ ?){1,20}", r"(\w+ ?){1,50}", r"(\w+ ?){1,200}",
    r"(\S+ ?){1,50}", "[^,]*(,[^,]*){0,40}", "[a-z]{19000}", "(ab?){5000}", ".{0,400}",
    "(.{0,400}){2}",
)  # fmt: skip


def measure(artifact: str, pattern: str, way: str) -> None:
    """Print how many seconds the first tokens take."""
    import openvino_genai

    from phi3ov.structured import regex
    from phi3ov.structured.ebnf import rules

    regex.MOST_VARIABLE = regex.MOST_IN_A_ROW = sys.maxsize
    pipeline = openvino_genai.LLMPipeline(artifact, "CPU")
    config = openvino_genai.GenerationConfig(max_new_tokens=TOKENS, apply_chat_template=False)
    if way == "genai":
        structure = openvino_genai.StructuredOutputConfig(regex=pattern)
    else:
        grammar = rules(regex.regex_grammar(pattern).expression).replace("answer", "root", 1)
        structure = openvino_genai.StructuredOutputConfig(grammar=grammar)
    config.structured_output_config = structure
    start = time.perf_counter()
    pipeline.generate("a", config)
    print(round(time.perf_counter() - start, 2))


def main(artifact: str) -> None:
    """Measure all patterns both ways; the last line is JSON."""
    seconds: dict[str, dict[str, float | None]] = {}
    print("| pattern | genai's own grammar: seconds | phi3ov's |\n|---|--:|--:|")
    for pattern in PATTERNS:
        seconds[pattern] = {}
        for way in ("genai", "phi3ov"):
            command = [sys.executable, __file__, artifact, pattern, way]
            try:
                done = subprocess.run(
                    command, capture_output=True, text=True, timeout=MOST_SECONDS, check=True
                )
                seconds[pattern][way] = float(done.stdout.split()[-1])
            except subprocess.TimeoutExpired:
                seconds[pattern][way] = None
        shown = [
            f"over {MOST_SECONDS}" if took is None else f"{took:.1f}"
            for took in seconds[pattern].values()
        ]
        print(f"| `{pattern[:40]}` | {shown[0]} | {shown[1]} |", flush=True)
    print(json.dumps(seconds))


if __name__ == "__main__":
    if len(sys.argv) == 2:
        main(sys.argv[1])
    else:
        measure(*sys.argv[1:])
