"""llama.cpp's importance matrix: the mean square of each column's activations.

The wheel of llama-cpp-python has no ``llama-imatrix``. That tool runs the model on a text, sums the
squares of what enters each matrix of the blocks, column by column, and divides by the number of
tokens. It leaves out the output matrix unless ``--process-output`` is given. The same sums are
made here by torch, in float32, and handed to ``llama_model_quantize`` in memory, so no file in
llama.cpp's format is written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from phi3ov_bench.gguf_writer import gguf_name
from transformers import AutoModelForCausalLM


def measure_importance(
    checkpoint: Path, samples: Sequence[Sequence[int]]
) -> dict[str, NDArray[np.float32]]:
    """Run the checkpoint on samples and return each matrix's mean squares, by name in a GGUF.

    Args:
        checkpoint: The folder of a Phi-3.
        samples: Token ids; each sample is read from an empty context.
    """
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, local_files_only=True
    ).eval()
    sums: dict[str, Any] = {}

    def add_to(name: str) -> Callable[..., None]:
        def add(_module: Any, inputs: tuple[Any, ...]) -> None:
            squares = inputs[0].double().square().flatten(0, -2).sum(0)
            sums[name] = sums.get(name, 0) + squares

        return add

    for name, module in model.model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(add_to(gguf_name(f"model.{name}.weight")))
    with torch.inference_mode():
        for sample in samples:
            model.model(torch.tensor([list(sample)]), use_cache=False)
    tokens = sum(len(sample) for sample in samples)
    return {name: (total / tokens).float().numpy() for name, total in sums.items()}


def save_importance(checkpoint: Path, samples: Sequence[Sequence[int]], target: Path) -> None:
    """Write `measure_importance` as an ``.npz`` file, if it is not there."""
    if target.exists():
        return
    columns: dict[str, Any] = {**measure_importance(checkpoint, samples)}
    unfinished = target.with_name(f"unfinished-{target.name}")
    np.savez(unfinished, **columns)
    unfinished.replace(target)
