"""What a coarser KV cache costs, by the position of the token.

    .venv/bin/python benchmarks/kv_precision.py ARTIFACT [--text FILE]

All else is float32 and nothing else is rounded, so the only difference between two runs is the
cache. The text is read in chunks of one block, as an answer that grows would be; each chunk is
predicted from the cache of all before it. The table holds the mean KL divergence (nats) from the
float32 cache, the share of tokens whose likeliest token stays, and the bytes of one token's keys
and values. The last line is the same as JSON.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import phi3ov
from phi3ov.engine.logits import divergence, log_probabilities
from phi3ov.engine.paged.model import BLOCK_TOKENS, PagedModel
from phi3ov.exporter.calibration import evaluation_text
from phi3ov.prompt.chat_tokenizer import ChatTokenizer
from phi3ov.runtime.config import RuntimeConfig
from phi3ov.runtime.rope import choose_context

EXACT = RuntimeConfig.exact()
CACHES: dict[str, dict[str, Any]] = {
    "f16": {"kv_cache_precision": "f16"},
    "u8": {"kv_cache_precision": "u8"},
    "u8, keys by token": {"kv_cache_precision": "u8", "key_cache_scales": "token"},
    "keys u8, values u4": {"key_cache_precision": "u8", "value_cache_precision": "u4"},
    "keys u4, values u8": {"key_cache_precision": "u4", "value_cache_precision": "u8"},
    "u4": {"kv_cache_precision": "u4"},
    "u4, keys by token": {"kv_cache_precision": "u4", "key_cache_scales": "token"},
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--text", type=Path, help="default: the reports' own")
    parser.add_argument("--tokens", type=int, default=2048)
    options = parser.parse_args()
    artifact = phi3ov.Artifact.open(options.artifact)
    tokenizer = ChatTokenizer.from_folder(artifact.path, artifact.chat_format)
    text = options.text.read_text(encoding="utf-8") if options.text else evaluation_text()
    ids = tokenizer.encode_text(text)[: options.tokens]
    edges = [0, *(edge for edge in (128, 256, 512, 1024, 2048, 4096) if edge < len(ids)), len(ids)]
    exact, _ = predict(artifact, ids, EXACT)
    spans = [f"{low} to {high - 1}" for low, high in pairwise(edges)]
    print(f"| cache | bytes per token | {' | '.join(spans)} | same first choice |")
    print(f"|---|--:|{'--:|' * (len(spans) + 1)}")
    rows = {}
    for name, fields in CACHES.items():
        config = replace(EXACT, **({"kv_cache_precision": None} | fields))
        found, token_bytes = predict(artifact, ids, config)
        kl = divergence(exact, found)
        means = [float(kl[low:high].mean()) for low, high in pairwise(edges)]
        same = float((exact.argmax(1) == found.argmax(1)).mean())
        rows[name] = {"bytes": token_bytes, "kl": means, "same": same}
        shown = " | ".join(f"{mean:.5f}" for mean in means)
        print(f"| {name} | {token_bytes} | {shown} | {same:.3f} |", flush=True)
    print(json.dumps({"tokens": len(ids), "edges": edges, "rows": rows}))


def predict(
    artifact: phi3ov.Artifact, ids: list[int], config: RuntimeConfig
) -> tuple[NDArray[np.float64], int]:
    """Return the log-probabilities after each token, and the bytes of a token's cache."""
    context = choose_context(artifact.config, None)
    model = PagedModel(artifact, device="CPU", config=config, context=context)
    model.reserve(len(ids), keep=0)
    rows = [
        log_probabilities(model.read_all(ids[start : start + BLOCK_TOKENS], past=start))
        for start in range(0, len(ids), BLOCK_TOKENS)
    ]
    token_bytes = sum(tensor.block_bytes for tensor in model.layout) // BLOCK_TOKENS
    return np.concatenate(rows), token_bytes


if __name__ == "__main__":
    main()
