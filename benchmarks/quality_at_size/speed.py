"""Decoding speed of a row beside the default's, in turns, so that both meet the same machine.

Decoding reads every weight once per token, so on a large model speed follows size. The reference
partly fits into a processor's caches and shows less of it.
"""

from __future__ import annotations

import statistics
from datetime import UTC, datetime
from typing import Any

from phi3ov_bench.cases import SCALES, decode
from phi3ov_bench.machine import describe_machine, machine_label
from phi3ov_bench.session import Session
from phi3ov_bench.work import Work

from .recipes import BASE
from .rows import ROWS, Place, Row

_WARMING_PROMPTS = 2
"""Weights are repacked and buffers grow during the first ones."""


class SpeedMeter:
    """Holds the default open and compares one row at a time with it."""

    def __init__(self, place: Place, *, rounds: int) -> None:
        """Start the default's process, which also encodes the prompts of all."""
        self._place = place
        self._rounds = rounds
        self._base = self._start(ROWS[BASE])
        self._work = Work(self._encode)
        self._warm(self._base)

    def measure(self, row: Row) -> dict[str, Any]:
        """Return the median over the rounds of the row's rate over the default's.

        Raises:
            PeerFailedError: The row's program failed.
        """
        session = self._start(row)
        try:
            self._warm(session)
            pairs = [self._round(session, number) for number in range(self._rounds)]
        finally:
            session.close()
        ratios = [rate / base for rate, base in pairs]
        return {
            "ratio": round(statistics.median(ratios), 3),
            "least": round(min(ratios), 3),
            "most": round(max(ratios), 3),
            "tokens_per_second": round(statistics.median(rate for rate, _ in pairs), 1),
            "rounds": self._rounds,
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "machine": machine_label(),
            "processor": describe_machine()["processor"],
            "threads": self._place.threads,
        }

    def close(self) -> None:
        """End the default's process."""
        self._base.close()

    def _round(self, session: Session, number: int) -> tuple[float, float]:
        """Return the rates of the row and of the default, every second time in the other order."""
        order = (session, self._base) if number % 2 else (self._base, session)
        rates = {id(each): self._rate(each) for each in order}
        return rates[id(session)], rates[id(self._base)]

    def _rate(self, session: Session) -> float:
        return decode(session, self._work, SCALES["reference"])["decode_tokens_per_second"]

    def _start(self, row: Row) -> Session:
        session = Session(row.peer(), row.path(self._place).resolve(), threads=self._place.threads)
        session.start()
        session.request("load")
        return session

    def _warm(self, session: Session) -> None:
        for _ in range(_WARMING_PROMPTS):
            session.request("generate", prompt=self._work.prompts(1, 64)[0], new_tokens=4)

    def _encode(self, texts: list[str], as_messages: bool) -> dict[str, Any]:  # noqa: FBT001
        found: dict[str, Any] = self._base.request("encode", texts=texts, as_messages=as_messages)
        return found
