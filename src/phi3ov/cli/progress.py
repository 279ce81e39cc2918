"""Progress on stderr: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .printing import make_console, shows_style

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from ..batch.runner import BatchProgress
    from ..exporter.progress import ExportProgress, ProgressCallback

_REPORT_EVERY_SECONDS = 10.0
"""Seconds between lines when there is no progress bar."""


@contextmanager
def export_progress(*, quiet: bool) -> Iterator[bool | ProgressCallback]:
    """Yield the ``progress`` argument of `export_model`: a bar per phase on a terminal."""
    if quiet or not shows_style(sys.stderr):
        yield not quiet
        return
    with _make_progress() as bars:
        phases: dict[str, TaskID] = {}

        def report(progress: ExportProgress) -> None:
            if progress.phase not in phases:
                for task in phases.values():
                    bars.update(task, completed=1.0, total=1.0, status="")
                title = f"{progress.step}/{progress.steps} {progress.phase}"
                # Without a total the bar pulses: most phases do not know their progress.
                phases[progress.phase] = bars.add_task(title, total=None, status="")
            if progress.done:
                task = phases[progress.phase]
                bars.update(task, completed=progress.done, total=1.0, status=progress.detail)

        yield report
        for task in phases.values():
            bars.update(task, completed=1.0, total=1.0, status="")


@contextmanager
def batch_progress(*, quiet: bool) -> Iterator[Callable[[BatchProgress], None]]:
    """Yield the callback for each answer of a batch."""
    if quiet:
        yield lambda _progress: None
    elif shows_style(sys.stderr):
        with _make_progress() as bars:
            task = bars.add_task("answers", total=None, status="")

            def report(progress: BatchProgress) -> None:
                counts = f"{progress.done} of {progress.total}, {progress.failed} failed"
                bars.update(task, completed=progress.done, total=progress.total, status=counts)

            yield report
    else:
        yield _LineReporter()


class _LineReporter:
    """Prints the progress of a batch, at most every few seconds."""

    def __init__(self) -> None:
        self._reported = time.monotonic() - _REPORT_EVERY_SECONDS

    def __call__(self, progress: BatchProgress) -> None:
        now = time.monotonic()
        is_last = progress.done >= (progress.total or 0)
        if not is_last and now - self._reported < _REPORT_EVERY_SECONDS:
            return
        self._reported = now
        print(
            f"{progress.done} of {progress.total} done, {progress.failed} failed", file=sys.stderr
        )


def _make_progress() -> Progress:
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[status]}", markup=False),
        console=make_console(sys.stderr),
    )
