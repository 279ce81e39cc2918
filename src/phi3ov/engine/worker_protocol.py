"""What the worker engine and its process say to each other: one JSON object a line.

Both sides check each line they get: its length, its fields, their types and ranges. Whatever
else arrives is a `ProtocolError`, and the connection is over. Pickle would run what it reads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import IO, Any, cast, get_args

from ..rope import RopeFactors
from . import TokenRequest

MAX_LINE_BYTES = 8 * 1024 * 1024
"""More than the longest prompt of the family (131 072 ids) takes."""

_MAX_TOKEN_ID = 2**31 - 1
_MAX_NUMBER = 2**53


class ProtocolError(ValueError):
    """A line that the other side would never write."""


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
        sys_path: Where the parent finds its packages.
    """

    folder: str
    device: str
    properties: dict[str, str]
    context_tokens: int
    factors: RopeFactors
    max_running: int
    sys_path: tuple[str, ...]


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
        cached_tokens: `TokenStream.cached_tokens`.
        ended: Whether nothing follows.
        error: Why it failed; None if it did not.
    """

    number: int
    token_ids: tuple[int, ...]
    cached_tokens: int = 0
    ended: bool = False
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Child to parent: what the requests of the batch got."""

    progress: tuple[Progress, ...]


Command = Load | Submit | Cancel
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
    taken = _Fields(_parse(line))
    kind = taken.text("kind")
    command: Command
    if kind == "cancel":
        command = Cancel(number=taken.integer("number"))
    elif kind == "submit":
        command = Submit(number=taken.integer("number"), request=_request(taken))
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
    taken = _Fields(_parse(line))
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


def _load(taken: _Fields) -> Load:
    properties = taken.take("properties", dict)
    sys_path = taken.take("sys_path", list)
    if not all(isinstance(one, str) for one in (*properties.values(), *sys_path)):
        raise ProtocolError("properties and sys_path must hold strings only.")
    factors = taken.text("factors")
    if factors not in get_args(RopeFactors):
        raise ProtocolError(f"factors={factors!r} is not one of {get_args(RopeFactors)}.")
    return Load(
        folder=taken.text("folder"),
        device=taken.text("device"),
        properties=properties,
        context_tokens=taken.integer("context_tokens", least=1),
        factors=cast("RopeFactors", factors),
        max_running=taken.integer("max_running", least=1),
        sys_path=tuple(sys_path),
    )


def _request(taken: _Fields) -> TokenRequest:
    prompt_ids = taken.token_ids("prompt_ids")
    if not prompt_ids:
        raise ProtocolError("prompt_ids is empty.")
    top_k, seed = taken.take("top_k", int, None), taken.take("seed", int, None)
    return TokenRequest(
        prompt_ids=prompt_ids,
        max_new_tokens=taken.integer("max_new_tokens", least=1, most=_MAX_TOKEN_ID),
        stop_ids=frozenset(taken.token_ids("stop_ids")),
        temperature=taken.number("temperature", most=100.0),
        top_p=taken.number("top_p", most=1.0),
        top_k=None if top_k is None else _in_range("top_k", top_k, 1, 2**31 - 1),
        repetition_penalty=taken.number("repetition_penalty", most=100.0),
        seed=None if seed is None else _in_range("seed", seed, 0, 2**32 - 1),
    )


def _progress(part: Any) -> Progress:
    taken = _Fields(part)
    error = taken.take("error", str, None)
    progress = Progress(
        number=taken.integer("number"),
        token_ids=taken.token_ids("token_ids"),
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


class _Fields:
    """A JSON object, each field of which is taken once and checked."""

    def __init__(self, value: Any) -> None:
        if not isinstance(value, dict):
            raise ProtocolError(f"{str(value)[:80]} is no JSON object.")
        self._values = dict(value)

    def take(self, name: str, *types: type | None) -> Any:
        """Return the field, which must be of exactly one of ``types``; None stands for null."""
        if name not in self._values:
            raise ProtocolError(f"The field {name!r} is missing.")
        value = self._values.pop(name)
        if (None if value is None else type(value)) not in types:
            raise ProtocolError(f"{name}={str(value)[:80]} has the wrong type.")
        return value

    def text(self, name: str) -> str:
        return cast("str", self.take(name, str))

    def integer(self, name: str, *, least: int = 0, most: int = _MAX_NUMBER) -> int:
        return _in_range(name, self.take(name, int), least, most)

    def number(self, name: str, *, most: float) -> float:
        value = self.take(name, int, float)
        if not 0 <= value <= most:  # false for NaN
            raise ProtocolError(f"{name}={value} is not between 0 and {most}.")
        return float(value)

    def token_ids(self, name: str) -> tuple[int, ...]:
        values = self.take(name, list)
        for value in values:
            if type(value) is not int or not 0 <= value <= _MAX_TOKEN_ID:
                raise ProtocolError(f"{name} holds {str(value)[:80]}, which is no token id.")
        return tuple(values)

    def require_no_more(self) -> None:
        """Refuse fields that nobody took."""
        if self._values:
            raise ProtocolError(f"Unknown fields: {', '.join(sorted(self._values))[:200]}.")


def _in_range(name: str, value: int, least: int, most: int) -> int:
    if not least <= value <= most:
        raise ProtocolError(f"{name}={value} is not between {least} and {most}.")
    return value
