"""Working folder of an export, and the move of its result to the target.

An export to a new folder works beside it and ends with one rename. Some existing folders (an
empty one, a mount point, the current folder, a symbolic link) must stay in place: the export then
works inside the folder and ends by moving its files up. It moves the manifest first, so the
manifest reveals a folder that was filled only half-way. After a failure the target holds no
artifact, the previous artifact, or a complete new one. A finished export is never deleted.
"""

from __future__ import annotations

import contextlib
import logging
import math
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
"""Bytes of memory that torch, transformers, optimum, NNCF and openvino take once imported."""

_COPIES_OF_LINEAR = 5.5
_COPIES_OF_EMBEDDING = 2.3
"""Peak memory of compressing one weight to int4 and to int8, as a multiple of its float32 size.

Measured on Phi-3-mini (1.97 GB at the peak) and with Phi-4-mini's vocabulary (5.92 GB).
"""

_KEPT_VALUES = {"hidden": 12, "intermediate": 14}
"""Values that a layer keeps of each token for the backward pass, as multiples of its two widths.

Measured on Phi-3-mini with 128 tokens: 1.25 GB beside the tools.
"""

_CGROUPS = Path("/sys/fs/cgroup")
_CACHED = ("active_file", "inactive_file")
"""Counters of the page cache, which cgroups count as used although the kernel can free it."""

_LOGGER = logging.getLogger("phi3ov")


_WORK, _LOCK = ".phi3ov-export", ".phi3ov-lock"
"""Names of the export's working folder and lock file: inside the target, or suffixes beside it."""


def check_target(target: Path, *, overwrite: bool) -> None:
    """Check, before any work, that ``target`` is free or may be replaced.

    Raises:
        ExportError: The target exists, and ``overwrite`` is false or phi3ov did not make it; it
            is a broken symbolic link; or the system denies access to it.
    """
    with _told_by_name(target):
        if target.is_symlink() and not target.exists():
            raise ExportError(
                f"output={str(target)!r} is a symbolic link to {target.readlink()}, which does "
                "not exist. Create that folder, or choose another one."
            )
        if not target.exists() or _is_free(target):
            return
    if not (target / MANIFEST_NAME).is_file():
        raise ExportError(
            f"output={str(target)!r} exists and is not a folder that phi3ov exported, so it "
            "is not replaced. Choose another folder."
        )
    if not overwrite:
        raise ExportError(
            f"output={str(target)!r} exists. Pass overwrite=True to replace it, or load it with "
            "phi3ov.load_model()."
        )


def check_replaceable(target: Path) -> None:
    """Check, before any work, that the existing artifact can be moved away.

    Windows refuses to move files that a process has mapped, such as those of a loaded model.

    Raises:
        ExportError: A program holds the artifact's files open.
    """
    if not _LOADED_FILES_ARE_HELD or not (target / MANIFEST_NAME).is_file():
        return
    try:
        for path in sorted(target.iterdir()) if _stays(target) else [target]:
            aside = path.with_name(f"{path.name}.phi3ov-probe")
            os.replace(path, aside)
            os.replace(aside, path)
    except OSError as error:
        raise ExportError(
            f"output={str(target)!r} cannot be replaced while a program uses it: {error}. Close "
            "the model that is loaded from it, or choose another folder."
        ) from error


_LOADED_FILES_ARE_HELD = os.name == "nt"


def _is_free(target: Path) -> bool:
    """Whether ``target`` is a folder that is empty apart from an export's own files."""
    return target.is_dir() and all(child.name in (_WORK, _LOCK) for child in target.iterdir())


def _stays(target: Path) -> bool:
    """Whether ``target`` must be filled in place, because a rename would break references to it."""
    if not target.is_dir():
        return False
    try:
        is_current = Path.cwd().is_relative_to(target.resolve())
    except OSError:  # the current folder was deleted
        is_current = False
    return is_current or _is_free(target) or target.is_symlink() or os.path.ismount(target)


@contextlib.contextmanager
def open_workplace(target: Path) -> Iterator[Path]:
    """Create a fresh folder that only this export uses, and remove it afterwards.

    The folder is on the target's disk: inside a target that must stay in place, otherwise beside
    it. Its name is fixed and a file lock guards it. The lock keeps two exports to one target
    apart, and it shows that a folder left by a killed export can be removed. The empty lock file
    stays.

    Raises:
        ExportError: Another export to ``target`` runs, or nothing can be written there.
    """
    with _told_by_name(target):
        if _stays(target):
            work, lock_file = target / _WORK, target / _LOCK
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            work = target.parent / f".{target.name}{_WORK}"
            lock_file = target.parent / f".{target.name}{_LOCK}"
        lock = _lock(lock_file, target)
    try:
        with _told_by_name(target):
            if work.exists():
                _LOGGER.warning("Removing %s, left over from an export that was killed.", work)
                shutil.rmtree(work)
            work.mkdir()
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
        lock.release()  # keep the file: a waiting export would otherwise lock a deleted file


