"""Progress of an export: a bar on a terminal, a line per phase elsewhere, or a callback.

A phase begins with one report. Phases that know how far they are send more.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

_Item = TypeVar("_Item")

_REPORT_EVERY_SECONDS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportProgress:
    """Where an export is.

    Attributes:
        phase: Name of the current phase.
        step: Number of the current phase, from 1.
        steps: Number of phases.
        elapsed_seconds: Time since the export began.
        detail: Name of the current pass within the phase; empty at the start of a phase.
        done: Share of the pass that is done, from 0 to 1; 0 at the start of a phase.
        remaining_seconds: Estimated time until the pass is done; None while unknown.
    """

    phase: str
    step: int
    steps: int
    elapsed_seconds: float
    detail: str = ""
    done: float = 0.0
    remaining_seconds: float | None = None


ProgressCallback = Callable[[ExportProgress], None]
"""Callback that receives the progress of an export."""


class Phases:
    """Reports the phases of an export and measures how long each takes."""

    NAMES = (
        "check", "measure", "convert", "analyse", "compress", "write", "collect files", "verify"
    )  # fmt: skip

    def __init__(self, progress: bool | ProgressCallback) -> None:  # noqa: FBT001
        self._printer = _Printer() if progress is True else None
        self._report = self._printer or progress
        self._started = self._phase_started = time.perf_counter()
        self._seconds: dict[str, float] = {}
        self.current: str = ""
        self._raised: Exception | None = None

    def begin(self, name: str) -> None:
        """Report that the phase ``name`` begins now."""
        self._end()
        self.current = name
        self._send()

    def follow(
        self, items: Iterable[_Item], detail: str, sizes: Sequence[float] | None = None
    ) -> Iterator[_Item]:
        """Yield ``items``, reporting after each how much of the pass is done.

        Args:
            items: The items of the pass.
            detail: The name of the pass.
            sizes: The cost of each item; None if all cost the same.
        """
        items = list(items)
        sizes = [1.0] * len(items) if sizes is None else sizes
        whole, done = sum(sizes), 0.0
        started = reported = time.perf_counter()
        for item, size in zip(items, sizes, strict=True):
            yield item
            done += size
            now = time.perf_counter()
            if now - reported >= _REPORT_EVERY_SECONDS or done >= whole:
                reported = now
                share = min(1.0, done / whole) if whole else 1.0
                remaining = (now - started) * (1 - share) / share if share else None
                self._send(detail=detail, done=share, remaining_seconds=remaining)

    def finish(self) -> dict[str, float]:
        """End the last phase and return the seconds that each phase took."""
        self._end()
        return self._seconds

    def raise_callers(self) -> None:
        """Raise the error of the caller's callback again, since a tool may have wrapped it."""
        if self._raised is not None:
            raise self._raised

    def close(self) -> None:
        """Close the terminal's progress bar, also after a failure."""
        if self._printer is not None:
            self._printer.close()

    def _send(self, **values: Any) -> None:
        if not callable(self._report):
            return
        progress = ExportProgress(
            phase=self.current,
            step=self.NAMES.index(self.current) + 1,
            steps=len(self.NAMES),
            elapsed_seconds=time.perf_counter() - self._started,
            **values,
        )
        try:
            self._report(progress)
        except Exception as error:
            self._raised = error
            raise

    def _end(self) -> None:
        now = time.perf_counter()
        if self.current:
            self._seconds[self.current] = now - self._phase_started
        self._phase_started = now


class _Printer:
    """Prints to stderr: one bar per phase on a terminal, one line per phase elsewhere."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._terminal = sys.stderr is not None and sys.stderr.isatty()

    def __call__(self, progress: ExportProgress) -> None:
        if progress.done == 0:
            self._begin(progress)
        elif self._bar is not None:
            self._bar.n = round(100 * progress.done)
            self._bar.refresh()

    def _begin(self, progress: ExportProgress) -> None:
        title = f"[{progress.step}/{progress.steps}] {progress.phase}"
        if self._terminal:
            from tqdm import tqdm

            self.close()
            self._bar = tqdm(
                total=100,
                desc=f"phi3ov export {title:20}",
                bar_format="{desc} {bar:24} {percentage:3.0f} %  {elapsed}<{remaining}",
                ncols=shutil.get_terminal_size().columns,  # 80 if the terminal's width is unknown
                file=sys.stderr,
            )
        elif sys.stderr is not None:
            with contextlib.suppress(OSError):  # the reader of stderr has closed it
                line = f"phi3ov export {title} ({progress.elapsed_seconds:.0f} s)\n"
                sys.stderr.write(line)
                sys.stderr.flush()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.n = 100
            self._bar.refresh()
            self._bar.close()
            self._bar = None
