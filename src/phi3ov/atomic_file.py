"""Atomic file replacement: a crash or an error leaves the old file unchanged."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replace_file(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file for writing that replaces ``path`` when the block ends without an error.

    See `replace_by_path`.

    Raises:
        OSError: The folder is missing or not writable, or the disk is full.
    """
    with replace_by_path(path) as temporary, temporary.open("wb") as file:
        yield file


@contextmanager
def replace_by_path(path: str | Path) -> Iterator[Path]:
    """Yield the path of a file to write, which replaces ``path`` if the block ends without error.

    The file is written in a hidden folder next to ``path``, flushed to the disk and renamed. So a
    crash, a full disk or an error in the block leave ``path`` unchanged. On POSIX only the owner
    can read the file.

    Raises:
        OSError: The folder is missing or not writable, or the disk is full.
    """
    target = Path(path)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        temporary = Path(folder, target.name)
        temporary.touch(mode=0o600)
        yield temporary
        temporary.chmod(0o600)  # a writer may have replaced the file
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
