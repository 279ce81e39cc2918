"""A batch's output file: encode and check records, lock the file, and check that a job owns it.

`phi3ov.batch.file` reads the input and answers it; its docstring describes both files.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..answer.reply import Reply
from ..atomic_file import replace_file
from ..errors import GenerationError, OptionError, Phi3OVError


def describe_reply(reply: Reply) -> dict[str, Any]:
    """Return a reply as plain JSON values; fields that were not requested are left out."""
    record = _describe_answer(reply)
    if reply.candidates:
        record["candidates"] = [_describe_answer(candidate) for candidate in reply.candidates]
    return record


def _describe_answer(reply: Reply) -> dict[str, Any]:
    record: dict[str, Any] = {
        "text": reply.text,
        "finish_reason": reply.finish_reason,
        "usage": asdict(reply.usage),
        "timings": asdict(reply.timings),
        "seed": reply.seed,
    }
    if reply.reasoning:
        record["reasoning"] = reply.reasoning
    if reply.parsed is not None:  # an instance of a class is written as the JSON it was parsed from
        is_text = isinstance(reply.parsed, str)
        record["parsed"] = reply.parsed if is_text else json.loads(reply.text)
    if reply.logprobs is not None:
        record["logprobs"] = list(reply.logprobs)
    if reply.top_logprobs is not None:
        record["top_logprobs"] = [[list(pair) for pair in token] for token in reply.top_logprobs]
    return record


def encode_record(line: int, identity: str | int | None, outcome: Reply | Phi3OVError) -> bytes:
    """Return the output line for one input line."""
    record: dict[str, Any] = {"line": line, "id": identity}
    if isinstance(outcome, Phi3OVError):
        partial = outcome.partial_text if isinstance(outcome, GenerationError) else ""
        record["error"] = {
            "type": type(outcome).__name__,
            "message": str(outcome),
            "partial_text": partial,
        }
    else:
        record |= describe_reply(outcome)
    try:
        return json.dumps(record, ensure_ascii=False).encode() + b"\n"
    except (
        UnicodeEncodeError
    ):  # an error may quote a lone surrogate, which JSON can only hold escaped
        return json.dumps(record).encode() + b"\n"


def claim_output(target: Path, job: dict[str, Any], defaults: dict[str, Any]) -> None:
    """Check that ``target`` is new or belongs to ``job``, and write the job file next to it.

    Args:
        target: The output.
        job: The inputs that determine the records.
        defaults: Values of the same shape as ``job`` that hold for a field which an older
            version of phi3ov did not know and therefore did not write.

    Raises:
        OptionError: ``target`` belongs to another job, or to no batch.
    """
    claim = target.with_name(target.name + ".job")
    begun = target.exists() and target.stat().st_size > 0
    claim_job(claim, job, defaults, target=target, begun=begun)


def claim_job(
    claim: Path, job: dict[str, Any], defaults: dict[str, Any], *, target: Path, begun: bool
) -> None:
    """Compare a job with its job file; write the file if the job has not begun.

    Args:
        claim: The job file.
        job: The inputs that determine the records.
        defaults: See `claim_output`.
        target: The output, named in errors.
        begun: Whether ``target`` holds records.

    Raises:
        OptionError: ``target`` belongs to another job, or to no batch.
    """
    job = json.loads(json.dumps(job))  # as it will be read
    if begun:
        before = _completed(_read_claim(claim, target), json.loads(json.dumps(defaults)))
        differing = [name for name in job if before.get(name) != job[name]]
        if differing:
            raise OptionError(
                f"{target} was begun with different {' and '.join(differing)}. Use the same as "
                "before, or choose another output."
            )
        return
    with replace_file(claim) as file:
        file.write(json.dumps(job, indent=2).encode() + b"\n")


def _completed(saved: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Return ``saved`` with the ``defaults`` of the fields that it lacks, at every level."""
    nested = {
        name: _completed(saved[name], default)
        for name, default in defaults.items()
        if isinstance(default, dict) and isinstance(saved.get(name), dict)
    }
    return {**defaults, **saved, **nested}


def _read_claim(claim: Path, target: Path) -> dict[str, Any]:
    try:
        before = json.loads(claim.read_bytes())
    except (OSError, ValueError) as error:
        raise OptionError(
            f"{target} exists, and {claim.name} next to it does not say that a batch began it. "
            "Choose another output."
        ) from error
    if not isinstance(before, dict):
        raise OptionError(f"{claim} is damaged. Choose another output.")
    return before


def repair_output(target: Path) -> dict[int, bool]:
    """Remove an incomplete last line; return each recorded line and whether it failed."""
    done: dict[int, bool] = {}
    with target.open("a+b") as records:
        records.seek(0)
        good = 0
        while raw := records.readline():
            record = _read_record(raw)
            if record is None:
                if records.read(1):
                    raise OptionError(
                        f"{target} is damaged: after byte {good} it holds something that is not a "
                        "record of a batch. Choose another output."
                    )
                break
            number, failed = record
            if number in done:
                raise OptionError(f"{target} is damaged: line {number} has two records.")
            done[number] = failed
            good += len(raw)
        records.truncate(good)
    return done


def _read_record(raw: bytes) -> tuple[int, bool] | None:
    """Return the input line of a record and whether it failed; None if the record is incomplete."""
    if not raw.endswith(b"\n"):
        return None
    try:
        record = json.loads(raw)
    except ValueError:
        return None
    if not isinstance(record, dict) or type(record.get("line")) is not int:
        return None
    return record["line"], "error" in record


@contextlib.contextmanager
def locked_output(target: Path) -> Iterator[None]:
    """Hold the lock that lets one process write ``target``; create its folder if needed.

    The empty lock file stays. If it were removed, a process that waits for it would lock a file
    that no longer exists, and the next process would lock a new one.

    Raises:
        OptionError: Another process is writing ``target``, or it cannot be written.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(target.with_name(f".{target.name}.lock"), timeout=0)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise OptionError(f"Another process is writing {target}. Wait for it to end.") from error
    except OSError as error:
        raise OptionError(f"{target} cannot be written: {error}. Choose another output.") from error
    try:
        yield
    finally:
        lock.release()
