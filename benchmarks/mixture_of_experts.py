"""Speed and memory of a full-size mixture of experts beside a dense model of the same size.

    .venv/bin/python benchmarks/mixture_of_experts.py [--work DIR] [--rounds 7]

The mixture has the sizes of Phi-tiny-MoE (3.75 billion parameters, 32 blocks of 16 experts, two
per token), the dense model those of Phi-3-mini-4k (3.82 billion). Both have random weights: size,
speed and memory are the real models', answers are noise. The sizes of Phi-tiny-MoE are those of
its published config.json (hidden size 4096, experts 448 wide, 16 heads of 128, 4 of keys and
values); their sum is the size of the published weight files, 7.51 GB in bfloat16. Random routers
spread the tokens over all experts, as trained ones are trained to.

Both are exported by the same recipe (int4, symmetric, groups of 64, all block layers), one after
the other, and each checkpoint is removed before the next is made; 20 GB of disk are enough. Then
both are loaded by the worker engine, and decode in turns. The ratio is taken within a round, the
median over the rounds counts.

The physics: decoding one token alone reads each weight that it uses once, and nothing else takes
as long. So the seconds per token follow the bytes that a token reads: of the experts' weights an
eighth, of all others everything but the embedding. A prompt uses every expert, so reading one
gains only from doing less arithmetic. The last line is JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import shutil
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import export_full_size
import psutil

import phi3ov

HIDDEN, INNER, LAYERS, VOCABULARY = 4096, 448, 32, 32064
HEADS, KEY_VALUE_HEADS, HEAD = 16, 4, 128
EXPERTS, CHOSEN = 16, 2
RECIPE = phi3ov.Int4Compression(group_size=64, ratio=1.0)


def main() -> None:
    """Export both models, load both, decode and read prompts in turns."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("build/mixture"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--keep", action="store_true", help="keep the exports")
    options = parser.parse_args()
    builders = {"mixture": build_mixture, "dense": export_full_size.build_checkpoint}
    rows = {name: export(name, build, options.work) for name, build in builders.items()}
    measure(rows, options)
    if not options.keep:
        shutil.rmtree(options.work)
    print(table(rows))
    print(json.dumps(rows))


def export(name: str, build: Any, work: Path) -> dict[str, Any]:
    """Make a checkpoint, export it, remove it; return what the export took."""
    checkpoint, folder = work / f"{name}-checkpoint", work / name
    kept = work / f"{name}.json"
    row: dict[str, Any] = {"folder": str(folder)}
    if kept.is_file():
        row |= json.loads(kept.read_text(encoding="utf-8"))
    if not folder.is_dir():
        if not (checkpoint / "config.json").is_file():
            build(checkpoint)
        with Peak() as peak:
            report = phi3ov.export_model(checkpoint, folder, compression=RECIPE, progress=False)
        row["export_seconds"] = sum(report.phase_seconds.values())
        row["export_anonymous_gb"] = peak.anonymous / 1e9
        kept.write_text(json.dumps(row), encoding="utf-8")
        shutil.rmtree(checkpoint)
        gc.collect()
    artifact = phi3ov.Artifact.open(folder)
    layers = artifact.manifest.layers
    row["parameters"] = sum(layer.parameters for layer in layers)
    row["weights_gb"] = sum(layer.size_bytes for layer in layers) / 1e9
    row["read_per_token_gb"] = (
        sum(
            layer.size_bytes * (CHOSEN / EXPERTS if ".experts." in layer.name else 1)
            for layer in layers
            if "embed_tokens" not in layer.name
        )
        / 1e9
    )
    return row


class Peak:
    """The most anonymous memory that this process takes while the block runs."""

    def __init__(self) -> None:
        self.anonymous = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        status = Path("/proc/self/status")
        while not self._stop.wait(0.1):
            lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
            self.anonymous = max(self.anonymous, int(lines["RssAnon"].split()[0]) * 1024)


