r"""Answer the conversations of a JSONL file into another JSONL file, resumable at any moment.

Input, one JSON object per line (empty lines are skipped)::

    {"id": "a1", "messages": [{"role": "user", "content": "Hello"}], "options": {"seed": 7}}
    {"prompt": "Hello"}

``messages`` is a conversation; ``prompt`` is short for one user message. Both are text: nothing in
them becomes a control token. ``id``, a string or an integer, is copied to the record. ``options``
are fields of `GenerationOptions` for this line.

Output, one JSON object per line, in the order in which answers end: ``line`` (of the input, from
1), ``id``, and the reply as `describe_reply` writes it (``text``, ``finish_reason``, ``usage``,
``timings``, ``seed``, and ``parsed``, ``logprobs`` and ``candidates`` if requested), or ``error``
with ``type``, ``message`` and ``partial_text``.

A record is written as one line when its answer is complete. So a run that is killed leaves whole
records and at most one incomplete line. The next run removes that line and continues with the
input lines that have no record. A job file next to the output (``OUTPUT.job``) holds what the
records depend on: the input's SHA-256, the options, the context and the model's fingerprint. If
one of them differs, the run is refused. An option that the job file does not know, because an
older phi3ov wrote it, counts as having its default.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from ..answer.options import GenerationOptions
from ..answer.reply import Reply
from ..errors import Phi3OVError, PromptError
from ..prompt.messages import Message, require_text
from .records import claim_output, encode_record, locked_output, repair_output
from .runner import BatchProgress, BatchRequest, ReportProgress, waiting_options

if TYPE_CHECKING:
    from ..answer.options import Options
    from ..artifact.fingerprint import ModelFingerprint
    from ..model import Phi3Model
    from ..runtime.lora import LoraAdapter
    from ..runtime.rope import ContextChoice

MAX_LINE_BYTES = 16 * 1024 * 1024
"""A longer line gets an error record; no conversation that fits a context is as long."""

_FIELDS = ("id", "messages", "prompt", "options")


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLine:
    """One line of the input.

    Attributes:
        number: Line number, from 1.
        id: The caller's name for the line.
        request: The conversation and its options; empty if the line is wrong.
        error: Why the line is wrong.
    """

    number: int
    id: str | int | None = None
    request: BatchRequest = BatchRequest(messages=())  # noqa: RUF009 - immutable
    error: Phi3OVError | None = None


def run_batch_file(
    model: Phi3Model,
    source: Path,
    target: Path,
    options: GenerationOptions,
    report: ReportProgress = lambda _progress: None,
) -> BatchProgress:
    """Answer the lines of ``source`` that have no record in ``target`` yet.

    Args:
        model: The model.
        source: The input, as described in this module.
        target: The output; new, or begun by an earlier run.
        options: Options of every line that does not set its own.
        report: Called after each record; counts the records of earlier runs, too.

    Returns:
        How many lines have a record now, and how many of these records are errors.

    Raises:
        OptionError: ``target`` belongs to another input, other options or another model, is not
            the output of a batch, or is being written by another process.
        StateError: The model is closed.
        EngineCrashedError: Three consecutive lines crashed the engine; finished ones are recorded.
    """
    with locked_output(target):
        return answer_lines(model, source, target, options, report)


def answer_lines(
    model: Phi3Model,
    source: Path,
    target: Path,
    options: GenerationOptions,
    report: ReportProgress,
) -> BatchProgress:
    """Do the work of `run_batch_file`; the caller must hold `locked_output`."""
    with source.open("rb") as lines:
        total, checksum = survey_input(lines)
        job = describe_job(
            model.fingerprint, model.context, options, checksum, adapter=model.adapter
        )

        def answer(done: Collection[int]) -> Iterator[Record]:
            for line, outcome in _answer(model, lines, done, options):
                yield Record.of(line, outcome)

        return record_answers(target, job, answer, total=total, report=report)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The output line of one input line.

    Attributes:
        line: Number of the input line, from 1.
        data: The output line.
        failed: Whether it holds an error.
    """

    line: int
    data: bytes
    failed: bool

    @classmethod
    def of(cls, line: BatchLine, outcome: Reply | Phi3OVError) -> Record:
        """Return the record of a line's outcome."""
        return cls(
            line=line.number,
            data=encode_record(line.number, line.id, outcome),
            failed=isinstance(outcome, Phi3OVError),
        )


def record_answers(
    target: Path,
    job: dict[str, Any],
    answer: Callable[[Collection[int]], Iterator[Record]],
    *,
    total: int,
    report: ReportProgress,
) -> BatchProgress:
    """Claim ``target`` for ``job`` and append the records that ``answer`` yields.

    Args:
        target: The output; the caller holds `locked_output`.
        job: The inputs that determine the records, from `describe_job`.
        answer: Receives the numbers of lines that have a record, and yields records of the others.
        total: Number of lines of the input.
        report: Called after each record.

    Raises:
        OptionError: ``target`` belongs to another job, or is damaged.
    """
    claim_output(target, job, {"options": describe_defaults()})
    done = repair_output(target)
    now = BatchProgress(done=len(done), failed=sum(done.values()), total=total)
    report(now)
    with target.open("ab") as records:
        for record in answer(done.keys()):
            records.write(record.data)
            records.flush()  # a kill from now on leaves the record
            now = BatchProgress(done=now.done + 1, failed=now.failed + record.failed, total=total)
            report(now)
    return now


