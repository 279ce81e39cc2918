"""Ray actors: a loaded model that answers one block of conversations after another.

Ray Data creates a callable class once per actor and calls it once per block.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...answer.options import GenerationOptions
from ...answer.reply import Reply
from ...artifact.fingerprint import ModelFingerprint
from ...batch.file import Record, answer_parsed, parse_line
from ...batch.runner import BatchRequest, waiting_options
from ...errors import ArtifactError, GenerationError, OptionError, Phi3OVError, PromptError
from ...loading import load_model
from ...model import Phi3Model
from ...runtime.config import RuntimeConfig
from ...runtime.limits import RequestLimits
from ...runtime.lora import LoraAdapter
from ...runtime.processor import usable_cpus

if TYPE_CHECKING:
    import pyarrow

PINNING = "ENABLE_CPU_PINNING"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """Arguments of `phi3ov.load_model` for each actor, always with ``engine="worker"``.

    Attributes:
        revision: Branch, tag or commit of a hub id.
        device: OpenVINO devices in order of preference.
        config: OpenVINO's settings. If ``threads`` is None, an actor uses one thread per CPU that
            Ray reserved for it, but not more than the CPUs that it may run on.
        limits: How many conversations run at the same time.
        context_tokens: Context length that prompt and answer share.
        cache_bytes: Maximum size of the KV cache.
        adapter: A LoRA adapter.

    Example:
        >>> LoadOptions(device=("CPU",)).limits.max_waiting
        256
    """

    revision: str | None = None
    device: tuple[str, ...] = ("GPU", "CPU")
    config: RuntimeConfig = RuntimeConfig()  # noqa: RUF009 - immutable
    limits: RequestLimits = RequestLimits()  # noqa: RUF009 - immutable
    context_tokens: int | None = None
    cache_bytes: int | None = None
    adapter: LoraAdapter | None = None

    def on_cores(self, cores: int) -> LoadOptions:
        """Return these options for an actor with ``cores`` CPUs of this machine.

        OpenVINO pins its threads to the first cores that the process may use. Two actors with some
        of the cores each would then share the first ones, so an actor with fewer threads than
        cores disables pinning and lets the operating system place the threads.

        Args:
            cores: CPUs that Ray reserved for the actor.
        """
        usable = usable_cpus()
        threads = self.config.threads or max(1, min(cores, usable))
        properties = dict(self.config.properties)
        if threads < usable:
            properties.setdefault(PINNING, "NO")
        return replace(self, config=replace(self.config, threads=threads, properties=properties))


class ModelActor:
    """A loaded model that answers blocks of conversations."""

    def __init__(
        self,
        path: str | Path,
        *,
        options: GenerationOptions = GenerationOptions(),  # noqa: B008 - immutable
        load: LoadOptions = LoadOptions(),
        fingerprint: ModelFingerprint | None = None,
    ) -> None:
        """Load the model on the actor's cores.

        Args:
            path: The exported folder, at the same path on every node, or a hub id.
            options: Options of every conversation.
            load: Load options of the model.
            fingerprint: Fingerprint of the job's model; None accepts any model.

        Raises:
            ArtifactError: The folder on this node holds another model, or none.
            Phi3OVError: As `phi3ov.load_model`.
        """
        arguments = load.on_cores(assigned_cores())
        self.model: Phi3Model = load_model(
            path,
            engine="worker",
            revision=arguments.revision,
            device=arguments.device,
            config=arguments.config,
            limits=arguments.limits,
            context_tokens=arguments.context_tokens,
            cache_bytes=arguments.cache_bytes,
            adapter=arguments.adapter,
        )
        self.options: GenerationOptions = options
        if fingerprint is not None:
            try:
                fingerprint.require(self.model.fingerprint)
            except ValueError as error:
                self.model.close()
                raise ArtifactError(
                    f"{path} on this node is not the model of the job: {error} Copy the folder to "
                    "every node, or put it on a file system that they share."
                ) from error


class AnswerConversations(ModelActor):
    """A callable class for ``Dataset.map_batches``: a block of conversations in, answers out.

    A block has a column ``messages`` (lists of messages in OpenAI's form) or ``prompt`` (text of
    one user message) and keeps all its columns and its order. Four columns are added:

    - ``answer``: the text; null if there is an error.
    - ``finish_reason``: as in `Reply.finish_reason`.
    - ``usage``: a struct of `Usage`.
    - ``error``: null, or a struct of ``type``, ``message`` and ``partial_text``, for a
      conversation that cannot be answered or that crashes the engine. The others are answered.

    Call ``map_batches`` with ``batch_format="pyarrow"``; `answer_dataset` sets all of its
    arguments. Blocks should hold many times the conversations that run at the same time (32),
    because the engine is not fully used at the end of a block.

    Example:
        >>> dataset.map_batches(  # doctest: +SKIP
        ...     AnswerConversations,
        ...     fn_constructor_args=("models/phi3-int4",),
        ...     batch_format="pyarrow",
        ...     batch_size=512,
        ...     num_cpus=8,
        ...     compute=ray.data.ActorPoolStrategy(size=2),
        ... )
    """

    def __call__(self, block: pyarrow.Table) -> pyarrow.Table:
        """Answer the conversations of a block.

        Raises:
            OptionError: The block is not a pyarrow table with exactly one column of
                conversations, or has a column of the same name as an answer's.
            EngineCrashedError: Three consecutive conversations crashed the engine.
        """
        rows = _read_conversations(block)
        outcomes: list[Reply | Phi3OVError | None] = [
            row if isinstance(row, Phi3OVError) else None for row in rows
        ]
        positions = [place for place, row in enumerate(rows) if isinstance(row, BatchRequest)]
        requests = [row for row in rows if isinstance(row, BatchRequest)]
        for result in self.model.iter_batch(requests, **waiting_options(self.options)):
            outcomes[positions[result.index]] = result.outcome
        return _add_answers(block, [outcome for outcome in outcomes if outcome is not None])


class AnswerLines(ModelActor):
    """A callable class for lines of a batch file: line numbers and bytes in, records out."""

    def __call__(self, block: pyarrow.Table) -> pyarrow.Table:
        """Answer the lines of a block; the record of an invalid line holds its error."""
        import pyarrow as pa

        numbers, raws = (block.column(name).to_pylist() for name in ("line", "raw"))
        lines = [parse_line(number, raw) for number, raw in zip(numbers, raws, strict=True)]
        records = [
            Record.of(*answered) for answered in answer_parsed(self.model, lines, self.options)
        ]
        return pa.table(
            {
                "line": pa.array([record.line for record in records], pa.int64()),
                "data": pa.array([record.data for record in records], pa.large_binary()),
                "failed": pa.array([record.failed for record in records], pa.bool_()),
            }
        )


def assigned_cores() -> int:
    """Return the number of CPUs that Ray reserved for this actor; outside Ray, all usable CPUs."""
    import ray

    if not ray.is_initialized() or ray.get_runtime_context().get_actor_id() is None:
        return usable_cpus()
    reserved = ray.get_runtime_context().get_assigned_resources().get("CPU", 0)
    return int(reserved) or usable_cpus()


def _read_conversations(block: pyarrow.Table) -> list[BatchRequest | Phi3OVError]:
    import pyarrow as pa

    if not isinstance(block, pa.Table):
        raise OptionError(
            f"A block of type {type(block).__name__} cannot be read. Give map_batches "
            'batch_format="pyarrow", or use phi3ov.integrations.ray.answer_dataset.'
        )
    names = [name for name in ("messages", "prompt") if name in block.column_names]
    if len(names) != 1:
        raise OptionError(
            f"The columns {', '.join(block.column_names)} must have either 'messages' or 'prompt'. "
            "Rename the column that holds the conversations."
        )
    taken = sorted(set(block.column_names) & set(ANSWER_COLUMNS))
    if taken:
        raise OptionError(
            f"The input has columns named like the answer's: {', '.join(taken)}. Rename them first."
        )
    [name] = names
    return [_read_row(name, value) for value in block.column(name).to_pylist()]


def _read_row(name: str, value: object) -> BatchRequest | Phi3OVError:
    if name == "prompt":
        if not isinstance(value, str):
            return PromptError(f"prompt={value!r:.80} is not a text.")
        return BatchRequest(messages=[{"role": "user", "content": value}])
    if not isinstance(value, Sequence) or isinstance(value, str):
        return PromptError(f"messages={value!r:.80} is not a list of messages.")
    return BatchRequest(messages=value)


ANSWER_COLUMNS = ("answer", "finish_reason", "usage", "error")
"""The columns that are added to a block."""


def _add_answers(block: pyarrow.Table, outcomes: Iterable[Reply | Phi3OVError]) -> pyarrow.Table:
    import pyarrow as pa

    usage = ("prompt_tokens", "cached_tokens", "completion_tokens", "accepted_tokens")
    types = {
        "answer": pa.large_string(),
        "finish_reason": pa.string(),
        "usage": pa.struct([(name, pa.int64()) for name in usage]),
        "error": pa.struct(
            [(name, pa.large_string()) for name in ("type", "message", "partial_text")]
        ),
    }
    rows = [_describe_outcome(outcome) for outcome in outcomes]
    for name, kind in types.items():
        block = block.append_column(name, pa.array([row.get(name) for row in rows], kind))
    return block


def _describe_outcome(outcome: Reply | Phi3OVError) -> dict[str, Any]:
    if isinstance(outcome, Reply):
        return {
            "answer": outcome.text,
            "finish_reason": outcome.finish_reason,
            "usage": asdict(outcome.usage),
        }
    partial = outcome.partial_text if isinstance(outcome, GenerationError) else ""
    error = {
        "type": type(outcome).__name__,
        # A message may quote a lone surrogate, which Arrow's text cannot hold.
        "message": str(outcome).encode(errors="backslashreplace").decode(),
        "partial_text": partial,
    }
    return {"error": error}