def measure(rows: dict[str, dict[str, Any]], options: argparse.Namespace) -> None:
    """Load both models, and add what decoding and reading takes to their rows."""
    config = phi3ov.RuntimeConfig(threads=options.threads)
    letters = random.Random(0)
    models: dict[str, phi3ov.Phi3Model] = {}
    with ExitStack() as stack:
        for name, row in rows.items():
            before = set(psutil.Process().children(recursive=True))
            started = time.perf_counter()
            model = phi3ov.load_model(row["folder"], device="CPU", engine="worker", config=config)
            models[name] = stack.enter_context(model)
            row["load_seconds"] = time.perf_counter() - started
            model.tokenizer.stop_tokens = {}  # every answer has its full length
            model.complete("warm up", max_new_tokens=4)
            workers = set(psutil.Process().children(recursive=True)) - before
            row["resident_gb"] = sum(each.memory_info().rss for each in workers) / 1e9
            row |= {"decode_tokens_per_second": [], "prompt_tokens_per_second": []}
        for _ in range(options.rounds):
            prompt = "".join(letters.choices("abcdefghij klmno", k=options.prompt_tokens))
            for name, model in models.items():
                reply = model.complete(prompt, max_new_tokens=options.tokens)
                usage = reply.usage
                assert usage.completion_tokens == options.tokens
                assert not usage.cached_tokens
                seconds = reply.timings.first_token_seconds
                rows[name]["prompt_tokens_per_second"].append(usage.prompt_tokens / seconds)
                rows[name]["decode_tokens_per_second"].append(reply.timings.tokens_per_second)


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Return a Markdown table, with the median of the ratios within a round."""
    mixture, dense = rows["mixture"], rows["dense"]

    def ratio(figure: str) -> float:
        return median(
            first / second for first, second in zip(mixture[figure], dense[figure], strict=True)
        )

    lines = [
        "| | mixture | dense | mixture / dense |",
        "|---|--:|--:|--:|",
    ]
    for title, figure, digits in (
        ("parameters (billions)", "parameters", 2),
        ("weights (GB)", "weights_gb", 2),
        ("weights read per token (GB)", "read_per_token_gb", 2),
        ("memory of the loaded model (GB)", "resident_gb", 2),
        ("export (s)", "export_seconds", 0),
        ("export, anonymous memory (GB)", "export_anonymous_gb", 2),
    ):
        first, second = mixture.get(figure, 0), dense.get(figure, 0)
        scale = 1e9 if figure == "parameters" else 1
        shown = f"{first / second:.2f}" if second else ""
        lines.append(
            f"| {title} | {first / scale:.{digits}f} | {second / scale:.{digits}f} | {shown} |"
        )
    for title, figure in (
        ("decoding (tokens/s)", "decode_tokens_per_second"),
        ("reading the prompt (tokens/s)", "prompt_tokens_per_second"),
    ):
        first, second = median(mixture[figure]), median(dense[figure])
        lines.append(f"| {title} | {first:.1f} | {second:.1f} | {ratio(figure):.2f} |")
    return "\n".join(lines)


def build_mixture(folder: Path) -> None:
    """Write a checkpoint of Phi-tiny-MoE's sizes with random bf16 weights, a shard per block."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    export_full_size.write_tokenizer(folder)
    torch.manual_seed(0)
    names: dict[str, str] = {}

    def draw(*shape: int) -> torch.Tensor:
        return (torch.randn(shape) * 0.02).to(torch.bfloat16)

    def norm(name: str) -> dict[str, torch.Tensor]:
        return {
            f"{name}.weight": torch.ones(HIDDEN, dtype=torch.bfloat16),
            f"{name}.bias": torch.zeros(HIDDEN, dtype=torch.bfloat16),
        }

    def save(tensors: dict[str, torch.Tensor]) -> None:
        file = f"model-{len(set(names.values())) + 1:05}-of-{LAYERS + 1:05}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        names.update(dict.fromkeys(tensors, file))

    query, key_or_value = HEADS * HEAD, KEY_VALUE_HEADS * HEAD
    attention = {
        "q_proj": (query, HIDDEN),
        "k_proj": (key_or_value, HIDDEN),
        "v_proj": (key_or_value, HIDDEN),
        "o_proj": (HIDDEN, query),
    }
    for index in range(LAYERS):
        block = f"model.layers.{index}"
        tensors = norm(f"{block}.input_layernorm") | norm(f"{block}.post_attention_layernorm")
        for name, shape in attention.items():
            tensors[f"{block}.self_attn.{name}.weight"] = draw(*shape)
            tensors[f"{block}.self_attn.{name}.bias"] = draw(shape[0])
        tensors[f"{block}.block_sparse_moe.gate.weight"] = draw(EXPERTS, HIDDEN)
        for expert in range(EXPERTS):
            for name, shape in {
                "w1": (INNER, HIDDEN),
                "w2": (HIDDEN, INNER),
                "w3": (INNER, HIDDEN),
            }.items():
                full = f"{block}.block_sparse_moe.experts.{expert}.{name}.weight"
                tensors[full] = draw(*shape)
        save(tensors)
    ends = norm("model.norm")
    ends["model.embed_tokens.weight"] = draw(VOCABULARY, HIDDEN)
    ends["lm_head.weight"] = draw(VOCABULARY, HIDDEN)
    ends["lm_head.bias"] = draw(VOCABULARY)
    save(ends)
    index_text = json.dumps({"metadata": {}, "weight_map": names})
    (folder / "model.safetensors.index.json").write_text(index_text, encoding="utf-8")
    config = {
        "architectures": ["PhiMoEForCausalLM"],
        "model_type": "phimoe",
        "attention_bias": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "head_dim": HEAD,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "lm_head_bias": True,
        "max_position_embeddings": 4096,
        "num_attention_heads": HEADS,
        "num_experts_per_tok": CHOSEN,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KEY_VALUE_HEADS,
        "num_local_experts": EXPERTS,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-5,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "router_jitter_noise": 0.01,
        "sliding_window": 2047,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": VOCABULARY,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
