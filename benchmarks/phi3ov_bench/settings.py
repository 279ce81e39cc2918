"""What the defaults follow from: back ends, threads, precisions, groups of activations.

Raw openvino-genai on the reference model, a process per combination, in turns. Decoding is
bound by memory bandwidth and by what a step costs besides reading the weights, which on a small
model is a lot; prefill by arithmetic, where the inference precision decides.
"""

from __future__ import annotations

import json
import random
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .models import model_path
from .peers import PEERS
from .session import PeerFailedError, Session

_PREFILL_TOKENS, _DECODE_TOKENS = 512, 128

_COMBINATIONS = tuple(
    (back_end, threads, cache, inference, group)
    for back_end in ("PA", "SDPA")
    for threads, cache, inference, group in (
        (2, "", "", ""),
        (1, "", "", ""),
        (2, "u8", "", ""),
        (2, "bf16", "", ""),
        (2, "f16", "", ""),
        (2, "u8", "f32", ""),
        (2, "f16", "f32", ""),
        (2, "f32", "f32", ""),
        (2, "", "", "0"),
        (2, "", "", "64"),
    )
)
"""Back end, threads, cache and inference precision, group of activations rounded together; empty
is openvino's own choice. 64 is the weights' group in most layers of the reference model."""


def measure_settings(target: Path, *, rounds: int) -> None:
    """Measure every combination and write ``target``."""
    draw = random.Random(0)
    rows = []
    sessions: list[Session | None] = []
    for combination in _COMBINATIONS:
        row: dict[str, Any] = dict(
            zip(("back_end", "threads", "kv_cache", "inference", "group"), combination, strict=True)
        )
        row |= {"prefill_seconds": [], "decode_tokens_per_second": []}
        rows.append(row)
        sessions.append(_open(row))
    for number in range(rounds + 1):  # the first is for warming up
        for row, session in zip(rows, sessions, strict=True):
            if session is not None:
                figures = _measure(session, draw)
                if number:
                    for name, value in figures.items():
                        row[name].append(value)
    for session in sessions:
        if session is not None:
            session.close()
    for row in rows:
        row["kv_cache"] = row["kv_cache"] or "default"
        row["inference"] = row["inference"] or "default"
        row["group"] = row["group"] or "default"
    result = {
        "model": "reference",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "command": f"python -m phi3ov_bench {' '.join(sys.argv[1:])}",
        "rows": rows,
    }
    target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _open(row: dict[str, Any]) -> Session | None:
    """Load one combination; note why openvino refuses it."""
    properties = {}
    if row["kv_cache"]:
        properties["KV_CACHE_PRECISION"] = row["kv_cache"]
    if row["inference"]:
        properties["INFERENCE_PRECISION_HINT"] = row["inference"]
    if row["group"]:
        properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = row["group"]
    peer = PEERS["genai-pa" if row["back_end"] == "PA" else "genai-sdpa"]
    session = Session(peer, model_path("reference", "openvino"), threads=row["threads"])
    session.start()
    try:
        session.request("set_properties", properties=properties)
        session.request("load")
        session.request("generate", prompt={"ids": [5, 6, 7]}, new_tokens=2)
    except PeerFailedError as error:
        row["error"] = str(error).strip().splitlines()[-1]
        session.close()
        return None
    return session


def _measure(session: Session, draw: random.Random) -> dict[str, float]:
    def prompt(tokens: int) -> dict[str, list[int]]:
        return {"ids": [draw.randrange(100, 20000) for _ in range(tokens)]}

    long = session.request("generate", prompt=prompt(_PREFILL_TOKENS), new_tokens=1)
    short = session.request("generate", prompt=prompt(32), new_tokens=_DECODE_TOKENS)
    seconds = short["total_seconds"] - short["first_seconds"]
    return {
        "prefill_seconds": long["first_seconds"],
        "decode_tokens_per_second": (_DECODE_TOKENS - 1) / seconds,
    }
