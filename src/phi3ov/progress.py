"""How an export reports where it is: a line per phase, or a callback."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportProgress:
    """Where an export is: ``phase`` is number ``step`` of ``steps`` and begins now."""

    phase: str
    step: int
    steps: int
    elapsed_seconds: float


ProgressCallback = Callable[[ExportProgress], None]


class Phases:
    """Reports phases as they begin and measures them."""

    NAMES = ("check", "convert", "compress", "collect files", "verify")

    def __init__(self, progress: bool | ProgressCallback) -> None:  # noqa: FBT001
        self._report = _print_progress if progress is True else progress
        self._started = self._phase_started = time.perf_counter()
        self._seconds: dict[str, float] = {}
        self.current = ""

    def begin(self, name: str) -> None:
        """Report that the phase ``name`` begins now."""
        self._end()
        self.current = name
        if callable(self._report):
            self._report(
                ExportProgress(
                    phase=name,
                    step=self.NAMES.index(name) + 1,
                    steps=len(self.NAMES),
                    elapsed_seconds=time.perf_counter() - self._started,
                )
            )

    def finish(self) -> dict[str, float]:
        """Return how many seconds each phase took."""
        self._end()
        return self._seconds

    def _end(self) -> None:
        now = time.perf_counter()
        if self.current:
            self._seconds[self.current] = now - self._phase_started
        self._phase_started = now


def _print_progress(progress: ExportProgress) -> None:
    line = f"[{progress.step}/{progress.steps}] {progress.phase} ({progress.elapsed_seconds:.0f} s)"
    sys.stderr.write(f"phi3ov export {line}\n")
    sys.stderr.flush()
