"""Time and memory of exporting a full-size Phi-3-mini, beside ``optimum-cli export openvino``.

    .venv/bin/python benchmarks/export_full_size.py [--work DIR] [--rounds 2] [--limit-gib 6]

The checkpoint has Phi-3-mini-4k's architecture (3.82 billion parameters, bf16, 7.6 GB) and
random weights: size, speed and memory are the real model's, answers are noise. ``phi3ov``,
``by-nncf`` and ``optimum-cli`` make int4, symmetric, group 128, ratio 0.6, one after the other,
in turns; ``by-nncf`` is phi3ov with NNCF's own choice of layers and rounding. ``small``,
``accurate`` and ``npu`` are phi3ov's presets, measured with ``--only``.

The physics: converting maps the checkpoint and writes it once more (disk); compressing reads
each weight once and searches scales (arithmetic). So *resident* memory is mostly mapped files,
which the kernel takes back when it needs room; *anonymous* memory is what a laptop must really
have. Both are the largest sum over the exporter's processes, sampled from the kernel every
100 ms (Linux). With ``--limit-gib`` each exporter runs inside a cgroup of that size (needs root
and cgroup v2 or v1), which shows that it completes there; the checkpoint is taken out of the
page cache first, because pages that others have read do not count for the group.

For phi3ov, time and anonymous peak of each phase follow, read from its progress lines. The last
line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HIDDEN, FFN, LAYERS, HEADS, VOCABULARY = 3072, 8192, 32, 32, 32064
BY_NNCF = (
    "import sys, phi3ov; "
    "phi3ov.export_model(*sys.argv[1:], compression=phi3ov.Int4Compression("
    "layer_choice='nncf', rounding='nncf'))"
)
PRESETS = ("small", "accurate", "npu")
RECIPE = ("--weight-format", "int4", "--sym", "--group-size", "128", "--ratio", "0.6")


def main() -> None:
    """Build the checkpoint if it is not there, export it both ways, print what it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("build/full-size"))
    parser.add_argument("--limit-gib", type=float)
    parser.add_argument("--only", nargs="+", default=["phi3ov", "by-nncf", "optimum-cli"])
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    checkpoint = options.work / "checkpoint"
    if not (checkpoint / "config.json").is_file():
        build_checkpoint(checkpoint)
    output = options.work / "exported"
    binary = Path(sys.executable).parent
    commands = {
        "phi3ov": [binary / "phi3ov", "export", checkpoint, output],
        "by-nncf": [sys.executable, "-c", BY_NNCF, checkpoint, output],
        **{
            preset: [binary / "phi3ov", "export", checkpoint, output, "--preset", preset]
            for preset in PRESETS
        },
        "optimum-cli": [
            binary / "optimum-cli", "export", "openvino", "--model", checkpoint,
            "--task", "text-generation-with-past", *RECIPE, output,
        ],
    }  # fmt: skip
    results = []
    for name, command in options.rounds * list(commands.items()):
        if name in options.only:
            shutil.rmtree(output, ignore_errors=True)
            results.append(measure(name, [str(part) for part in command], options))
            shutil.rmtree(output, ignore_errors=True)
    print(f"{'exporter':12} {'seconds':>8} {'resident GB':>12} {'anonymous GB':>13} {'disk GB':>8}")
    for result in results:
        print(
            f"{result['exporter']:12} {result['seconds']:8.0f} {result['peak_resident_gb']:12.2f} "
            f"{result['peak_anonymous_gb']:13.2f} {result['artifact_gb']:8.2f}  "
            f"exit {result['exit_code']}"
        )
    for result in results:
        for phase in result["phases"]:
            print(
                f"  {phase['phase']:14} {phase['seconds']:6.0f} s  "
                f"{phase['peak_anonymous_gb']:5.2f} GB anonymous"
            )
    print(json.dumps(results))


def measure(name: str, command: list[str], options: argparse.Namespace) -> dict[str, object]:
    """Run one exporter and return what it took."""
    log = options.work / f"{name}.log"
    if options.limit_gib is not None:
        _forget_cached(options.work / "checkpoint")
    started = time.perf_counter()
    with _cgroup(options.limit_gib) as enter, log.open("w") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=file,
            preexec_fn=enter,  # noqa: PLW1509 - no thread of ours holds a lock here
            env={**os.environ, "OMP_NUM_THREADS": "2"},
        )
        peaks = _Peaks(process.pid)
        exit_code = process.wait()
        peaks.stop()
    output = options.work / "exported"
    size = sum(path.stat().st_size for path in output.rglob("*")) if output.is_dir() else 0
    return {
        "exporter": name,
        "seconds": time.perf_counter() - started,
        "peak_resident_gb": peaks.resident / 1e9,
        "peak_anonymous_gb": peaks.anonymous / 1e9,
        "artifact_gb": size / 1e9,
        "exit_code": exit_code,
        "phases": _phases(log.read_text(encoding="utf-8", errors="replace"), peaks.samples),
        "limit_gib": options.limit_gib,
    }


