"""Starts the worker's interpreter, if possible before its parent is ready to use it.

A new interpreter spends its first half second on imports. `load_model` starts it as soon as it
knows that there is a model to load, and imports OpenVINO itself meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from ...errors import EngineCrashedError
from ...runtime.huge_pages import child_environment
from .interpreter import find_interpreter
from .protocol import encode_paths

START_CODE = (  # phi3ov's folder last: packages installed next to it must not shadow Python's own
    "import sys; sys.path[:] = [*filter(None, sys.path), sys.argv[1]]; "
    "from phi3ov.engine.worker.startup import main; main()"
)
"""Python code of the worker's process; its argument is the folder that holds phi3ov."""


def start_process(*, huge_pages: bool) -> subprocess.Popen[bytes]:
    """Start an interpreter that waits for the first line, the folders of ``sys.path``.

    Args:
        huge_pages: Whether its allocator asks for huge pages.

    Raises:
        EngineCrashedError: The process cannot be started.
        OptionError: There is no Python executable to start.
    """
    packages = Path(__file__).resolve().parents[3]  # the folder that holds phi3ov
    try:
        return subprocess.Popen(
            [find_interpreter(), "-S", "-c", START_CODE, str(packages)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=packages,  # the current folder may have been removed
            env=child_environment(os.environ) if huge_pages else None,
        )
    except OSError as error:
        raise EngineCrashedError(f"The worker process could not be started: {error}") from error


def package_folders() -> tuple[str, ...]:
    """Return the current ``sys.path`` with absolute folders; programs change it at run time."""
    try:
        here = Path.cwd()
    except FileNotFoundError:  # the current folder has been removed
        return tuple(folder for folder in sys.path if Path(folder).is_absolute())
    return tuple(str(here / folder) for folder in sys.path)


class EarlyProcess:
    """A worker's interpreter that imports what it needs while its parent does the same."""

    def __init__(self, *, huge_pages: bool) -> None:
        """Start it, and tell it where packages are.

        Args:
            huge_pages: As for `start_process`.

        Raises:
            EngineCrashedError: The process cannot be started.
            OptionError: There is no Python executable to start.
        """
        self._process: subprocess.Popen[bytes] | None = start_process(huge_pages=huge_pages)
        pipe = cast("IO[bytes]", self._process.stdin)
        with contextlib.suppress(OSError):  # it died; who takes it will find out
            pipe.write(encode_paths(package_folders()))
            pipe.flush()

    def take(self) -> subprocess.Popen[bytes] | None:
        """Return the process the first time, then None."""
        process, self._process = self._process, None
        return process

    def close(self) -> None:
        """End the process if it was not taken."""
        process = self.take()
        if process is not None:
            process.kill()
            process.communicate()


@contextlib.contextmanager
def early_process(*, huge_pages: bool) -> Iterator[EarlyProcess]:
    """Start an interpreter that ends with the block, unless it was taken.

    Args:
        huge_pages: As for `start_process`.

    Raises:
        EngineCrashedError: The process cannot be started.
        OptionError: There is no Python executable to start.
    """
    early = EarlyProcess(huge_pages=huge_pages)
    try:
        yield early
    finally:
        early.close()
