"""The truth that every engine is held against: transformers in fp32, slow and obvious.

Each token is one forward pass over everything before it, without a cache, so nothing can be
stale. For LongRoPE both factor sets are set to the chosen one, so nothing can switch.
"""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM

Pin = Literal["short", "long"]

LEAST_MARGIN = 2e-4
"""A truth whose best two logits are closer would not be fair to fp32 rounding (2e-5 here)."""


@cache
def load_truth(checkpoint: Path, pin: Pin | None = None) -> Any:
    """Load a checkpoint in fp32, with one set of LongRoPE factors for all lengths if pinned."""
    config = AutoConfig.from_pretrained(checkpoint)
    if pin is not None:
        factors = copy.copy(config.rope_parameters[f"{pin}_factor"])
        config.rope_parameters["short_factor"] = config.rope_parameters["long_factor"] = factors
        if "long_mscale" in config.rope_parameters:
            scale = config.rope_parameters[f"{pin}_mscale"]
            config.rope_parameters["short_mscale"] = config.rope_parameters["long_mscale"] = scale
    model = AutoModelForCausalLM.from_pretrained(checkpoint, config=config, dtype=torch.float32)
    return model.eval()


def greedy(
    checkpoint: Path, prompt_ids: list[int], max_new_tokens: int, *, pin: Pin | None = None
) -> tuple[int, ...]:
    """Return the greedy continuation, which must be unambiguous in fp32."""
    return _greedy(checkpoint, tuple(prompt_ids), max_new_tokens, pin)


@cache
def _greedy(
    checkpoint: Path, prompt_ids: tuple[int, ...], max_new_tokens: int, pin: Pin | None
) -> tuple[int, ...]:
    model = load_truth(checkpoint, pin)
    ids = list(prompt_ids)
    for _ in range(max_new_tokens):
        with torch.inference_mode():
            logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
        best, second = logits.topk(2).values.tolist()
        assert best - second > LEAST_MARGIN, "the test's model wavers: draw its weights anew"
        ids.append(int(logits.argmax()))
    return tuple(ids[len(prompt_ids) :])


def prompt_text(length: int, seed: int = 0) -> str:
    """Return random lower-case text: one token per character."""
    generator = torch.Generator().manual_seed(seed)
    letters = torch.randint(ord("a"), ord("z") + 1, (length,), generator=generator)
    return "".join(map(chr, letters.tolist()))
