"""Ray datasets of conversations: the actor pool that answers them, and checkpoint ownership."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from ...answer.options import GenerationOptions, Options
from ...artifact.fingerprint import ModelFingerprint
from ...batch.file import describe_defaults, describe_job
from ...batch.records import claim_job
from ...errors import MissingDependencyError, OptionError
from ...loading import find_artifact
from ...runtime.rope import choose_context
from ...validation import require_integer
from .actors import AnswerConversations, LoadOptions

if TYPE_CHECKING:
    from ray.data import Dataset
    from ray.data.checkpoint import CheckpointConfig

RUNNING = 32
"""Default number of conversations that the worker runs at the same time."""

FULL_BLOCK = 16
"""Conversations per block, as a multiple of those that run at the same time.

At the end of a block fewer and fewer conversations run. With a factor of 16, that costs a few per
cent.
"""


def answer_dataset(
    dataset: Dataset,
    path: str | Path,
    *,
    actors: int,
    cores: int,
    load: LoadOptions = LoadOptions(),  # noqa: B008 - immutable
    rows_per_block: int | None = None,
    **options: Unpack[Options],
) -> Dataset:
    """Answer the conversations of a dataset with a pool of actors; see `AnswerConversations`.

    If a node dies, its actor is restarted on a node with ``cores`` free CPUs, and its blocks are
    answered again. Blocks of another size are repartitioned first.

    Args:
        dataset: A dataset with a column ``messages`` or ``prompt``.
        path: The exported folder, at the same path on every node, or a hub id.
        actors: Number of actors, each with a loaded model; usually one per node.
        cores: CPUs per actor. Leave at least one CPU of the cluster for Ray's own tasks, such as
            reading and writing; otherwise Ray waits forever.
        load: Load options of each actor.
        rows_per_block: Conversations per block; None for 16 times those that run at the same time.
            A smaller number loses less work when a node dies, and is slower.
        **options: Fields of `GenerationOptions`, for all conversations.

    Returns:
        A lazy dataset with the columns ``answer``, ``finish_reason``, ``usage`` and ``error``
        added.

    Raises:
        OptionError: An argument is not allowed.
        MissingDependencyError: Ray Data is not installed.

    Example:
        >>> questions = ray.data.read_parquet("questions")  # doctest: +SKIP
        >>> answers = answer_dataset(  # doctest: +SKIP
        ...     questions, "/models/phi3-int4", actors=4, cores=15, max_new_tokens=200
        ... )
        >>> answers.write_parquet("answers")  # doctest: +SKIP
    """
    require_integer("actors", actors, least=1)
    require_integer("cores", cores, least=1)
    if rows_per_block is not None:
        require_integer("rows_per_block", rows_per_block, least=1)
    chosen = GenerationOptions().changed(options)
    # A reader puts many small files into one block, which a single actor would answer.
    blocks = dataset.repartition(
        target_num_rows_per_block=rows_per_block or full_block(load), strict=True
    )
    return blocks.map_batches(
        AnswerConversations,
        fn_constructor_args=(path,),
        fn_constructor_kwargs={"options": chosen, "load": load},
        batch_size=None,
        **pool_arguments(actors=actors, cores=cores),
    )


def full_block(load: LoadOptions) -> int:
    """Return the number of conversations per block that keeps the engine busy."""
    return FULL_BLOCK * (load.limits.max_running or RUNNING)


def pool_arguments(*, actors: int, cores: int) -> dict[str, Any]:
    """Return the arguments of ``map_batches`` that describe the actor pool."""
    data = import_ray_data()
    return {
        "batch_format": "pyarrow",
        "num_cpus": cores,
        "compute": data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=2),
    }


def claim_checkpoint(
    folder: str | Path,
    *,
    id_column: str,
    path: str | Path,
    source: str,
    load: LoadOptions = LoadOptions(),  # noqa: B008 - immutable
    **options: Unpack[Options],
) -> CheckpointConfig:
    """Return a Ray checkpoint that is tied to one input, model and set of options.

    Ray Data's checkpoint holds the ids of written rows and skips them in the next run, even with
    another model or other options. A job file beside the folder records the inputs of the job;
    another model, other options or another input are refused.

    Set the result as ``ray.data.DataContext.get_current().checkpoint_config`` before the dataset
    is read, and write the answered dataset to files: only a plan that reads, maps and writes has
    a checkpoint. Leave two CPUs and 1 GiB of Ray's memory besides the actors: when a job is
    resumed, the checkpoint's filter runs as a separate actor besides the tasks that read. Without
    room for both, Ray waits forever.

    Args:
        folder: The folder of the checkpoint, which every node sees at this path.
        id_column: A column that identifies a row, read with the input and kept.
        path: The exported folder or hub id.
        source: Identity of the input, such as its path and version, or its checksum.
        load: Load options of the model.
        **options: The options of the answers, as given to `answer_dataset`.

    Raises:
        OptionError: The folder belongs to another job, or to a checkpoint without a job file.
        ArtifactError: There is no such model.
        MissingDependencyError: Ray Data is not installed.

    Example:
        >>> context = ray.data.DataContext.get_current()  # doctest: +SKIP
        >>> context.checkpoint_config = claim_checkpoint(  # doctest: +SKIP
        ...     "/shared/checkpoint", id_column="id", path="/models/phi3-int4",
        ...     source="questions of May", max_new_tokens=200,
        ... )
    """
    import_ray_data()
    from ray.data.checkpoint import CheckpointConfig

    if not isinstance(source, str) or not source:
        raise OptionError(
            f"source={source!r} must be a text that identifies the input, such as its checksum.",
            option="source",
        )
    job = model_job(path, load, GenerationOptions().changed(options), source)[0]
    claims = Path(folder)
    claims.mkdir(parents=True, exist_ok=True)
    begun = any(claims.iterdir())
    claim_job(
        claims.with_name(f"{claims.name}.job"),  # Ray reads every file in the folder
        job | {"id_column": id_column},
        {"options": describe_defaults()},
        target=claims,
        begun=begun,
    )
    return CheckpointConfig(
        id_column=id_column,
        checkpoint_path=str(claims.absolute()),
        delete_checkpoint_on_success=False,
    )


def model_job(
    path: str | Path, load: LoadOptions, options: GenerationOptions, source: str
) -> tuple[dict[str, Any], ModelFingerprint]:
    """Return the inputs that determine answers, and the model's fingerprint, without loading it."""
    artifact = find_artifact(path, revision=load.revision)
    fingerprint = ModelFingerprint.of(artifact)
    context = choose_context(artifact.config, load.context_tokens)
    return describe_job(fingerprint, context, options, source, adapter=load.adapter), fingerprint


def import_ray_data() -> Any:
    """Import Ray Data.

    Raises:
        MissingDependencyError: Ray Data is not installed.
    """
    try:
        import ray.data
    except ImportError as error:
        raise MissingDependencyError(
            error.name or "ray", purpose="A batch on Ray", command='pip install "phi3ov[ray]"'
        ) from error
    return ray.data
