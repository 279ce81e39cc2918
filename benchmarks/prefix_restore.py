"""A long prefix read again, beside the same prefix restored from its saved KV cache.

    make install
    .venv/bin/python benchmarks/prefix_restore.py                    # the reference model
    .venv/bin/python benchmarks/prefix_restore.py --artifact FOLDER  # any other export

Reading computes: two operations per weight and token. Restoring copies: the cache's bytes go
from the disk, or the system's page cache, into place. So one is bound by arithmetic, the other by
the disk or by memory. Each row is a fresh process that loads the model, answers one short prompt
(the first answer repacks weights), and then takes the time to the first token behind the prefix:

    read        engine="paged" reads the prefix
    restored    engine="paged" restores it; the file is in the page cache
    from disk   the same, after the file was dropped from the page cache (Linux)
    unverified  restored without comparing checksums
    stateful    what plain openvino offers: the states of the stateful model, read as float32,
                saved as float16, mapped and set again with `VariableState.state`

Processor time is what is left of a comparison on a machine that other work shares.

All must give the same greedy tokens as what was read ("stateful": as its own reading); the
last column says whether they did. The file's plain speed is measured beside: one read into
memory that is already there.

Prints a Markdown table; the last line is the same as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from reference_artifact import make_reference_artifact

import phi3ov

KINDS = ("read", "restored", "from disk", "unverified", "stateful")
QUESTION = "How is it started?"
NEW_TOKENS = 32
PREFILL_CHUNK_TOKENS = 512


def main() -> None:
    """Run each kind in a process of its own, round after round, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--artifact", type=Path, default=Path("build/reference-int4"))
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--kv-cache-precision", choices=("f32", "f16", "u8"), default="f16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the caches go; a temporary folder")
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)  # in a child
    options = parser.parse_args()
    if options.kind is not None:
        print(json.dumps(RUN[options.kind](options)))
        return
    make_reference_artifact(options.artifact)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        options.folder = Path(folder)
        rounds = [{kind: run_child(kind, options) for kind in KINDS} for _ in range(options.rounds)]
        speeds = {
            cold: file_speed(options.folder / "prefix.kv", cold=cold) for cold in (False, True)
        }
    rows = [summarize(rounds, kind) for kind in KINDS]
    result = {
        "tokens": rounds[0]["read"]["prefix_tokens"],
        "kv_cache_precision": options.kv_cache_precision,
        "file_read_mb_per_second": {"page cache": speeds[False], "disk": speeds[True]},
        "rows": rows,
    }
    print("| " + " | ".join(rows[0]) + " |")
    print("|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")
    print(json.dumps(result))


