"""Mistakes that a type checker must catch.

Every line below is wrong and says so with an ignore. Both checkers report an ignore that ignores
nothing, so a mistake that they no longer notice fails the check.
"""

from __future__ import annotations

from pathlib import Path

import phi3ov


def misspell(chat: phi3ov.Phi3Chat, model: phi3ov.Phi3Model, folder: Path) -> None:
    """Options, values and names that do not exist."""
    chat.generate("Hello", max_tokens=8)  # type: ignore[call-overload]
    chat.stream("Hello", temprature=0.5)  # type: ignore[call-overload]
    model.complete("Hello", on_overflow="ignore")  # type: ignore[arg-type]
    phi3ov.load_model(folder, engine="genai")  # type: ignore[arg-type]
    phi3ov.load_model(folder, cache_dir=folder)  # type: ignore[call-arg]
    phi3ov.export_model(folder, folder, compression="int2")  # type: ignore[arg-type]
    phi3ov.export_model(folder, folder, group_size=64)  # type: ignore[call-arg]
    phi3ov.RuntimeConfig(performance_hint="FAST")  # type: ignore[arg-type]
    phi3ov.Int4Compression(on_indivisible="guess")  # type: ignore[arg-type]
    phi3ov.Message("robot", "Hello")  # type: ignore[arg-type]
    phi3ov.load_modle(folder)  # type: ignore[attr-defined]


def pass_by_position(folder: Path) -> None:
    """Options go by name."""
    phi3ov.load_model(folder, "CPU")  # type: ignore[call-arg]
    phi3ov.export_model(folder, folder, "int8")  # type: ignore[call-arg]
    phi3ov.GenerationOptions(64)  # type: ignore[call-arg]


def change_values(reply: phi3ov.Reply, options: phi3ov.GenerationOptions) -> None:
    """Values are frozen."""
    reply.text = "nothing"  # type: ignore[misc]
    options.seed = 1  # type: ignore[misc]


def take_for_another(chat: phi3ov.Phi3Chat) -> str:
    """A reply is not a string, and a coroutine is not a reply."""
    chat.agenerate("Hello").text  # type: ignore[attr-defined]  # noqa: B018
    return chat.generate("Hello")  # type: ignore[return-value]
