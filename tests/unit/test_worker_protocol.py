"""The worker's messages: they arrive as they were sent, and nothing else is read as one."""

from __future__ import annotations

import dataclasses
import io
import json
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phi3ov.answer.options import Sampling
from phi3ov.answer.token_stream import TokenRequest
from phi3ov.engine.worker import protocol as worker_protocol
from phi3ov.engine.worker.child import prompt_tokens_per_step
from phi3ov.engine.worker.protocol import (
    Cancel,
    Failed,
    Forget,
    Load,
    Message,
    Progress,
    ProtocolError,
    Ready,
    Step,
    Submit,
    decode_command,
    decode_report,
    encode,
    read_lines,
)


def _rounded(low: float, high: float) -> st.SearchStrategy[float]:
    """Return numbers that float32 holds; smaller magnitudes are refused."""
    return st.floats(low, high).map(lambda number: round(number, 9))


IDS = st.integers(0, 2**31 - 1)
REQUESTS = st.builds(
    TokenRequest,
    prompt_ids=st.lists(IDS, min_size=1).map(tuple),
    max_new_tokens=st.integers(1, 10_000),
    stop_ids=st.frozensets(IDS),
    sampling=st.builds(
        Sampling,
        temperature=_rounded(0, 100),
        top_p=st.floats(0.01, 1),
        top_k=st.none() | st.integers(1, 1000),
        min_p=_rounded(0, 0.99),
        repetition_penalty=st.floats(0.01, 100),
        presence_penalty=_rounded(-2, 2),
        frequency_penalty=_rounded(-2, 2),
        seed=st.none() | st.integers(0, 2**32 - 1),
    ),
    logprobs=st.booleans(),
    grammar=st.none() | st.text(),
)
NUMBERS = st.integers(0, 2**53)
PROGRESS = st.builds(
    Progress,
    number=NUMBERS,
    token_ids=st.lists(IDS).map(tuple),
    logprobs=st.lists(st.floats(-1e9, 0)).map(tuple),
    cached_tokens=st.integers(0, 1000),
    ended=st.booleans(),
    error=st.none() | st.text(),
)

LOAD = Load(
    folder="/models/ünï",
    device="CPU",
    properties={"NUM_STREAMS": "1"},
    context_tokens=4096,
    factors="short",
    max_running=4,
    blocks=99,
    block_tokens=32,
    candidate_tokens=0,
    ngram_tokens=0,
    draft_folder="",
    draft_factors="none",
    work_folder="/tmp/phi3ov-1",
)
SUBMIT = Submit(
    number=1, request=TokenRequest(prompt_ids=(5,), max_new_tokens=3, stop_ids=frozenset({2}))
)
STEP = Step(progress=(Progress(number=1, token_ids=(7,)),))


@given(request=REQUESTS, number=NUMBERS)
def test_a_request_arrives_as_it_was_sent(request: TokenRequest, number: int) -> None:
    """Every field of the request, with every value that it can have."""
    submit = Submit(number=number, request=request)
    assert decode_command(encode(submit)) == submit


@given(progress=st.lists(PROGRESS).map(tuple))
def test_a_step_arrives_as_it_was_sent(progress: tuple[Progress, ...]) -> None:
    """Ids, counts, ends and errors, with any text in them, on one line."""
    line = encode(Step(progress=progress))
    assert decode_report(line) == Step(progress=progress)
    assert line.index(b"\n") == len(line) - 1


def test_the_other_messages_arrive_as_they_were_sent() -> None:
    """Load, Cancel, Forget, Ready and Failed."""
    for command in (LOAD, Cancel(number=3), Forget()):
        assert decode_command(encode(command)) == command
    for report in (Ready(), Failed(error="DeviceError", message="no\nsuch ünit")):
        assert decode_report(encode(report)) == report


@pytest.mark.parametrize(
    "line",
    [b"", b"\n", b"hello\n", b"[]\n", b"3\n", b"null\n", b"{}\n", b'{"kind":1}\n', b"\xff\n",
     b'{"kind":"exec"}\n', b"[" * 100_000, b'{"kind":' + b"9" * 10_000 + b"}\n"],
)  # fmt: skip
def test_what_is_no_message_is_refused(line: bytes) -> None:
    """On both sides, and with the one error that both sides expect."""
    for decode in (decode_command, decode_report):
        with pytest.raises(ProtocolError):
            decode(line)


def test_a_message_in_the_wrong_direction_is_refused() -> None:
    """A child gives no commands, and a parent reports nothing."""
    for command in (LOAD, SUBMIT, Cancel(number=1), Forget()):
        with pytest.raises(ProtocolError, match="not a report"):
            decode_report(encode(command))
    for report in (Ready(), STEP):
        with pytest.raises(ProtocolError, match="not a command"):
            decode_command(encode(report))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("number", -1), ("number", 1.5), ("number", True), ("number", "1"), ("more", 1),
        ("request", None), ("request", []),
    ],
)  # fmt: skip
def test_a_command_with_a_wrong_field_is_refused(field: str, value: Any) -> None:
    """Of another type, or one too many; the error names the field."""
    fields = json.loads(encode(SUBMIT)) | {field: value}
    with pytest.raises(ProtocolError, match=field):
        decode_command(json.dumps(fields).encode() + b"\n")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt_ids", [1.5]), ("prompt_ids", [True]), ("prompt_ids", "12"), ("prompt_ids", None),
        ("prompt_ids", [[1]]), ("stop_ids", 2), ("max_new_tokens", None), ("more", 1),
    ],
)  # fmt: skip
def test_a_request_with_a_wrong_field_is_refused(field: str, value: Any) -> None:
    """Of another type, or one too many: a newer phi3ov may have replaced the child's files."""
    fields = json.loads(encode(SUBMIT))
    fields["request"][field] = value
    with pytest.raises(ProtocolError, match=field):
        decode_command(json.dumps(fields).encode() + b"\n")


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(TokenRequest)])
def test_a_request_without_a_field_is_refused(name: str) -> None:
    """Also where the dataclass has a default: the parent writes every field."""
    fields = json.loads(encode(SUBMIT))
    del fields["request"][name]
    with pytest.raises(ProtocolError, match=name):
        decode_command(json.dumps(fields).encode() + b"\n")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_json_has_not_is_refused(value: float) -> None:
    """A NaN among the log-probabilities, say: the parent must not pass it on as a number."""
    step = Step(progress=(Progress(number=1, token_ids=(7,), logprobs=(value,)),))
    with pytest.raises(ProtocolError, match="logprobs"):
        decode_report(encode(step))


