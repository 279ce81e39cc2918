"""Messages between the worker engine and its child process: one JSON object per line.

The first line that the child reads is different: a JSON list of folders, its ``sys.path``. With
it the child finds msgspec, which reads all other lines.

Both sides check the length of each line and the fields and types of each message. The values of
a request are not checked again: `GenerationOptions` has done so, and the two processes trust each
other. A line that does not fit is a `ProtocolError` and ends the connection.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import IO, Annotated, Any

import msgspec

from ...answer.token_stream import TokenRequest
from ...runtime.rope import RopeFactors

MAX_LINE_BYTES = 8 * 1024 * 1024
"""Longest line, in bytes. The longest prompt of the family (131 072 ids) takes less."""

Count = Annotated[int, msgspec.Meta(ge=0)]
TokenId = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]


class ProtocolError(ValueError):
    """A line that the other process would not write."""


class Message(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="kind",
    tag=str.lower,
):
    """Base of all messages. The field ``kind`` on the line is the name of the class."""


class Load(Message, frozen=True, kw_only=True):
    """First command to the child, sent once: what to load.

    Attributes:
        folder: The artifact's absolute path.
        device: OpenVINO's name of the device.
        properties: OpenVINO's properties.
        context_tokens: `ContextChoice.tokens`.
        factors: `ContextChoice.factors`.
        max_running: Maximum number of requests in the batch.
        blocks: Number of blocks in the KV cache.
        block_tokens: Tokens per block.
        work_folder: Folder for temporary files, which the parent removes; may be empty.
        prompt_chunk_tokens: Maximum number of prompt tokens in a step; 0 lets the child choose.
        candidate_tokens: Draft tokens per forward pass; 0 disables speculation.
        ngram_tokens: Longest n-gram of prompt lookup; 0 disables prompt lookup.
        draft_folder: The draft model's absolute path; empty for none.
        draft_factors: LongRoPE factors of the draft model.
        adaptive: Whether to adapt the number of draft tokens to acceptance.
        candidate_cost: Additional cost of a pass per draft token.
        draft_cost: Cost of the draft model's pass relative to the model's.
        adapter: Absolute path of a LoRA adapter's weights; empty for none.
        adapter_scale: Scale of the product of the adapter's matrices.
    """

    folder: str
    device: str
    properties: dict[str, str]
    context_tokens: Count
    factors: RopeFactors
    max_running: Count
    blocks: Count
    block_tokens: Count
    work_folder: str = ""
    prompt_chunk_tokens: Count = 0
    candidate_tokens: Count = 0
    ngram_tokens: Count = 0
    draft_folder: str = ""
    draft_factors: RopeFactors = "none"
    adaptive: bool = True
    candidate_cost: float = 0.0
    draft_cost: float = 0.0
    adapter: str = ""
    adapter_scale: float = 1.0


class Submit(Message, frozen=True, kw_only=True):
    """Command: generate. ``number`` identifies the request in later messages."""

    number: Count
    request: TokenRequest


class Cancel(Message, frozen=True, kw_only=True):
    """Command: stop the request if it has not ended."""

    number: Count


class Forget(Message, frozen=True, kw_only=True):
    """Command: empty the KV cache once the requests before this one have ended."""


class Ready(Message, frozen=True, kw_only=True):
    """First report, sent once: the model is loaded."""


class Failed(Message, frozen=True, kw_only=True):
    """Last report: the child cannot load the model or cannot continue.

    Attributes:
        error: Name of a class in `phi3ov.errors`.
        message: The error's message.
        option: Name of the option that an `OptionError` means, if any.
    """

    error: str
    message: str
    option: str | None = None


class Progress(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Result of one step for one request.

    Attributes:
        number: The request.
        token_ids: The new ids; may be empty when the request has ended.
        logprobs: Their log-probabilities, if requested.
        cached_tokens: `TokenStream.cached_tokens`.
        checked: Number of draft tokens that the step checked.
        ended: Whether this is the last progress of the request.
        error: The error that ended the request, if any.
    """

    number: Count
    token_ids: tuple[TokenId, ...]
    logprobs: tuple[float, ...] = ()
    cached_tokens: Count = 0
    checked: Count = 0
    ended: bool = False
    error: str | None = None


class Step(Message, frozen=True, kw_only=True):
    """Report: the results of one step for the requests of the batch."""

    progress: tuple[Progress, ...]


Command = Load | Submit | Cancel | Forget
Report = Ready | Failed | Step

_COMMANDS: msgspec.json.Decoder[Command] = msgspec.json.Decoder(Command)
_REPORTS: msgspec.json.Decoder[Report] = msgspec.json.Decoder(Report)


def encode_paths(folders: tuple[str, ...]) -> bytes:
    """Return the first line for the child: the folders of its ``sys.path``."""
    return json.dumps(folders).encode("ascii") + b"\n"


def encode(message: Command | Report) -> bytes:
    """Return a message as a line."""
    return msgspec.json.encode(message) + b"\n"


def read_lines(pipe: IO[bytes]) -> Iterator[bytes]:
    """Yield each complete line of ``pipe``.

    An incomplete last line is dropped: the process that wrote it died.

    Raises:
        ProtocolError: A line is longer than `MAX_LINE_BYTES`.
    """
    while line := pipe.readline(MAX_LINE_BYTES + 1):
        if len(line) > MAX_LINE_BYTES:
            raise ProtocolError(f"A line is longer than {MAX_LINE_BYTES} bytes.")
        if line.endswith(b"\n"):
            yield line


def decode_command(line: bytes) -> Command:
    """Return the command in ``line``.

    Raises:
        ProtocolError: ``line`` is not a command.
    """
    command: Command = _decode(_COMMANDS, line, "command")
    return command


def decode_report(line: bytes) -> Report:
    """Return the report in ``line``.

    Raises:
        ProtocolError: ``line`` is not a report.
    """
    report: Report = _decode(_REPORTS, line, "report")
    return report


def _decode(decoder: msgspec.json.Decoder[Any], line: bytes, expected: str) -> Any:
    try:
        message = decoder.decode(line)
        if isinstance(message, Step):  # one per token, of structs alone, which check themselves
            return message
        read, written = msgspec.json.decode(line), msgspec.json.decode(encode(message))
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ProtocolError(f"A line is not a {expected}: {error}: {line[:80]!r}") from error
    # A struct refuses unknown fields; a dataclass, such as the request, ignores them.
    if wrong := _wrong_field(read, written):
        raise ProtocolError(f"A {expected} has {wrong}: {line[:80]!r}")
    return message


def _wrong_field(read: Any, written: Any, place: str = "") -> str | None:
    """Return the name of a field that only one of ``read`` and ``written`` has."""
    if isinstance(read, dict) and isinstance(written, dict):
        for name in sorted(read.keys() ^ written.keys()):
            return f"{'an unknown' if name in read else 'no'} field {place}{name}"
        pairs = [(read[name], written[name], f"{place}{name}.") for name in read]
    elif isinstance(read, list) and isinstance(written, list):
        pairs = [(item, other, place) for item, other in zip(read, written, strict=False)]
    else:
        return None
    found = (_wrong_field(*pair) for pair in pairs if isinstance(pair[0], dict | list))
    return next(filter(None, found), None)
