"""The folder beside its target in which an export works, and the rename at the end.

What is done there is ``exporter.py``. Whatever happens, including a kill at any moment, there
is either no target, the target as it was, or a complete new one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .artifact import MANIFEST_NAME
from .checkpoint import Checkpoint
from .errors import ExportError

if TYPE_CHECKING:
    from filelock import FileLock

_LOGGER = logging.getLogger("phi3ov")


def check_target(target: Path, *, overwrite: bool) -> None:
    """Check, before any work, that ``target`` is free or may be replaced.

    Raises:
        ExportError: It is there, and is not to be replaced or is nothing that phi3ov made.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not (target / MANIFEST_NAME).is_file():
        raise ExportError(
            f"output={str(target)!r} exists and is no folder that phi3ov exported, so it is not "
            "replaced. Choose another folder."
        )
    if not overwrite:
        raise ExportError(
            f"output={str(target)!r} exists. Pass overwrite=True to replace it, or load it with "
            "phi3ov.load_model()."
        )


@contextlib.contextmanager
def open_workplace(target: Path) -> Iterator[Path]:
    """Give a fresh folder beside ``target`` that only this export uses, and remove it after.

    The name is fixed and a lock guards it, so what a killed export left is known to be dead
    and is removed, and two exports to one target cannot mix.
    """
    work = target.parent / f".{target.name}.phi3ov-export"
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = _lock(target.parent / f".{target.name}.phi3ov-lock", target)
    try:
        if work.exists():
            _LOGGER.warning("Removing %s, which an export that was killed left behind.", work)
            shutil.rmtree(work)
        work.mkdir()
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
        lock.release()
        with contextlib.suppress(OSError):
            Path(lock.lock_file).unlink(missing_ok=True)


def _lock(path: Path, target: Path) -> FileLock:
    from filelock import FileLock, Timeout  # huggingface-hub brings it

    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise ExportError(f"Another export to {target} is running. Wait for it to end.") from error
    return lock


def check_disk(checkpoint: Checkpoint, work: Path) -> None:
    """Check that the disk has room for the converted and the compressed model.

    Raises:
        ExportError: It has not; says how much is needed and how much is free.
    """
    needed = int(checkpoint.weights_bytes * 1.7) + 64 * 2**20
    free = shutil.disk_usage(work).free
    if free < needed:
        raise ExportError(
            f"The export needs about {needed / 1e9:.1f} GB beside its target, for the converted "
            f"and the compressed model, but {work.parent} has {free / 1e9:.1f} GB free."
        )


def describe_free_disk(target: Path) -> str:
    """Return a sentence for an error message, or nothing where the disk does not answer."""
    with contextlib.suppress(OSError):
        return f"{shutil.disk_usage(target.parent).free / 1e9:.1f} GB of disk are free there."
    return ""


def put_into_place(made: Path, target: Path, work: Path) -> None:
    """Rename ``made`` to ``target``, an artifact that was there before going first."""
    if target.exists():
        os.replace(target, work / "replaced")
    os.replace(made, target)
