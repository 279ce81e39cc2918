"""First steps of the worker process, with Python's standard library alone.

The process is a Python that was started with ``-S``: it finds phi3ov, but no other package. It
first moves stdin and stdout to private descriptors, so that output of a native library or of a
``sitecustomize`` cannot get between the messages. Then it runs ``site``, reads the parent's
``sys.path`` from the first line, and goes on in ``child.py``.
"""

from __future__ import annotations

import json
import os
import signal
import site
import sys
from typing import BinaryIO, NoReturn


def main() -> NoReturn:
    """Prepare the process and run the worker in it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is sent to the whole process group
    parent = os.getppid()
    commands, reports = claim_pipes()
    site.main()  # -S skipped this
    sys.path[:] = dict.fromkeys((*_read_paths(commands), *sys.path))
    from .child import run  # imports msgspec, which is on the path only now

    run(commands, reports, parent)


def claim_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Return private stdin and stdout for the messages, and redirect stdout to stderr."""
    commands, reports = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return commands, reports


def _read_paths(commands: BinaryIO) -> list[str]:
    line = commands.readline()
    if not line:  # the parent has ended
        os._exit(0)
    try:
        folders = json.loads(line)
    except ValueError:
        folders = None
    if not isinstance(folders, list) or not all(isinstance(folder, str) for folder in folders):
        os.write(2, b"phi3ov worker: The first line is not a JSON list of folders.\n")
        os._exit(2)
    return folders
