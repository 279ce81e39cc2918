"""A file that is there whole or not at all, whenever the writing ends."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replace_file(path: str | Path) -> Iterator[BinaryIO]:
    """Give a file to write into that becomes ``path`` when the block ends well.

    It is written beside ``path``, brought to the disk and then renamed, so a crash, a full disk
    or an error in the block leave ``path`` as it was. On POSIX its owner alone may read it.

    Raises:
        OSError: The folder is not there or not writable, or the disk is full.
    """
    target = Path(path)
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