@dataclass(frozen=True, slots=True, kw_only=True)
class Nested:
    """A part of `Request`."""

    weights: dict[int, float]
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Such as `TokenRequest` may become."""

    nested: Nested
    ids: frozenset[int] = frozenset({3})


class Send(Message, frozen=True, kw_only=True):
    """A command that holds it."""

    request: Request


def test_a_new_field_of_a_request_needs_no_change_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages follow the dataclasses, nested ones included; the protocol names no field."""
    monkeypatch.setattr(worker_protocol, "_COMMANDS", msgspec.json.Decoder(Send))
    for nested in (Nested(weights={7: 0.5, 10: 1}), Nested(weights={}, names=("a",))):
        sent: Any = Send(request=Request(nested=nested, ids=frozenset(range(100))))
        line = encode(sent)
        assert decode_command(line) == sent
    unknown = line.replace(b'"names"', b'"titles"')
    with pytest.raises(ProtocolError, match=r"no field request\.nested\.names"):
        decode_command(unknown)


@pytest.mark.parametrize(
    "message", [LOAD, SUBMIT, Cancel(number=1), Failed(error="a", message="b")]
)
def test_a_missing_field_is_refused(message: Any) -> None:
    """The writer sends every field, also one that has a default."""
    decode = decode_report if isinstance(message, Failed) else decode_command
    fields = json.loads(encode(message))
    for name in fields:
        rest = {key: value for key, value in fields.items() if key != name}
        with pytest.raises(ProtocolError):
            decode(json.dumps(rest).encode())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("properties", {"A": 1}), ("properties", []), ("factors", "longer"), ("factors", None),
        ("context_tokens", -1), ("max_running", "4"), ("folder", None), ("work_folder", None),
        ("work_folder", 1), ("more", 1),
    ],
)  # fmt: skip
def test_a_bad_load_is_refused(field: str, value: Any) -> None:
    """Every field of the first command."""
    fields = json.loads(encode(LOAD)) | {field: value}
    with pytest.raises(ProtocolError, match=field):
        decode_command(json.dumps(fields).encode())


@pytest.mark.parametrize(
    "progress",
    [None, 3, [], {}, {"number": 1}, {"number": 1, "token_ids": [1], "cached_tokens": -1,
     "ended": False, "error": None}, {"number": 1, "token_ids": [1], "cached_tokens": 0,
     "ended": 0, "error": None}, {"number": 1, "token_ids": [1], "cached_tokens": 0,
     "ended": False, "error": None, "more": 1}],
)  # fmt: skip
def test_a_bad_part_of_a_step_is_refused(progress: Any) -> None:
    """A step is believed as a whole or not at all."""
    good = json.loads(encode(STEP))["progress"]
    with pytest.raises(ProtocolError):
        decode_report(json.dumps({"kind": "step", "progress": [*good, progress]}).encode())


def test_lines_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest line is read, a longer one is refused before it is in memory."""
    monkeypatch.setattr(worker_protocol, "MAX_LINE_BYTES", 10)
    assert list(read_lines(io.BytesIO(b"123456789\nab\n"))) == [b"123456789\n", b"ab\n"]
    endless = io.BytesIO(b"1234567890\n" + b"x" * 1000)
    with pytest.raises(ProtocolError, match="longer than 10"):
        list(read_lines(endless))
    assert endless.tell() == 11


def test_a_line_that_death_has_cut_off_is_not_read() -> None:
    """The child may be killed while it writes."""
    assert list(read_lines(io.BytesIO(b"one\ntw"))) == [b"one\n"]


def test_the_longest_prompt_of_the_family_fits_a_line() -> None:
    """131 072 ids of a vocabulary of 200 064."""
    request = TokenRequest(
        prompt_ids=(200_063,) * 131_072, max_new_tokens=1, stop_ids=frozenset({200_020})
    )
    assert len(encode(Submit(number=2**53, request=request))) < worker_protocol.MAX_LINE_BYTES


@pytest.mark.parametrize(
    ("weight_bytes", "device", "tokens"),
    [
        (105 * 10**6, "CPU", 512),
        (2_686 * 10**6, "CPU", 64),
        (900 * 10**6, "CPU", 128),
        (10**13, "CPU", 64),
        (2_686 * 10**6, "GPU", 512),
    ],
)
def test_a_step_reads_less_of_a_prompt_where_the_model_is_larger(
    weight_bytes: int, device: str, tokens: int
) -> None:
    """The reference, Phi-3-mini, something between, something absurd, and another device."""
    assert prompt_tokens_per_step(weight_bytes, device) == tokens
