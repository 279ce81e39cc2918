"""A checkpoint of Phi-3-mini's size that answers exactly like the small reference checkpoint.

    .venv/bin/python benchmarks/wide_reference.py REFERENCE TARGET

No second real model can be had offline, and one with random weights says nothing of how many
tokens of a draft are accepted. So the reference (hidden 576, 30 layers, 9 heads) is laid into
wider layers full of zeros: hidden 3072, 48 heads of 64, 16 KV heads, intermediate 8192, 32 layers.
A zero is read and multiplied like any other number, so a token costs what it costs on
Phi-3-mini, and the result is the reference's:

- activations are zero beyond column 576, so RMSNorm's mean is 576/3072 of what it was: its weights
  are scaled by the root of that, its epsilon by that itself;
- query heads 0 to 8 still meet KV heads 0 to 2 (three share one), and no other head reaches
  `o_proj`; the added columns of `down_proj` and the two added layers add nothing.

What is left is float16's rounding of the scaled norms. 6.7 GB; needs as much memory for a moment.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS, HEAD = 3072, 8192, 32, 48, 16, 64


def widen(reference: Path, target: Path) -> None:
    """Write the wide checkpoint of ``reference`` into the new folder ``target``."""
    shutil.copytree(reference, target, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((reference / "config.json").read_text(encoding="utf-8"))
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    intermediate = config["intermediate_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    share = hidden / HIDDEN
    with safe_open(reference / "model.safetensors", framework="pt") as file:
        old = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def norm(weight: torch.Tensor) -> torch.Tensor:
        wide = torch.zeros(HIDDEN, dtype=torch.float16)
        wide[:hidden] = weight * math.sqrt(share)
        return wide

    def lay(weight: torch.Tensor, shape: tuple[int, int], *parts: tuple[int, int]) -> torch.Tensor:
        """Lay blocks of rows, each (from, to), of ``weight`` into zeros."""
        wide = torch.zeros(shape, dtype=torch.float16)
        ends = [start for start, _ in parts[1:]] + [weight.shape[0]]
        for (start, place), end in zip(parts, ends, strict=True):
            wide[place : place + end - start, : weight.shape[1]] = weight[start:end]
        return wide

    embedding = old["model.embed_tokens.weight"]
    new = {
        "model.embed_tokens.weight": lay(embedding, (len(embedding), HIDDEN), (0, 0)),
        "model.norm.weight": norm(old["model.norm.weight"]),
    }
    rows = HEADS * HEAD, KV_HEADS * HEAD
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        source = at if layer < layers else "model.layers.0."
        silent = 1 if layer < layers else 0  # an added layer adds nothing to the stream
        keys, values = heads * HEAD, (heads + kv_heads) * HEAD
        new |= {
            at + "input_layernorm.weight": norm(old[source + "input_layernorm.weight"]),
            at + "post_attention_layernorm.weight": norm(
                old[source + "post_attention_layernorm.weight"]
            ),
            at + "self_attn.qkv_proj.weight": lay(
                old[source + "self_attn.qkv_proj.weight"],
                (rows[0] + 2 * rows[1], HIDDEN),
                (0, 0),
                (keys, rows[0]),
                (values, rows[0] + rows[1]),
            ),
            at + "self_attn.o_proj.weight": silent
            * lay(old[source + "self_attn.o_proj.weight"], (HIDDEN, rows[0]), (0, 0)),
            at + "mlp.gate_up_proj.weight": lay(
                old[source + "mlp.gate_up_proj.weight"],
                (2 * INTERMEDIATE, HIDDEN),
                (0, 0),
                (intermediate, INTERMEDIATE),
            ),
            at + "mlp.down_proj.weight": silent
            * lay(old[source + "mlp.down_proj.weight"], (HIDDEN, INTERMEDIATE), (0, 0)),
        }
    save_file(new, target / "model.safetensors", metadata={"format": "pt"})
    config |= {
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": config["rms_norm_eps"] * share,
    }
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Widen one checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reference", type=Path)
    parser.add_argument("target", type=Path)
    options = parser.parse_args()
    widen(options.reference, options.target)


if __name__ == "__main__":
    main()