@contextlib.contextmanager
def _told_by_name(target: Path) -> Iterator[None]:
    """Translate an `OSError` into an `ExportError` that names the caller's path."""
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
        ExportError: Disk or memory is too small; says how much is needed and how much is free.
    """
    for resource, needed, free, way_out in (
        (
            f"disk in {work.parent}",
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
    """Return the peak disk usage of an export in bytes, reached at its end.

    The disk then holds the compressed model twice: the mapped file of single weights, and the
    model that OpenVINO writes. The checkpoint is copied only if matrices must be joined first: in
    Llama's layout, and for a mixture of experts. phi3ov's GPTQ writes a byte per weight first.
    """
    restacked = checkpoint.weights_bytes if checkpoint.is_restacked else 0
    rounded = checkpoint.parameters if recipe.rounds_by_gptq else 0
    written = checkpoint.parameters * recipe.bits(checkpoint) / 8
    return int(2 * written) + restacked + rounded + 64 * 2**20


def memory_needed(checkpoint: Checkpoint, recipe: Recipe) -> int:
    """Return the peak memory of an export in bytes, mapped files not counted.

    This is the memory of the tools plus that of compressing the largest weight, or that of the
    activations of the text on which the layers are measured or rounded; see "What an export costs"
    in ``docs/recipes.md``. Calibration by NNCF runs the model in OpenVINO, which repacks its
    weights as float32.
    """
    config = checkpoint.config
    linear = 4 * max(map(math.prod, config.linear_shapes().values()))  # bytes as float32
    embedding = 4 * config.hidden_size * config.vocab_size
    needed = max(_COPIES_OF_LINEAR * linear, _COPIES_OF_EMBEDDING * embedding)
    if (text := recipe.measured_text) is not None:
        tokens = text.num_samples * text.sample_tokens
        widths = (
            _KEPT_VALUES["hidden"] * config.hidden_size
            + _KEPT_VALUES["intermediate"] * config.intermediate_size
        ) * max(1, config.num_local_experts)  # each token runs through all stacked experts
        logits = 4 * 4 * tokens * config.vocab_size  # four copies in float32
        needed = max(needed, 2 * tokens * config.num_hidden_layers * widths + logits)
    if (text := recipe.calibration) is not None and recipe.rounds_by_gptq:
        tokens = text.num_samples * text.sample_tokens
        statistics = 6 * 4 * config.intermediate_size**2  # with inverse and factors
        activations = 4 * tokens * (6 * config.hidden_size + 6 * config.intermediate_size)
        needed = max(needed, statistics + activations + 2 * linear)
    elif text is not None:
        needed += 4 * checkpoint.parameters
    return int(_TOOLS_BYTES + needed)


def free_memory() -> int:
    """Return the bytes of memory that are free, or that the kernel can free at once.

    In a container this is at most the container's limit minus the memory that its processes use.
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
    """Return a sentence on free disk space for an error message; empty if it is unknown."""
    with contextlib.suppress(OSError):
        return f"{shutil.disk_usage(target.parent).free / 1e9:.1f} GB of disk are free there."
    return ""


def put_into_place(made: Path, target: Path, work: Path, *, overwrite: bool) -> None:
    """Move the finished folder ``made`` to ``target``, replacing an artifact there.

    Checks the target again: another program may have created it during the export, and a path
    such as ``new/../file`` can be resolved only once ``new`` exists.

    Raises:
        ExportError: As `check_target`, or the system refuses. The previous content is restored,
            and the finished export is kept in a folder that the error names.
    """
    try:
        check_target(target, overwrite=overwrite)
        if work.parent == target:
            _move_up(made, target, work)
        else:
            _rename(made, target, work)
    except (ExportError, OSError) as error:
        kept = _keep(made, work)
        reason = str(error) if isinstance(error, ExportError) else f"{target}: {error}."
        raise ExportError(f"{reason} The finished export is kept in {kept}.") from error


def _rename(made: Path, target: Path, work: Path) -> None:
    before = work / "replaced"
    if target.exists():
        os.replace(target, before)
    try:
        os.replace(made, target)
    except OSError:
        if before.exists():
            os.replace(before, target)
        raise


def _move_up(made: Path, target: Path, work: Path) -> None:
    """Move the files of ``made`` into ``target``, the manifest first."""
    before = work / "replaced"
    before.mkdir()
    moved: list[tuple[Path, Path]] = []
    old = [child for child in target.iterdir() if child.name not in (_WORK, _LOCK)]
    new = sorted(made.iterdir(), key=lambda path: path.name != MANIFEST_NAME)
    try:
        for source, folder in [(path, before) for path in old] + [(path, target) for path in new]:
            os.replace(source, folder / source.name)
            moved.append((source, folder / source.name))
    except OSError:
        for source, destination in reversed(moved):
            os.replace(destination, source)
        raise


def _keep(made: Path, work: Path) -> Path:
    """Move a finished export out of the working folder, and return its new path."""
    name = work.name.removeprefix(".").removesuffix(_WORK.removeprefix(".")).rstrip(".")
    names = [f"{name or 'phi3ov'}-finished{number}" for number in ("", *range(2, 100))]
    kept = next(path for path in map(work.parent.joinpath, names) if not path.exists())
    os.replace(made, kept)
    return kept