def _phases(log: str, samples: list[tuple[float, int]]) -> list[dict[str, object]]:
    """Return what each phase took that the log's progress lines tell of."""
    begun = [
        (name, float(seconds))
        for name, seconds in re.findall(r"^phi3ov export \[\d/\d\] (.+) \((\d+) s\)$", log, re.M)
    ]
    if not begun or not samples:
        return []
    # The first line comes when Python and phi3ov have started, about so many seconds later.
    offset = 0.5
    ends = [start for _, start in begun[1:]] + [samples[-1][0]]
    return [
        {
            "phase": name,
            "seconds": end - start,
            "peak_anonymous_gb": max(
                (size for when, size in samples if start <= when - offset <= end), default=0
            )
            / 1e9,
        }
        for (name, start), end in zip(begun, ends, strict=True)
    ]


def _forget_cached(folder: Path) -> None:
    """Take a folder's files out of the page cache."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class _Peaks:
    """Samples resident and anonymous memory of a process and its children."""

    def __init__(self, pid: int) -> None:
        self.resident = self.anonymous = 0
        self.samples: list[tuple[float, int]] = []
        self._started = time.perf_counter()
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(0.1):
            resident = anonymous = 0
            for pid in self._family():
                try:
                    status = Path(f"/proc/{pid}/status").read_text()
                except OSError:
                    continue
                values = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
                resident += int(values.get("VmRSS", "0").split()[0]) * 1024
                anonymous += int(values.get("RssAnon", "0").split()[0]) * 1024
            self.resident = max(self.resident, resident)
            self.anonymous = max(self.anonymous, anonymous)
            self.samples.append((time.perf_counter() - self._started, anonymous))

    def _family(self) -> list[int]:
        family = [self._pid]
        for pid in family:
            try:
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            except OSError:
                continue
            family += map(int, children)
        return family


@contextmanager
def _cgroup(limit_gib: float | None) -> Iterator[object]:
    """Give a function that moves the calling process into a cgroup of so much memory."""
    if limit_gib is None:
        yield None
        return
    v2 = Path("/sys/fs/cgroup/cgroup.controllers").is_file()
    root = Path("/sys/fs/cgroup") if v2 else Path("/sys/fs/cgroup/memory")
    if v2:
        (root / "cgroup.subtree_control").write_text("+memory")
    group = root / "phi3ov-export"
    group.mkdir(exist_ok=True)
    limit = group / ("memory.max" if v2 else "memory.limit_in_bytes")
    limit.write_text(str(int(limit_gib * 2**30)))
    try:
        yield lambda: (group / "cgroup.procs").write_text(str(os.getpid()))
    finally:
        group.rmdir()


def build_checkpoint(folder: Path) -> None:
    """Write a Phi-3-mini-4k with random bf16 weights, a shard per eight layers."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    write_tokenizer(folder)
    torch.manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return (torch.randn(shape) * 0.02).to(torch.bfloat16)

    names: dict[str, str] = {}

    def save(shard: int, tensors: dict[str, torch.Tensor]) -> None:
        file = f"model-{shard:05}-of-00005.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        names.update(dict.fromkeys(tensors, file))

    for shard in range(4):
        tensors = {}
        for index in range(shard * LAYERS // 4, (shard + 1) * LAYERS // 4):
            prefix = f"model.layers.{index}"
            tensors |= {
                f"{prefix}.self_attn.qkv_proj.weight": draw(3 * HIDDEN, HIDDEN),
                f"{prefix}.self_attn.o_proj.weight": draw(HIDDEN, HIDDEN),
                f"{prefix}.mlp.gate_up_proj.weight": draw(2 * FFN, HIDDEN),
                f"{prefix}.mlp.down_proj.weight": draw(HIDDEN, FFN),
                f"{prefix}.input_layernorm.weight": torch.ones(HIDDEN, dtype=torch.bfloat16),
                f"{prefix}.post_attention_layernorm.weight": torch.ones(
                    HIDDEN, dtype=torch.bfloat16
                ),
            }
        save(shard + 1, tensors)
    save(
        5,
        {
            "model.embed_tokens.weight": draw(VOCABULARY, HIDDEN),
            "lm_head.weight": draw(VOCABULARY, HIDDEN),
            "model.norm.weight": torch.ones(HIDDEN, dtype=torch.bfloat16),
        },
    )
    index = {"metadata": {}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "rms_norm_eps": 1e-5,
        "sliding_window": 2047,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


TOKENS = ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer of 256 bytes and the control tokens, with Phi-3's chat format."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False, rstrip=True) for token in TOKENS]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    ends = [tokenizer.token_to_id(token) for token in ("<|endoftext|>", "<|end|>")]
    for name, values in {
        "tokenizer_config.json": {
            "eos_token": "<|endoftext|>",
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
        "generation_config.json": {"eos_token_id": ends},
    }.items():
        (folder / name).write_text(json.dumps(values, indent=2), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")


if __name__ == "__main__":
    main()