def _answer(
    model: Phi3Model, lines: BinaryIO, done: Collection[int], options: GenerationOptions
) -> Iterator[tuple[BatchLine, Reply | Phi3OVError]]:
    """Yield the outcome of each line that is not ``done``, as answers end."""
    pending = (parse_line(*line) for line in read_lines(lines) if line[0] not in done)
    return answer_parsed(model, pending, options)


def answer_parsed(
    model: Phi3Model, lines: Iterable[BatchLine], options: GenerationOptions
) -> Iterator[tuple[BatchLine, Reply | Phi3OVError]]:
    """Yield each line with its outcome, as answers end; wrong lines have their own error."""
    asked: dict[int, BatchLine] = {}

    def requests() -> Iterator[BatchRequest]:
        for index, line in enumerate(lines):
            asked[index] = line
            yield line.request

    for result in model.iter_batch(requests(), **waiting_options(options)):
        line = asked.pop(result.index)
        yield line, line.error or result.outcome


def read_lines(file: BinaryIO, *, after: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield number and bytes of each non-empty line; a line that is too long is cut.

    Args:
        file: The input; read from where it stands.
        after: Number of the line before that place.
    """
    number = after
    while raw := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        end = raw
        while not end.endswith(b"\n") and (end := file.readline(MAX_LINE_BYTES)):
            pass
        if raw.strip():
            yield number, raw


def parse_line(number: int, raw: bytes) -> BatchLine:
    """Return a line of the input; one that is wrong keeps its error."""
    identity: str | int | None = None
    try:
        if len(raw) > MAX_LINE_BYTES:
            raise PromptError(f"The line is longer than {MAX_LINE_BYTES} bytes.")
        values = _parse_json(raw)
        identity = _read_id(values)
        options = values.get("options", {})
        if not isinstance(options, dict):
            raise PromptError(f"options={_short(options)} is not a JSON object.")
        request = BatchRequest(messages=_read_messages(values), options=cast("Options", options))
        return BatchLine(number=number, id=identity, request=request)
    except Phi3OVError as error:
        return BatchLine(number=number, id=identity, error=error)


def _parse_json(raw: bytes) -> dict[str, Any]:
    try:
        values = json.loads(raw)
    except (ValueError, RecursionError) as error:  # also bytes that are not UTF-8
        raise PromptError(f"The line is not JSON: {error}.") from error
    if not isinstance(values, dict):
        raise PromptError(f"The line is not a JSON object: {_short(values)}.")
    return values


def _read_id(values: dict[str, Any]) -> str | int | None:
    identity = values.get("id")
    if isinstance(identity, bool) or not isinstance(identity, str | int | None):
        raise PromptError(f"id={_short(identity)} is neither a string nor an integer.")
    if isinstance(identity, str):
        require_text("id", identity)
    return identity


def _read_messages(values: dict[str, Any]) -> list[Message]:
    unknown = sorted(values.keys() - set(_FIELDS))
    if unknown:
        listed = ", ".join(map(_short, unknown))
        raise PromptError(f"Unknown fields: {listed}. Known: {', '.join(_FIELDS)}.")
    if ("messages" in values) == ("prompt" in values):
        raise PromptError("The line must have either 'messages' or 'prompt'.")
    if "prompt" in values:
        return [Message("user", values["prompt"])]
    messages = values["messages"]
    if not isinstance(messages, list):
        raise PromptError(f"messages={_short(messages)} is not a JSON array.")
    for message in messages:
        if not isinstance(message, dict) or message.keys() != {"role", "content"}:
            raise PromptError(
                f"{_short(message)} is not a message: it needs 'role' and 'content' alone."
            )
    return [Message(message["role"], message["content"]) for message in messages]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def survey_input(lines: BinaryIO) -> tuple[int, str]:
    """Return the number of non-empty lines and the file's SHA-256."""
    digest = hashlib.sha256()
    while part := lines.read(2**20):
        digest.update(part)
    lines.seek(0)
    total = sum(1 for _ in read_lines(lines))
    lines.seek(0)
    return total, digest.hexdigest()


def describe_job(
    fingerprint: ModelFingerprint,
    context: ContextChoice,
    options: GenerationOptions,
    checksum: str,
    *,
    adapter: LoraAdapter | None,
) -> dict[str, Any]:
    """Return the inputs that determine the answers; device, engine and limits may change.

    Args:
        fingerprint: The model.
        context: Its context and rope factors.
        options: Options of every conversation.
        checksum: Checksum of the input, from `survey_input`.
        adapter: The LoRA adapter that the model was loaded with.
    """
    return {
        "input": checksum,
        "options": _describe_options(options),
        "model": fingerprint.to_values(),
        "context": asdict(context),
        "adapter": None if adapter is None else adapter.fingerprint(),
    }


def describe_defaults() -> dict[str, Any]:
    """Return the options that hold for a claim which does not name them."""
    return _describe_options(GenerationOptions())


def _describe_options(options: GenerationOptions) -> dict[str, Any]:
    """Return every option that an answer depends on, also those that have their default.

    A later version may change a default, and a job that it resumes must notice.
    """
    chosen = asdict(options)
    del chosen["on_full_queue"]
    shape = options.shape()
    if shape is not None and isinstance(options.json_schema, type):
        chosen["json_schema"] = shape.grammar  # identifies the class by its content
    return chosen
