"""Results as `run` wrote them, and what is read off them: medians, spreads, ratios, bars."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

Better = Literal["lower", "higher"]


class Figure(NamedTuple):
    """How a figure is shown."""

    title: str
    better: Better
    factor: float
    digits: int


FIGURES = {
    "cold_start_seconds": Figure("cold start, s", "lower", 1, 2),
    "import_seconds": Figure("import, s", "lower", 1, 2),
    "prefill_32_seconds": Figure("prefill 32, ms", "lower", 1e3, 0),
    "prefill_512_seconds": Figure("prefill 512, ms", "lower", 1e3, 0),
    "prefill_2048_seconds": Figure("prefill 2048, ms", "lower", 1e3, 0),
    "decode_tokens_per_second": Figure("decode, tokens/s", "higher", 1, 1),
    "turn_2_seconds": Figure("turn 2, ms", "lower", 1e3, 0),
    "turn_5_seconds": Figure("turn 5, ms", "lower", 1e3, 0),
    "turn_10_seconds": Figure("turn 10, ms", "lower", 1e3, 0),
    "chats_1_tokens_per_second": Figure("1 chat, tokens/s", "higher", 1, 0),
    "chats_4_tokens_per_second": Figure("4 chats", "higher", 1, 0),
    "chats_8_tokens_per_second": Figure("8 chats", "higher", 1, 0),
    "chats_16_tokens_per_second": Figure("16 chats", "higher", 1, 0),
    "batch_seconds": Figure("200 prompts, s", "lower", 1, 1),
    "resident_loaded_bytes": Figure("resident, loaded, MB", "lower", 1e-6, 0),
    "resident_turns_bytes": Figure("resident, 50 turns, MB", "lower", 1e-6, 0),
    "anonymous_loaded_bytes": Figure("anonymous, loaded, MB", "lower", 1e-6, 0),
    "anonymous_turns_bytes": Figure("anonymous, 50 turns, MB", "lower", 1e-6, 0),
}


class Results:
    """One run's JSON."""

    def __init__(self, path: Path) -> None:
        """Read a file that `run` wrote."""
        self.raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        self.model: str = self.raw["model"]
        self.peers: dict[str, Any] = self.raw["peers"]

    def values(self, figure: str, peer: str) -> list[float]:
        """Return one value per round; none if the peer did not take part or failed."""
        return list(self.raw["values"].get(figure, {}).get(peer, []))

    def median(self, figure: str, peer: str) -> float | None:
        """Return the median over the rounds."""
        values = self.values(figure, peer)
        return median(values) if values else None

    def ratio(self, figure: str, peer: str, other: str) -> float | None:
        """Return the median over the rounds of one peer's value over another's."""
        pairs = zip(self.values(figure, peer), self.values(figure, other), strict=False)
        ratios = [one / two for one, two in pairs]
        return median(ratios) if ratios else None

    @property
    def bandwidth(self) -> float:
        """Return bytes per second: the faster kind of read, the median of the run's readings."""
        rates: dict[str, list[float]] = self.raw["bandwidth_bytes_per_second"]
        return max(median(readings) for readings in rates.values())

    def bound(self, peer: str) -> float:
        """Return how many tokens per second the bandwidth allows a peer's weights."""
        return self.bandwidth / float(self.peers[peer]["weight_bytes"]["per_token"])

    def share_of_bound(self, peer: str) -> float | None:
        """Return decoding's share of what the bandwidth allows."""
        rate = self.median("decode_tokens_per_second", peer)
        return None if rate is None else rate / self.bound(peer)

    def losses(self, figure: str, ours: str) -> list[str]:
        """Return the peers whose median is better than ours by more than one percent."""
        own = self.median(figure, ours)
        found = []
        for peer in self.peers:
            other = self.median(figure, peer)
            if own is None or other is None or peer.startswith("phi3ov"):
                continue
            lower = FIGURES[figure].better == "lower"
            if other < own / 1.01 if lower else other > own * 1.01:
                found.append(peer)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A bar that phi3ov shall reach, and what was measured."""

    text: str
    required: float
    at_least: bool
    measured: float | None
    digits: int = 3

    @property
    def held(self) -> bool:
        """Whether it is reached."""
        if self.measured is None:
            return False
        if self.at_least:
            return self.measured >= self.required
        return self.measured <= self.required


def bars(reference: Results, full: Results | None) -> list[Bar]:
    """Return every bar with its measurement."""
    decode = "decode_tokens_per_second"
    raw = [
        ratio
        for peer in ("genai-pa", "genai-sdpa")
        if (ratio := reference.ratio(decode, "phi3ov", peer)) is not None
    ]
    one = reference.values("chats_1_tokens_per_second", "phi3ov-worker")
    eight = reference.values("chats_8_tokens_per_second", "phi3ov-worker")
    several = (
        median(many / single for many, single in zip(eight, one, strict=True)) if eight else None
    )

    def against_optimum(text: str, required: float, at_least: bool, figure: str) -> Bar:  # noqa: FBT001
        measured = reference.ratio(figure, "phi3ov", "optimum")
        return Bar(text=text, required=required, at_least=at_least, measured=measured)

    found = [
        Bar(
            text="decode, of raw genai's best back end",
            required=0.97,
            at_least=True,
            measured=min(raw) if raw else None,
        ),
        against_optimum("decode, of optimum-intel's", 1.2, True, decode),
        against_optimum("cold start to first token", 0.4, False, "cold_start_seconds"),
        against_optimum("turn 5's first token", 0.1, False, "turn_5_seconds"),
        Bar(
            text="8 chats at once, of one chat (worker engine)",
            required=5,
            at_least=True,
            measured=several,
        ),
        against_optimum("resident memory after 50 turns", 0.6, False, "resident_turns_bytes"),
        Bar(
            text="base install, MB",
            required=350,
            at_least=False,
            measured=reference.peers["phi3ov"]["installed_bytes"] / 1e6,
            digits=0,
        ),
    ]
    if full is not None:
        found.append(
            Bar(
                text="full-size decode, of what the bandwidth allows",
                required=0.9,
                at_least=True,
                measured=full.share_of_bound("phi3ov"),
            )
        )
    return found
