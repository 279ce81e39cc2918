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

from ..artifact.folder import MANIFEST_NAME
from ..errors import ExportError
from .checkpoint import Checkpoint
from .recipes import Recipe

if TYPE_CHECKING:
    from filelock import FileLock

_TOOLS_BYTES = 800 * 10**6
"""What torch, transformers, optimum, NNCF and openvino take once they are loaded."""

_COPIES_OF_LINEAR = 4.5
_COPIES_OF_EMBEDDING = 2.3
"""How much memory compressing a weight to int4 and to int8 takes, in its size as float32.

Measured on Phi-3-mini (1.62 GB at the peak) and with Phi-4-mini's vocabulary (5.92 GB).
"""

_CGROUPS = Path("/sys/fs/cgroup")
_CACHED = ("active_file", "inactive_file")
"""Bytes of files that count as used and that the kernel gives back when somebody needs them."""

_LOGGER = logging.getLogger("phi3ov")


def check_target(target: Path, *, overwrite: bool) -> None:
    """Check, before any work, that ``target`` is free or may be replaced.

    Raises:
        ExportError: It is there, and is not to be replaced or is nothing that phi3ov made; or
            it cannot be looked at.
    """
    with _told_by_name(target):
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
    and is removed, and two exports to one target cannot mix. The lock's file, which is empty,
    stays where it is.

    Raises:
        ExportError: Another export to ``target`` runs, or nothing can be written there.
    """
    work = target.parent / f".{target.name}.phi3ov-export"
    with _told_by_name(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = _lock(target.parent / f".{target.name}.phi3ov-lock", target)
    try:
        with _told_by_name(target):
            if work.exists():
                _LOGGER.warning("Removing %s, which an export that was killed left behind.", work)
                shutil.rmtree(work)
            work.mkdir()
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
        lock.release()  # its empty file stays: whoever waits for it would else lock a removed one


@contextlib.contextmanager
def _told_by_name(target: Path) -> Iterator[None]:
    """Say of what the system refuses which path of the caller's it is about."""
    try:
        yield
    except OSError as error:
        raise ExportError(
            f"output={str(target)!r} cannot be made: {error}. Choose another folder."
        ) from error


def _lock(path: Path, target: Path) -> FileLock:
    from filelock import FileLock, Timeout

    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise ExportError(f"Another export to {target} is running. Wait for it to end.") from error
    return lock


def check_room(checkpoint: Checkpoint, recipe: Recipe, work: Path) -> None:
    """Check that disk and memory have room for the export.

    Raises:
        ExportError: One of them has not; says how much is needed and how much is free.
    """
    for resource, needed, free, way_out in (
        (
            f"disk beside {work.parent}",
            disk_needed(checkpoint, recipe),
            shutil.disk_usage(work).free,
            "Free some, or choose another output",
        ),
        (
            "memory",
            memory_needed(checkpoint, recipe),
            free_memory(),
            "Close other programs, or export on a machine with more",
        ),
    ):
        if free < needed:
            raise ExportError(
                f"The export needs about {needed / 1e9:.1f} GB of {resource}, but "
                f"{free / 1e9:.1f} GB are free. {way_out}."
            )


def disk_needed(checkpoint: Checkpoint, recipe: Recipe) -> int:
    """Return the bytes of disk that an export takes at its end, at most.

    The compressed model is there twice then: as it was made, weight by weight, and as OpenVINO
    writes it. The checkpoint itself is not copied.
    """
    parameters = checkpoint.weights_bytes / 2  # 16 bits each; fewer where they have 32
    return int(2 * parameters * recipe.bits / 8) + 64 * 2**20


def memory_needed(checkpoint: Checkpoint, recipe: Recipe) -> int:
    """Return the bytes of memory, mapped files not counted, that an export takes at its peak.

    That is the tools themselves and what compressing the largest weight takes; see "What an
    export costs" in ``docs/recipes.md``. Calibration runs the model, which repacks its weights
    as float32.
    """
    config = checkpoint.config
    linear = 4 * config.hidden_size * 2 * config.intermediate_size  # float32 bytes: gate_up_proj
    embedding = 4 * config.hidden_size * config.vocab_size
    needed = _TOOLS_BYTES + max(_COPIES_OF_LINEAR * linear, _COPIES_OF_EMBEDDING * embedding)
    if recipe.calibration is not None:
        needed += 2 * checkpoint.weights_bytes
    return int(needed)


def free_memory() -> int:
    """Return the bytes of memory that are free, or that the kernel can free at once.

    In a container that is what its own limit leaves of what its processes take already.
    """
    import psutil

    free = psutil.virtual_memory().available + psutil.swap_memory().free
    for folder, limit, used in (
        (_CGROUPS, "memory.max", "memory.current"),  # version 2
        (_CGROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),  # version 1
    ):
        with contextlib.suppress(OSError, ValueError):
            texts = [
                (folder / name).read_text(encoding="ascii") for name in (limit, used, "memory.stat")
            ]
            most, taken = int(texts[0]), int(texts[1])
            lines = (line.split() for line in texts[2].splitlines())
            cached = sum(int(value) for name, value in lines if name in _CACHED)
            free = min(free, max(0, most - taken + cached))
    return int(free)


def describe_free_disk(target: Path) -> str:
    """Return a sentence for an error message, or nothing where the disk does not answer."""
    with contextlib.suppress(OSError):
        return f"{shutil.disk_usage(target.parent).free / 1e9:.1f} GB of disk are free there."
    return ""


def put_into_place(made: Path, target: Path, work: Path, *, overwrite: bool) -> None:
    """Rename ``made`` to ``target``, an artifact that was there before going first.

    What is there is looked at again: something may have come while the export worked, and
    ``new/../file`` is found only once ``new`` has been made.

    Raises:
        ExportError: As `check_target`.
        OSError: It could not be renamed; what was there before is there again.
    """
    check_target(target, overwrite=overwrite)
    before = work / "replaced"
    if target.exists():
        os.replace(target, before)
    try:
        os.replace(made, target)
    except OSError:
        if before.exists():
            os.replace(before, target)
        raise
