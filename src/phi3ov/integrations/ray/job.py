"""``phi3ov batch --ray``: the lines of a JSONL file answered on a Ray cluster.

Input, output, job file and resuming are those of `phi3ov.batch.file`, so a job that was begun on
one machine can continue on a cluster, and vice versa. The driver writes the output; the nodes need
only the model. Input is read on the driver's node, in blocks of lines that have no record.
"""

from __future__ import annotations

import logging
import math
import socket
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...answer.options import GenerationOptions
from ...batch.file import Record, read_lines, record_answers, survey_input
from ...batch.runner import BatchProgress, ReportProgress
from ...errors import GenerationError, OptionError, Phi3OVError
from ...validation import require_integer
from .actors import AnswerLines, LoadOptions
from .dataset import FULL_BLOCK, full_block, import_ray_data, model_job, pool_arguments

if TYPE_CHECKING:
    import pyarrow
    from ray.data import Dataset

BLOCKS_PER_ACTOR = 4
"""Blocks per actor for a short input, so that all actors end at about the same time."""

_CONNECT_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RayCluster:
    """The Ray cluster, and the share of it that is used.

    Attributes:
        address: ``"auto"`` for the cluster that this machine belongs to, ``HOST:PORT`` of its
            head, or ``"local"`` for a new one on this machine only. An existing connection of this
            process is used instead.
        actors: Number of actors, each with a loaded model; None for as many as the CPUs allow.
        cores: CPUs per actor; None for all CPUs of the smallest node.

    Raises:
        OptionError: A number is out of range.
    """

    address: str = "auto"
    actors: int | None = None
    cores: int | None = None

    def __post_init__(self) -> None:
        for name in ("actors", "cores"):
            if getattr(self, name) is not None:
                require_integer(name, getattr(self, name), least=1)


def answer_lines_on_ray(
    path: str | Path,
    source: Path,
    target: Path,
    options: GenerationOptions,
    report: ReportProgress = lambda _progress: None,
    *,
    cluster: RayCluster = RayCluster(),
    load: LoadOptions = LoadOptions(),  # noqa: B008 - immutable
) -> BatchProgress:
    """Answer the lines of ``source`` that have no record in ``target`` yet.

    If a node dies, the blocks of its actor are answered again. The caller must hold
    `phi3ov.batch.records.locked_output`.

    Args:
        path: The exported folder, at the same path on every node and here, or a hub id.
        source: The input: see `phi3ov.batch.file`.
        target: The output; new, or begun by an earlier run with or without Ray.
        options: Options of every line that does not set its own.
        report: Called after each record.
        cluster: The cluster.
        load: Load options of each actor.

    Returns:
        How many lines have a record now, and how many of these records are errors.

    Raises:
        OptionError: ``target`` belongs to another job, the cluster does not exist, or it has too
            few CPUs.
        ArtifactError: A node has another model at ``path``, or none.
        GenerationError: The job failed on the cluster; finished blocks are recorded.
        MissingDependencyError: Ray Data is not installed.
    """
    import_ray_data()
    with source.open("rb") as lines:
        total, checksum = survey_input(lines)
    job, fingerprint = model_job(path, load, options, checksum)

    def answer(done: Collection[int]) -> Iterator[Record]:
        if len(done) == total:
            return
        with _connected(cluster.address):
            actors, cores = _share(cluster)
            rows = _rows_per_block(total - len(done), actors, full_block(load))
            dataset = _read_on_this_node(list(cut_input(source, done, rows))).map_batches(
                AnswerLines,
                fn_constructor_args=(str(path),),
                fn_constructor_kwargs={
                    "options": options,
                    "load": load,
                    "fingerprint": fingerprint,
                },
                batch_size=None,
                **pool_arguments(actors=actors, cores=cores),
            )
            with _translated():
                blocks = dataset.iter_batches(batch_size=None, batch_format="pyarrow")
                yield from collect_records(blocks, done)

    end = record_answers(target, job, answer, total=total, report=report)
    if end.done != total:
        raise GenerationError(
            f"The cluster returned {end.done} of {total} lines. Run the command again to continue."
        )
    return end


def cut_input(source: Path, done: Collection[int], rows: int) -> Iterator[dict[str, Any]]:
    """Cut the input into parts, each with ``rows`` lines that are not ``done``.

    Yields:
        Rows for `read_range`: the file, the byte offset of the part, the number of the line before
        it, and the numbers of its lines.
    """
    path = str(source.absolute())
    with source.open("rb") as file:
        offset = after = 0
        wanted: list[int] = []
        for number, _ in read_lines(file):
            if number not in done:
                wanted.append(number)
            if len(wanted) == rows:
                yield {"path": path, "offset": offset, "after": after, "lines": wanted}
                offset, after, wanted = file.tell(), number, []
        if wanted:
            yield {"path": path, "offset": offset, "after": after, "lines": wanted}


