"""What the worker engine and its process say to each other: one JSON object a line.

Both sides check each line they get: its length, its fields, their types and ranges. Whatever
else arrives is a `ProtocolError`, and the connection is over. Pickle would run what it reads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import IO, Any, cast, get_args

from ...answer.token_stream import TokenRequest
from ...runtime.rope import RopeFactors
from .fields import MAX_TOKEN_ID, Fields, ProtocolError, in_range

MAX_LINE_BYTES = 8 * 1024 * 1024
"""More than the longest prompt of the family (131 072 ids) takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Parent to child, first and once: what to load.

    Attributes:
        folder: The artifact's absolute path.
        device: OpenVINO's name of the device.
        properties: OpenVINO's properties.
        context_tokens: `ContextChoice.tokens`.
        factors: `ContextChoice.factors`.
        max_running: How many requests may be in the batch.
        blocks: How many blocks the KV cache has.
        block_tokens: Tokens that a block holds.
        sys_path: Where the parent finds its packages.
        work_folder: Where temporary files go; the parent removes it. Empty if there are none.
        candidate_tokens: Tokens proposed for each pass; 0 is no speculation.
        ngram_tokens: Longest run that prompt lookup looks for; 0 is no prompt lookup.
        draft_folder: The draft model's absolute path; empty is none.
        draft_factors: The LongRoPE factors of the draft model.
        adapter: The absolute path of a LoRA adapter's weights; empty is none.
        adapter_scale: What the product of the adapter's matrices is multiplied with.
    """

    folder: str
    device: str
    properties: dict[str, str]
    context_tokens: int
    factors: RopeFactors
    max_running: int
    blocks: int
    block_tokens: int
    sys_path: tuple[str, ...]
    work_folder: str = ""
    candidate_tokens: int = 0
    ngram_tokens: int = 0
    draft_folder: str = ""
    draft_factors: RopeFactors = "none"
    adapter: str = ""
    adapter_scale: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Submit:
    """Parent to child: generate; ``number`` is new."""

    number: int
    request: TokenRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """Parent to child: stop that request, if it has not ended."""

    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Forget:
    """Parent to child: empty the KV cache once the requests before this have ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """Child to parent, once: the model is loaded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """Child to parent, last: why it cannot load the model, or go on.

    Attributes:
        error: The name of a phi3ov error.
        message: Its message.
    """

    error: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What one request got in one step.

    Attributes:
        number: Which request.
        token_ids: The new ids; may be empty when it ended.
        logprobs: Their log-probabilities, if the request asks for them.
        cached_tokens: `TokenStream.cached_tokens`.
        ended: Whether nothing follows.
        error: Why it failed; None if it did not.
    """

    number: int
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] = ()
    cached_tokens: int = 0
    ended: bool = False
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Child to parent: what the requests of the batch got."""

    progress: tuple[Progress, ...]


Command = Load | Submit | Cancel | Forget
Report = Ready | Failed | Step


def read_lines(pipe: IO[bytes]) -> Iterator[bytes]:
    """Yield each line of ``pipe``, but not a last one that its writer's death has cut off.

    Raises:
        ProtocolError: A line is longer than `MAX_LINE_BYTES`.
    """
    while line := pipe.readline(MAX_LINE_BYTES + 1):
        if len(line) > MAX_LINE_BYTES:
            raise ProtocolError(f"A line is longer than {MAX_LINE_BYTES} bytes.")
        if line.endswith(b"\n"):
            yield line


def encode(message: Command | Report) -> bytes:
    """Return a message as a line."""
    values = {"kind": type(message).__name__.lower()} | _values(message)
    if isinstance(message, Submit):
        values |= _values(values.pop("request"))
        values["stop_ids"] = sorted(message.request.stop_ids)
    elif isinstance(message, Step):
        values["progress"] = [_values(one) for one in message.progress]
    return json.dumps(values, separators=(",", ":")).encode("ascii") + b"\n"


def _values(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in fields(value)}


def decode_command(line: bytes) -> Command:
    """Return what the parent says in ``line``.

    Raises:
        ProtocolError: It is no command.
    """
    taken = Fields(_parse(line))
    kind = taken.text("kind")
    command: Command
    if kind == "cancel":
        command = Cancel(number=taken.integer("number"))
    elif kind == "submit":
        command = Submit(number=taken.integer("number"), request=_request(taken))
    elif kind == "forget":
        command = Forget()
    elif kind == "load":
        command = _load(taken)
    else:
        raise ProtocolError(f"kind={kind!r} is no command.")
    taken.require_no_more()
    return command


def decode_report(line: bytes) -> Report:
    """Return what the child says in ``line``.

    Raises:
        ProtocolError: It is no report.
    """
    taken = Fields(_parse(line))
    kind = taken.text("kind")
    report: Report
    if kind == "step":
        parts = taken.take("progress", list)
        report = Step(progress=tuple(_progress(part) for part in parts))
    elif kind == "ready":
        report = Ready()
    elif kind == "failed":
        report = Failed(error=taken.text("error"), message=taken.text("message"))
    else:
        raise ProtocolError(f"kind={kind!r} is no report.")
    taken.require_no_more()
    return report


def _load(taken: Fields) -> Load:
    properties = taken.take("properties", dict)
    sys_path = taken.take("sys_path", list)
    if not all(isinstance(one, str) for one in (*properties.values(), *sys_path)):
        raise ProtocolError("properties and sys_path must hold strings only.")
    return Load(
        folder=taken.text("folder"),
        device=taken.text("device"),
        properties=properties,
        context_tokens=taken.integer("context_tokens", least=1),
        factors=_factors(taken, "factors"),
        max_running=taken.integer("max_running", least=1),
        blocks=taken.integer("blocks", least=1),
        block_tokens=taken.integer("block_tokens", least=1),
        candidate_tokens=taken.integer("candidate_tokens"),
        ngram_tokens=taken.integer("ngram_tokens"),
        draft_folder=taken.text("draft_folder"),
        draft_factors=_factors(taken, "draft_factors"),
        adapter=taken.text("adapter"),
        adapter_scale=taken.number("adapter_scale", most=1000.0),
        sys_path=tuple(sys_path),
        work_folder=taken.text("work_folder"),
    )


def _factors(taken: Fields, name: str) -> RopeFactors:
    factors = taken.text(name)
    if factors not in get_args(RopeFactors):
        raise ProtocolError(f"{name}={factors!r} is not one of {get_args(RopeFactors)}.")
    return cast("RopeFactors", factors)


def _request(taken: Fields) -> TokenRequest:
    prompt_ids = taken.token_ids("prompt_ids")
    if not prompt_ids:
        raise ProtocolError("prompt_ids is empty.")
    top_k, seed = taken.take("top_k", int, None), taken.take("seed", int, None)
    return TokenRequest(
        prompt_ids=prompt_ids,
        max_new_tokens=taken.integer("max_new_tokens", least=1, most=MAX_TOKEN_ID),
        stop_ids=frozenset(taken.token_ids("stop_ids")),
        temperature=taken.number("temperature", most=100.0),
        top_p=taken.number("top_p", most=1.0),
        min_p=taken.number("min_p", most=1.0),
        top_k=None if top_k is None else in_range("top_k", top_k, 1, 2**31 - 1),
        repetition_penalty=taken.number("repetition_penalty", most=100.0),
        presence_penalty=taken.number("presence_penalty", least=-2.0, most=2.0),
        frequency_penalty=taken.number("frequency_penalty", least=-2.0, most=2.0),
        logprobs=taken.take("logprobs", bool),
        grammar=taken.take("grammar", str, None),
        seed=None if seed is None else in_range("seed", seed, 0, 2**32 - 1),
    )


def _progress(part: Any) -> Progress:
    taken = Fields(part)
    error = taken.take("error", str, None)
    progress = Progress(
        number=taken.integer("number"),
        token_ids=taken.token_ids("token_ids"),
        logprobs=taken.logprobs("logprobs"),
        cached_tokens=taken.integer("cached_tokens"),
        ended=taken.take("ended", bool),
        error=error,
    )
    taken.require_no_more()
    return progress


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"A line is not JSON: {line[:80]!r}") from error
