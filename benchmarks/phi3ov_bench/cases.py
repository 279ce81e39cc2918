"""What is measured, and what bounds it.

A case takes a session of one peer and returns named figures. Cases in `FRESH` begin with a new
process, because that is what they are about; the others run in a process that is warm.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from .session import Session
from .work import Work

Figures = dict[str, float]

ALONE = ("phi3ov", "optimum", "genai-pa", "genai-sdpa", "llama-q4_0", "llama-q4_k_m", "ort")
"""Peers that answer one request at a time as well as they can."""

TOGETHER = ("phi3ov-worker", "optimum", "genai-cb", "llama-q4_0", "llama-q4_k_m", "ort")
"""Peers, or the side of them, that can answer several at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much work; smaller for the full-size model, which is 30 times slower."""

    prefill_tokens: tuple[int, ...] = (32, 512, 2048)
    prefill_patience_seconds: float = 15.0
    decode_tokens: int = 128
    decode_repeats: int = 1
    chat_message_tokens: int = 32
    chat_answer_tokens: int = 96
    chat_turns: int = 10
    chats: int = 3
    at_once: tuple[int, ...] = (1, 4, 8, 16)
    at_once_message_tokens: int = 32
    at_once_answer_tokens: int = 64
    batch: int = 200
    batch_message_tokens: int = 32
    batch_answer_tokens: int = 16
    memory_turns: int = 50
    memory_turns_per_chat: int = 50
    memory_message_tokens: int = 8
    memory_answer_tokens: int = 8


SCALES = {
    "reference": Scale(),
    "full": Scale(
        decode_tokens=32,
        decode_repeats=3,
        chat_answer_tokens=16,
        chats=1,
        at_once_answer_tokens=16,
        batch_message_tokens=4,
        batch_answer_tokens=2,
        memory_turns_per_chat=10,
        memory_message_tokens=4,
        memory_answer_tokens=2,
    ),
    "smoke": Scale(
        prefill_tokens=(32, 512),
        decode_tokens=8,
        chat_message_tokens=8,
        chat_answer_tokens=4,
        chats=1,
        at_once=(1, 4),
        at_once_answer_tokens=4,
        batch=20,
        batch_message_tokens=8,
        batch_answer_tokens=4,
        memory_turns=5,
    ),
}


def cold_start(session: Session, work: Work, scale: Scale) -> Figures:
    """From the start of the process to its first token, and the memory held then and later.

    Interpreter, imports, reading and compiling the graph, repacking the weights. The files are
    in the system's page cache, as after a first use. Afterwards the same process takes
    `memory_turns` short turns; what it holds more by then is its KV cache, and what leaks.
    """
    imported = session.start()
    session.request("load")
    prompt = work.prompts(1, 32)[0]
    session.request("generate", prompt=prompt, new_tokens=1)
    figures = {
        "cold_start_seconds": time.perf_counter() - session.started,
        "import_seconds": imported,
        "resident_loaded_bytes": session.memory().resident,
        "anonymous_loaded_bytes": session.memory().anonymous,
    }
    messages = work.messages(scale.memory_turns, scale.memory_message_tokens)
    for number, message in enumerate(messages):
        if number % scale.memory_turns_per_chat == 0:
            session.request("new_chat")
        session.request("turn", message=message, new_tokens=scale.memory_answer_tokens)
    memory = session.memory()
    return figures | {
        "resident_turns_bytes": memory.resident,
        "anonymous_turns_bytes": memory.anonymous,
    }


def prefill(session: Session, work: Work, scale: Scale) -> Figures:
    """Time to the first token of a prompt that nothing is cached of: bound by arithmetic.

    Longer prompts are left out where a shorter one took more than `prefill_patience_seconds`.
    """
    figures: Figures = {}
    for tokens in scale.prefill_tokens:
        if any(seconds > scale.prefill_patience_seconds for seconds in figures.values()):
            break
        prompt = work.prompts(1, tokens)[0]
        timed = session.request("generate", prompt=prompt, new_tokens=1)
        _require(timed["prompt_tokens"] == tokens, "prompt", timed["prompt_tokens"], tokens)
        figures[f"prefill_{tokens}_seconds"] = timed["first_seconds"]
    return figures


def decode(session: Session, work: Work, scale: Scale) -> Figures:
    """Tokens per second after the first, short context: bound by memory bandwidth."""
    prompt = work.prompts(1, 32)[0]
    timed = session.request("generate", prompt=prompt, new_tokens=scale.decode_tokens)
    _require(timed["tokens"] == scale.decode_tokens, "answer", timed["tokens"], scale.decode_tokens)
    seconds = timed["total_seconds"] - timed["first_seconds"]
    return {"decode_tokens_per_second": (scale.decode_tokens - 1) / seconds}


def growing_chat(session: Session, work: Work, scale: Scale) -> Figures:
    """Time to the first token of later turns: the new message's prefill, or the history's.

    One turn is one sample of some milliseconds, so a round takes the median of several chats.
    """
    samples: dict[str, list[float]] = {}
    for _ in range(scale.chats):
        session.request("new_chat")
        messages = work.messages(scale.chat_turns, scale.chat_message_tokens)
        for number, message in enumerate(messages, start=1):
            timed = session.request("turn", message=message, new_tokens=scale.chat_answer_tokens)
            if number in (2, 5, 10):
                for name in ("first_seconds", "prompt_tokens"):
                    figure = f"turn_{number}_{name.removeprefix('first_')}"
                    samples.setdefault(figure, []).append(timed[name])
    return {name: statistics.median(values) for name, values in samples.items()}


def at_once(session: Session, work: Work, scale: Scale) -> Figures:
    """New tokens per second of several chats in all: they share each reading of the weights."""
    figures = {}
    for number in scale.at_once:
        messages = work.messages(number, scale.at_once_message_tokens)
        timed = session.request(
            "many", prompts=_alike(messages), new_tokens=scale.at_once_answer_tokens
        )
        expected = number * scale.at_once_answer_tokens
        _require(timed["tokens"] == expected, "answers", timed["tokens"], expected)
        figures[f"chats_{number}_tokens_per_second"] = timed["tokens"] / timed["seconds"]
    return figures


def batch(session: Session, work: Work, scale: Scale) -> Figures:
    """Seconds for a batch of prompts, answered as each peer answers many: prefill and decode."""
    messages = work.messages(scale.batch, scale.batch_message_tokens)
    timed = session.request("many", prompts=_alike(messages), new_tokens=scale.batch_answer_tokens)
    expected = scale.batch * scale.batch_answer_tokens
    _require(timed["tokens"] == expected, "answers", timed["tokens"], expected)
    return {"batch_seconds": timed["seconds"]}


class Case(NamedTuple):
    """A case and who takes part."""

    name: str
    measure: Callable[[Session, Work, Scale], Figures]
    peers: tuple[str, ...]
    fresh: bool


CASES = (
    Case("cold_start", cold_start, (*ALONE, "phi3ov-worker"), True),
    Case("prefill", prefill, (*ALONE, "phi3ov-128"), False),
    Case("decode", decode, (*ALONE, "phi3ov-128", "phi3ov-worker"), False),
    Case("growing_chat", growing_chat, (*ALONE, "phi3ov-128"), False),
    Case("at_once", at_once, TOGETHER, False),
    Case("batch", batch, TOGETHER, False),
)


def _alike(prompts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Check that prompts are equally long, so that static batches need no padding."""
    lengths = {len(prompt["ids"]) for prompt in prompts}
    _require(len(lengths) == 1, "prompts of one length", lengths, 1)
    return prompts


def _require(condition: bool, what: str, found: object, expected: object) -> None:  # noqa: FBT001
    if not condition:
        raise ValueError(f"{what}: {found} instead of {expected}")