def _rows_per_block(pending: int, actors: int, most: int) -> int:
    """Return the lines per block: full blocks for a long input, even parts for a short one."""
    least = most // FULL_BLOCK  # fewer would not fill the engine's batch
    return max(least, min(most, math.ceil(pending / (actors * BLOCKS_PER_ACTOR))))


def _read_on_this_node(parts: list[dict[str, Any]]) -> Dataset:
    """Return a dataset with a block of line numbers and bytes for each part."""
    import ray

    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    return ray.data.from_items(parts, override_num_blocks=len(parts)).map_batches(
        read_range, batch_size=1, batch_format="pyarrow", num_cpus=0, label_selector=here
    )


def read_range(part: pyarrow.Table) -> pyarrow.Table:
    """Read the lines of one part of the input, given as a table of one row."""
    import pyarrow as pa

    [row] = part.to_pylist()
    wanted = set(row["lines"])
    numbers: list[int] = []
    raws: list[bytes] = []
    with Path(row["path"]).open("rb") as file:
        file.seek(row["offset"])
        for number, raw in read_lines(file, after=row["after"]):
            if number in wanted:
                numbers.append(number)
                raws.append(raw)
                if len(numbers) == len(wanted):
                    break
    return pa.table(
        {"line": pa.array(numbers, pa.int64()), "raw": pa.array(raws, pa.large_binary())}
    )


def collect_records(blocks: Iterable[pyarrow.Table], done: Collection[int]) -> Iterator[Record]:
    """Yield the records of each block as it arrives, each line once.

    Args:
        blocks: What `AnswerLines` returned. Ray answers a block again when it loses the result.
        done: Lines that have a record already.
    """
    seen: set[int] = set()
    for block in blocks:
        for row in block.to_pylist():
            if row["line"] not in seen and row["line"] not in done:
                seen.add(row["line"])
                yield Record(line=row["line"], data=row["data"], failed=row["failed"])


def _share(cluster: RayCluster) -> tuple[int, int]:
    """Return the number of actors, and the CPUs per actor."""
    import ray

    sizes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    sizes = [size for size in sizes if size > 0]
    cores = min(sizes, default=1) if cluster.cores is None else cluster.cores
    room = sum(size // cores for size in sizes)
    actors = room if cluster.actors is None else cluster.actors
    if actors == 0 or actors > room:
        raise OptionError(
            f"The cluster has nodes with {', '.join(map(str, sizes)) or 'no'} CPUs: that is room "
            f"for {room} actors with {cores} cores each, and {actors or 'at least one'} are "
            "needed. Ask for fewer actors or fewer cores."
        )
    return actors, cores


@contextmanager
def _connected(address: str) -> Iterator[None]:
    """Connect to the cluster unless this process is connected; silences Ray Data's output."""
    import ray

    owns = not ray.is_initialized()
    if owns:
        _require_reachable(address)
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise OptionError(
                f"There is no Ray cluster at {address!r}: {error} Start one with 'ray start "
                "--head', or use 'local'."
            ) from error
    context = ray.data.DataContext.get_current()
    logger = logging.getLogger("ray.data")  # does not propagate; phi3ov has its own progress bar
    bars, context.enable_progress_bars = context.enable_progress_bars, False
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars = bars
        logger.setLevel(level)
        if owns:
            ray.shutdown()


def _require_reachable(address: str) -> None:
    """Connect to ``HOST:PORT`` once: Ray itself tries for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise OptionError(
            f"Nothing listens at {address!r} ({error}), so there is no Ray cluster. Start one with "
            "'ray start --head', or use 'local'."
        ) from error


@contextmanager
def _translated() -> Iterator[None]:
    """Translate Ray's errors: raise phi3ov's error that ended a task, else `GenerationError`."""
    from ray.exceptions import RayError

    try:
        yield
    except RayError as error:
        raise _cause_of(error) from error


def _cause_of(error: BaseException) -> Phi3OVError:
    cause: Any = error
    while cause is not None:
        if isinstance(cause, Phi3OVError):
            return cause
        cause = getattr(cause, "cause", None) or cause.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # An error while an actor loads the model arrives as text that ends with a traceback.
    return GenerationError(f"Ray ended the job: {lines[-1] if lines else type(error).__name__}")
