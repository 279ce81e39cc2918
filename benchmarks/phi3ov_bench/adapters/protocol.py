"""What harness and adapters say to each other: a JSON object a line, on stdin and stdout.

A request names an operation (`Adapter`'s public methods) and its arguments; the answer holds
``result`` or ``error``. Times are taken in the adapter, around the peer's own call.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(slots=True)
class Timed:
    """One answer.

    Attributes:
        first_seconds: From the call to its first token.
        total_seconds: From the call to its last token.
        token_ids: The tokens, for the history of a chat; a peer may leave them out.
        tokens: How many.
        prompt_tokens: How many the peer was given, the cached ones included.
    """

    first_seconds: float
    total_seconds: float
    token_ids: list[int]
    tokens: int
    prompt_tokens: int


class Clock:
    """Notes when tokens come."""

    def __init__(self) -> None:
        """Start."""
        self.started = time.perf_counter()
        self.first = self.last = 0.0
        self.token_ids: list[int] = []

    def note(self, token_ids: list[int]) -> None:
        """Take tokens that came just now."""
        self.last = time.perf_counter()
        self.first = self.first or self.last
        self.token_ids += token_ids

    def stop(self, prompt_tokens: int) -> Timed:
        """Return what was noted."""
        return Timed(
            first_seconds=self.first - self.started,
            total_seconds=self.last - self.started,
            token_ids=self.token_ids,
            tokens=len(self.token_ids),
            prompt_tokens=prompt_tokens,
        )


class Adapter:
    """What each peer can do; prompts are ``{"text": ..., "ids": ...}``, either may be used.

    No program stops at a stop token, so all answers are equally long.
    """

    variant = ""
    model = ""
    threads = 0
    history: list[int]

    def start(self, variant: str, model: str, threads: int) -> float:
        """Note what to run; import the peer's package and return how many seconds that took."""
        self.variant, self.model, self.threads = variant, model, threads
        self.history = []
        started = time.perf_counter()
        self.import_package()
        return time.perf_counter() - started

    def import_package(self) -> None:
        """Import what a user's script imports."""
        raise NotImplementedError

    def load(self) -> None:
        """Load the model."""
        raise NotImplementedError

    def answer(self, prompt_ids: list[int], new_tokens: int) -> Timed:
        """Generate this many tokens greedily; for peers that take ids."""
        raise NotImplementedError

    def generate(self, prompt: dict[str, Any], new_tokens: int) -> Timed:
        """Answer a raw prompt that no earlier one begins like."""
        return self.answer(prompt["ids"], new_tokens)

    def new_chat(self) -> None:
        """Forget the history."""
        self.history = []

    def turn(self, message: dict[str, Any], new_tokens: int) -> Timed:
        """Take a turn: ``message["ids"]`` is the message with the answer opened."""
        self.history += message["ids"]
        timed = self.answer(self.history, new_tokens)
        self.history += timed.token_ids + message["closing"]
        return timed

    def together(self, prompts: list[dict[str, Any]], new_tokens: int) -> int:
        """Answer several prompts of equal length at once; return the number of new tokens."""
        raise NotImplementedError

    def many(self, prompts: list[dict[str, Any]], new_tokens: int) -> dict[str, float]:
        """Time `together`."""
        started = time.perf_counter()
        tokens = self.together(prompts, new_tokens)
        return {"seconds": time.perf_counter() - started, "tokens": tokens}

    def versions(self) -> dict[str, str]:
        """Return what the peer says of its versions and settings."""
        return {}


def serve(adapter: Adapter) -> None:
    """Answer requests until stdin ends; what libraries print goes to stderr."""
    reports = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            result = getattr(adapter, request.pop("op"))(**request)
            if isinstance(result, Timed):
                result = asdict(result)
            report: dict[str, Any] = {"result": result}
        except Exception as error:  # noqa: BLE001 - the harness records it
            traceback.print_exc()
            report = {"error": f"{type(error).__name__}: {error}"}
        reports.write(json.dumps(report) + "\n")
        reports.flush()
    os._exit(0)  # native destructors are not part of any case


def groups(items: list[Any], size: int) -> list[list[Any]]:
    """Split a list, for peers that answer one static batch after the other."""
    return [items[start : start + size] for start in range(0, len(items), size)]


MOST_AT_ONCE = 16
"""The largest static batch, and the largest number of chats at once that is measured."""