def run_child(kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run one kind in a fresh process."""
    if kind == "from disk":
        drop_from_page_cache(options.folder / "prefix.kv")
    done = subprocess.run(
        [
            sys.executable, __file__, "--kind", kind, "--artifact", options.artifact,
            "--tokens", str(options.tokens), "--folder", options.folder,
            "--kv-cache-precision", options.kv_cache_precision,
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(done.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1]))


class Clock:
    """Wall time and processor time of this process since it was made."""

    def __init__(self) -> None:
        """Start."""
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def read(self, name: str) -> dict[str, float]:
        """Return both, in seconds."""
        return {
            f"{name}_seconds": time.perf_counter() - self.wall,
            f"{name}_cpu_seconds": time.process_time() - self.cpu,
        }


def load(options: argparse.Namespace) -> phi3ov.Phi3Model:
    """Load the model and let it repack its weights."""
    precision = phi3ov.RuntimeConfig(kv_cache_precision=options.kv_cache_precision)
    model = phi3ov.load_model(
        options.artifact, device="CPU", engine="paged", config=precision, verify=False
    )
    phi3ov.Phi3Chat(model).generate("Hello", max_new_tokens=4)
    return model


def make_chat(model: phi3ov.Phi3Model, tokens: int) -> phi3ov.Phi3Chat:
    """Return a chat whose system message has about so many tokens."""
    sentences = (f"Part {number} is fixed with {number + 2} screws. " for number in range(tokens))
    text = "You answer from this manual. "
    while len(model.tokenizer.encode_text(text)) < tokens - 8:
        text += next(sentences)
    return phi3ov.Phi3Chat(model, system=text)


def ask(chat: phi3ov.Phi3Chat) -> dict[str, Any]:
    """Ask the question behind the prefix: for one token, which is timed, and then for more."""
    clock = Clock()
    first = chat.fork().generate(QUESTION, max_new_tokens=1)
    seconds = clock.read("first_token")
    answer = chat.generate(QUESTION, max_new_tokens=NEW_TOKENS).token_ids
    return {"answer": answer, "cached_tokens": first.usage.cached_tokens, **seconds}


def read(options: argparse.Namespace) -> dict[str, Any]:
    """Read the prefix, answer, and save the cache for the others."""
    with load(options) as model:
        chat = make_chat(model, options.tokens)
        prefix = chat.token_ids
        result = ask(chat)
        clock = Clock()
        model.save_kv_cache(prefix, options.folder / "prefix.kv")
        return {
            "prefix_tokens": len(prefix),
            "restore_seconds": 0.0,
            "restore_cpu_seconds": 0.0,
            **clock.read("save"),
            **result,
        }


def restore(options: argparse.Namespace) -> dict[str, Any]:
    """Restore the prefix and answer."""
    path = options.folder / "prefix.kv"
    with load(options) as model:
        chat = make_chat(model, options.tokens)
        clock = Clock()
        tokens = model.restore_kv_cache(path, verify=options.kind != "unverified")
        seconds = clock.read("restore")
        result = ask(chat)
        if result["cached_tokens"] != tokens:
            sys.exit(f"{result['cached_tokens']} of {tokens} restored tokens were used")
        return {"file_bytes": path.stat().st_size, **seconds, **result}


def stateful(options: argparse.Namespace) -> dict[str, Any]:
    """Do the same with the stateful model's states and openvino alone."""
    import openvino

    with load(options) as model:  # for its tokenizer
        chat = make_chat(model, options.tokens)
        prefix = [*chat.token_ids]
        user = model.tokenizer.encode_message(phi3ov.Message("user", QUESTION))
        question = [*user, *model.tokenizer.opening]
        stop_ids = model.tokenizer.stop_tokens
    compiled = openvino.Core().compile_model(
        options.artifact / "openvino_model.xml",
        "CPU",
        {"PERFORMANCE_HINT": "LATENCY", "KV_CACHE_PRECISION": options.kv_cache_precision},
    )
    request = compiled.create_infer_request()

    def feed(ids: list[int], past: int) -> int:
        inputs = {
            "input_ids": np.array([ids]),
            "attention_mask": np.ones((1, past + len(ids)), np.int64),
            "position_ids": np.arange(past, past + len(ids))[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        names = {name for port in compiled.inputs for name in port.get_names()}
        request.infer({name: value for name, value in inputs.items() if name in names})
        return int(request.get_tensor("logits").data[0, -1].argmax())

    def answer_to(ids: list[int], *, past: int) -> tuple[list[int], dict[str, float]]:
        clock = Clock()
        answer = [feed(ids, past)]
        seconds = clock.read("first_token")
        while len(answer) < NEW_TOKENS and answer[-1] not in stop_ids:
            answer.append(feed(answer[-1:], past + len(ids) + len(answer) - 1))
        return answer, seconds

    path = options.folder / "states.npy"
    feed(prefix[:8], 0)
    request.reset_state()
    for start in range(0, len(prefix), PREFILL_CHUNK_TOKENS):
        feed(prefix[start : start + PREFILL_CHUNK_TOKENS], start)
    clock = Clock()
    states = {variable.name: variable.state.data for variable in request.query_state()}
    with path.open("wb") as file:
        for data in states.values():
            file.write(data.astype(np.float16).data)
        file.flush()
        os.fsync(file.fileno())
    saving = clock.read("save")
    shape = next(iter(states.values())).shape
    expected, _ = answer_to(question, past=len(prefix))
    request.reset_state()
    clock = Clock()
    mapped = np.memmap(path, np.float16, "c", shape=(len(states), *shape))
    for number, variable in enumerate(request.query_state()):
        variable.state = openvino.Tensor(mapped[number], shared_memory=True)
    restoring = clock.read("restore")
    answer, first_token = answer_to(question, past=len(prefix))
    return {
        "answer": answer,
        "expected": expected,
        "file_bytes": path.stat().st_size,
        **saving,
        **restoring,
        **first_token,
    }


RUN = {
    "read": read,
    "restored": restore,
    "from disk": restore,
    "unverified": restore,
    "stateful": stateful,
}


def drop_from_page_cache(path: Path) -> None:
    """Make the next read of the file come from the disk, where the system can do that."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def file_speed(path: Path, *, cold: bool) -> int:
    """Return MB/s of one read of the file into memory that is there already."""
    buffer = memoryview(bytearray(path.stat().st_size))
    if cold:
        drop_from_page_cache(path)
    started = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        done = 0
        while count := file.readinto(buffer[done:]):
            done += count
    return round(done / 1e6 / (time.perf_counter() - started))


def summarize(rounds: list[dict[str, dict[str, Any]]], kind: str) -> dict[str, str | float]:
    """Return the medians of one row."""
    own = [measured[kind] for measured in rounds]
    totals = [measured["restore_seconds"] + measured["first_token_seconds"] for measured in own]
    cpu = [
        measured["restore_cpu_seconds"] + measured["first_token_cpu_seconds"] for measured in own
    ]
    ratios = [
        measured["read"]["first_token_seconds"] / total
        for measured, total in zip(rounds, totals, strict=True)
    ]
    megabytes = own[0].get("file_bytes", 0) / 1e6
    restoring = statistics.median(measured["restore_seconds"] for measured in own)
    same = sum(
        measured[kind]["answer"] == measured[kind].get("expected", measured["read"]["answer"])
        for measured in rounds
    )
    return {
        "prefix": kind,
        "to first token, s": round(statistics.median(totals), 3),
        "times faster": round(statistics.median(ratios), 1),
        "processor time, s": round(statistics.median(cpu), 2),
        "of it restoring, s": round(restoring, 3),
        "MB": round(megabytes),
        "MB/s": round(megabytes / restoring) if restoring else "",
        "same tokens": f"{same} of {len(rounds)}",
    }


if __name__ == "__main__":
    main()
