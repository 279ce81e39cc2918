"""A batch in files: every line gets one record, however often the run is killed and repeated."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from phi3ov import (
    Artifact,
    GenerationError,
    GenerationOptions,
    LoraAdapter,
    Message,
    OptionError,
    Phi3Model,
)
from phi3ov.answer.token_stream import TokenRequest
from phi3ov.artifact.fingerprint import ModelFingerprint
from phi3ov.batch import file as module
from phi3ov.batch.file import run_batch_file
from phi3ov.batch.records import describe_reply, locked_output

from .fakes import MINI, Answer, FakeEngine, answer_ids, make_model

HELLO = answer_ids("hello the user")
USER = [{"role": "user", "content": "hi"}]
OPTIONS = GenerationOptions(max_new_tokens=20)


def echo(request: TokenRequest) -> Answer:
    """Answer with the prompt's own ids."""
    return Answer((*request.prompt_ids[1:-1], *HELLO[-1:]))


@pytest.fixture
def model() -> Phi3Model:
    """A model that repeats what it is asked."""
    return make_model(FakeEngine(echo))


def write_lines(path: Path, lines: list[Any]) -> Path:
    """Write JSON lines; bytes are written as they are."""
    raw = [one if isinstance(one, bytes) else json.dumps(one).encode() for one in lines]
    path.write_bytes(b"\n".join(raw) + b"\n")
    return path


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the records by line, each of which must be there once."""
    records = [json.loads(one) for one in path.read_bytes().splitlines()]
    assert len({one["line"] for one in records}) == len(records)
    return sorted(records, key=lambda one: one["line"])


def test_every_line_gets_a_record(model: Phi3Model, tmp_path: Path) -> None:
    """Both forms of a line, ids, options of a line's own, and empty lines in between."""
    lines: list[Any] = [
        {"id": "a", "messages": USER},
        b"",
        {"id": 7, "prompt": "wie heißt du?"},
        {"prompt": "hi", "options": {"max_new_tokens": 1}},
        b"   ",
    ]
    source, target = write_lines(tmp_path / "in.jsonl", lines), tmp_path / "deep" / "out.jsonl"
    end = run_batch_file(model, source, target, OPTIONS)
    assert (end.done, end.failed, end.total) == (3, 0, 3)
    records = read_records(target)
    assert [(one["line"], one["id"]) for one in records] == [(1, "a"), (3, 7), (4, None)]
    assert "heißt" in target.read_text(encoding="utf-8")
    assert [one["finish_reason"] for one in records] == ["stop", "stop", "length"]
    assert records[0]["usage"]["prompt_tokens"] == len(
        MINI.chat.encode_prompt([Message("user", "hi")])
    )
    assert set(records[0]) == {
        "line", "id", "text", "finish_reason", "usage", "timings", "seed",
    }  # fmt: skip


BAD: list[tuple[Any, str]] = [
    (b"{", "JSON"),
    (b"[1]", "JSON object"),
    (b"\xff\xfe", "JSON"),
    (b"[" * 100_000, "JSON"),
    ({"messages": USER, "prompt": "a"}, "either"),
    ({"id": 1}, "either"),
    ({"prompt": "a", "max_tokens": 1}, "max_tokens"),
    ({"prompt": 5}, "content=5"),
    ({"messages": "hi"}, "array"),
    ({"messages": [{"role": "user"}]}, "role"),
    ({"messages": [{"role": "boss", "content": "a"}]}, "boss"),
    ({"messages": [*USER, *USER]}, ""),
    ({"messages": []}, "empty"),
    ({"id": 1.5, "prompt": "a"}, "id=1.5"),
    ({"id": True, "prompt": "a"}, "id=True"),
    (b'{"id": "\\ud800", "prompt": "a"}', "surrogate"),
    (b'{"prompt": "\\ud800"}', "surrogate"),
    ({"prompt": "a", "options": 5}, "options=5"),
    ({"prompt": "a", "options": {"max_tokens": 5}}, "max_tokens"),
    ({"prompt": "a", "options": {"max_new_tokens": 0}}, "max_new_tokens=0"),
    ({"prompt": "a", "options": {"max_new_tokens": 10**9}}, "exceed"),
    (b'{"prompt": "' + b"x" * 3000 + b'"}', "longer than 2000"),
]


@pytest.mark.parametrize(("line", "message"), BAD, ids=lambda one: str(one)[:40])
def test_a_bad_line_is_a_record_and_not_a_stop(
    line: Any, message: str, model: Phi3Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its error says what is wrong; the lines before and after are answered."""
    if message == "longer than 2000":
        monkeypatch.setattr(module, "MAX_LINE_BYTES", 2000)
    source = write_lines(tmp_path / "in.jsonl", [{"prompt": "a"}, line, {"prompt": "b"}])
    end = run_batch_file(model, source, tmp_path / "out.jsonl", OPTIONS)
    first, bad, last = read_records(tmp_path / "out.jsonl")
    assert "text" in first
    assert "text" in last
    assert bad["error"]["type"].endswith("Error")
    assert message in bad["error"]["message"]
    assert (end.done, end.failed) == (3, 1)


def test_a_failed_answer_records_its_partial_text(tmp_path: Path) -> None:
    """What the engine had said before it failed is not lost."""
    engine = FakeEngine([Answer(HELLO[:-1], error=RuntimeError("boom"))])
    source = write_lines(tmp_path / "in.jsonl", [{"prompt": "a"}])
    run_batch_file(make_model(engine), source, tmp_path / "out.jsonl", OPTIONS)
    (record,) = read_records(tmp_path / "out.jsonl")
    assert record["error"]["partial_text"] == "hello the user"
    assert "boom" in record["error"]["message"]


def test_a_run_cut_off_at_any_byte_is_completed(tmp_path: Path) -> None:
    """Whatever a kill leaves of the output, the next run makes whole: none lost, none doubled."""
    lines: list[Any] = [{"id": number, "prompt": f"no {number}"} for number in range(4)]
    lines[2] = {"id": 2, "messages": []}
    source, target = write_lines(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    engine = FakeEngine(echo)
    model = make_model(engine)
    run_batch_file(model, source, target, OPTIONS)
    whole = target.read_bytes()
    expected = [(one["line"], one["id"], one.get("text")) for one in read_records(target)]
    for length in range(len(whole) + 1):
        target.write_bytes(whole[:length])
        engine.requests.clear()
        end = run_batch_file(model, source, target, OPTIONS)
        records = read_records(target)
        assert [(one["line"], one["id"], one.get("text")) for one in records] == expected
        assert (end.done, end.failed) == (4, 1)
        kept = whole[:length].count(b"\n")
        assert target.read_bytes().startswith(whole[: len(whole[:length].rpartition(b"\n")[0])])
        assert len(engine.requests) in (3 - kept, 4 - kept)


def test_a_garbled_last_line_is_cut_off(model: Phi3Model, tmp_path: Path) -> None:
    """A crash of the machine may leave zeros where the last record was to be."""
    source, target = write_lines(tmp_path / "in.jsonl", [{"prompt": "a"}]), tmp_path / "out.jsonl"
    run_batch_file(model, source, target, OPTIONS)
    whole = target.read_bytes()
    target.write_bytes(whole + b"\0" * 50 + b"\n")
    run_batch_file(model, source, target, OPTIONS)
    assert target.read_bytes() == whole


@pytest.mark.parametrize("what", ["input", "options", "context", "adapter", "model"])
def test_records_of_two_jobs_are_never_mixed(what: str, model: Phi3Model, tmp_path: Path) -> None:
    """With another input, other options, another context, adapter or model nothing is done."""
    source, target = write_lines(tmp_path / "in.jsonl", [{"prompt": "a"}]), tmp_path / "out.jsonl"
    run_batch_file(model, source, target, OPTIONS)
    before, options = target.read_bytes(), OPTIONS
    if what == "input":
        write_lines(source, [{"prompt": "b"}])
    elif what == "options":
        options = replace(OPTIONS, max_new_tokens=21)
    elif what == "context":
        model.context = replace(model.context, tokens=50)
    elif what == "adapter":
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            (tmp_path / name).write_text("{}", encoding="utf-8")
        model.adapter = LoraAdapter(path=tmp_path)
    else:
        other = replace(model.artifact.manifest, chat_format="phi4")
        model = make_model(FakeEngine(echo), artifact=replace(model.artifact, manifest=other))
    with pytest.raises(OptionError, match=f"begun with different {what}"):
        run_batch_file(model, source, target, options)
    assert target.read_bytes() == before


def test_where_it_runs_may_change(tmp_path: Path) -> None:
    """Engine, device and queue are free: a job may be finished on another machine."""
    source, target = write_lines(tmp_path / "in.jsonl", [{"prompt": "a"}]), tmp_path / "out.jsonl"
    run_batch_file(make_model(FakeEngine(echo)), source, target, OPTIONS)
    other = make_model(FakeEngine(echo))
    other.device = replace(other.device, selected="GPU")
    options = replace(OPTIONS, on_full_queue="wait")
    assert run_batch_file(other, source, target, options).done == 1


def test_a_job_of_an_older_version_is_resumed(model: Phi3Model, tmp_path: Path) -> None:
    """The older version did not know an option, so its default holds.

    With another value the records would be of two jobs.
    """
    source = write_lines(tmp_path / "in.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
    target, claim = tmp_path / "out.jsonl", tmp_path / "out.jsonl.job"
    run_batch_file(model, source, target, OPTIONS)
    first, _ = target.read_bytes().splitlines(keepends=True)
    job = json.loads(claim.read_bytes())
    for new in ("min_p", "logprobs", "choices"):
        del job["options"][new]
    claim.write_text(json.dumps(job), encoding="utf-8")
    target.write_bytes(first)
    with pytest.raises(OptionError, match="begun with different options"):
        run_batch_file(model, source, target, replace(OPTIONS, temperature=1.0, min_p=0.1))
    assert target.read_bytes() == first
    assert run_batch_file(model, source, target, OPTIONS).done == 2
    assert target.read_bytes().startswith(first)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"my notes\n", "does not say that a batch began it"),
        (b'{"line": 1}\n{"line": 1}\n', "two records"),
        (b'{"line": 1}\nnonsense\n{"line": 2}\n', "damaged"),
        (b'{"line": "1"}\n{"line": 2}\n', "damaged"),
    ],
)
def test_a_file_that_is_no_output_is_left_alone(
    content: bytes, message: str, model: Phi3Model, tmp_path: Path
) -> None:
    """Somebody else's file, or an output that was edited."""
    source, target = write_lines(tmp_path / "in.jsonl", [{"prompt": "a"}]), tmp_path / "out.jsonl"
    if b"line" in content:
        run_batch_file(model, source, target, OPTIONS)
    target.write_bytes(content)
    with pytest.raises(OptionError, match=message):
        run_batch_file(model, source, target, OPTIONS)
    assert target.read_bytes() == content


@pytest.mark.parametrize("claim", ["", "[]", "nonsense"])
def test_a_damaged_claim_is_refused(claim: str, model: Phi3Model, tmp_path: Path) -> None:
    """Then nobody knows what the records belong to."""
    source, target = write_lines(tmp_path / "in.jsonl", [{"prompt": "a"}]), tmp_path / "out.jsonl"
    run_batch_file(model, source, target, OPTIONS)
    (tmp_path / "out.jsonl.job").write_text(claim, encoding="utf-8")
    with pytest.raises(OptionError, match="Choose another output"):
        run_batch_file(model, source, target, OPTIONS)


def test_two_processes_do_not_write_one_output(model: Phi3Model, tmp_path: Path) -> None:
    """The second is told so; when the first is gone, however it went, the lock is too."""
    source, target = write_lines(tmp_path / "in.jsonl", [{"prompt": "a"}]), tmp_path / "out.jsonl"
    with (
        FileLock(tmp_path / ".out.jsonl.lock"),
        pytest.raises(OptionError, match="Another process"),
    ):
        run_batch_file(model, source, target, OPTIONS)
    run_batch_file(model, source, target, OPTIONS)
    names = {one.name for one in tmp_path.iterdir()} - {".out.jsonl.lock"}
    assert names == {"in.jsonl", "out.jsonl", "out.jsonl.job"}


@pytest.mark.skipif(os.name == "nt", reason="filelock removes its file there, safely")
def test_the_lock_is_one_file_for_good(tmp_path: Path) -> None:
    """One that is removed may be held already by who waited; a third would make its own."""
    target, lock = tmp_path / "out.jsonl", tmp_path / ".out.jsonl.lock"
    files = []
    for _ in range(2):
        with locked_output(target):
            files.append(lock.stat().st_ino)
            with pytest.raises(OptionError, match="Another process"), locked_output(target):
                pytest.fail("two at once")
    assert files == [lock.stat().st_ino] * 2


def test_an_output_under_a_file_is_refused_by_name(model: Phi3Model, tmp_path: Path) -> None:
    """The system's own error is the library's, with the path that was given."""
    source = write_lines(tmp_path / "in.jsonl", [{"prompt": "a"}])
    with pytest.raises(OptionError, match=r"in\.jsonl.out cannot be written.*another output"):
        run_batch_file(model, source, source / "out", OPTIONS)


@dataclass
class City:
    """A shape for answers."""

    name: str


@dataclass
class Town:
    """Another class of the same name and fields is the same shape; another field is not."""

    town: str


def test_a_dataclass_is_a_schema_of_a_batch(tmp_path: Path) -> None:
    """It is written down as what it stands for, and what is parsed as the JSON that it was."""
    source, target = write_lines(tmp_path / "in.jsonl", [{"prompt": "a"}]), tmp_path / "out.jsonl"
    model = make_model(FakeEngine(lambda _: Answer(answer_ids('{"name": "Rome"}'))))
    options = replace(OPTIONS, json_schema=City)
    run_batch_file(model, source, target, options)
    assert read_records(target)[0]["parsed"] == {"name": "Rome"}
    assert run_batch_file(model, source, target, options).done == 1
    with pytest.raises(OptionError, match="begun with different options"):
        run_batch_file(model, source, target, replace(OPTIONS, json_schema=Town))


def test_what_was_asked_for_is_in_the_record(tmp_path: Path) -> None:
    """Every candidate, its own figures, and how likely each of its tokens was."""
    source, target = write_lines(tmp_path / "in.jsonl", [{"prompt": "a"}]), tmp_path / "out.jsonl"
    answers = iter(["Rome", "Oslo"])
    model = make_model(FakeEngine(lambda _: Answer(answer_ids(next(answers)))))
    options = replace(OPTIONS, candidates=2, temperature=1.0, seed=3, choices=("Rome", "Oslo"))
    run_batch_file(model, source, target, options)
    [record] = read_records(target)
    assert (record["text"], record["parsed"]) == ("Rome", "Rome")
    kept = [(one["text"], one["parsed"], one["seed"]) for one in record["candidates"]]
    assert kept == [("Rome", "Rome", 3), ("Oslo", "Oslo", 4)]
    assert set(record["candidates"][0]) == set(record) - {"line", "id", "candidates"}


def test_an_error_with_a_lone_surrogate_is_a_record(tmp_path: Path) -> None:
    """UTF-8 has none, but JSON can say it: the batch goes on and its file can be read."""
    answers = iter([GenerationError("odd \ud800", partial_text="ha\udfff"), None])

    def answer(_request: TokenRequest) -> Answer:
        error = next(answers)
        return Answer(HELLO if error is None else HELLO[:1], error=error)

    source = write_lines(tmp_path / "in.jsonl", [{"prompt": "ä"}, {"prompt": "b"}])
    target = tmp_path / "out.jsonl"
    end = run_batch_file(make_model(FakeEngine(answer)), source, target, OPTIONS)
    assert (end.done, end.failed) == (2, 1)
    first, last = read_records(target)
    assert "odd \ud800" in first["error"]["message"]
    assert last["text"] == "hello the user"
    target.read_text(encoding="utf-8")


def test_the_model_is_hashed_once(
    model: Phi3Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder without a manifest takes seconds; the model keeps what it has found."""
    source = write_lines(tmp_path / "in.jsonl", [{"prompt": "a"}])
    hashed = []
    compute = ModelFingerprint.of

    def count(artifact: Artifact) -> ModelFingerprint:
        hashed.append(artifact)
        return compute(artifact)

    monkeypatch.setattr(ModelFingerprint, "of", count)
    for name in ("one.jsonl", "two.jsonl"):
        run_batch_file(model, source, tmp_path / name, OPTIONS)
    assert hashed == [model.artifact]


def test_an_output_that_was_taken_away_is_made_again(model: Phi3Model, tmp_path: Path) -> None:
    """Also with other options: there is nothing to mix them with."""
    source, target = write_lines(tmp_path / "in.jsonl", [{"prompt": "a"}]), tmp_path / "out.jsonl"
    run_batch_file(model, source, target, OPTIONS)
    shutil.move(target, tmp_path / "elsewhere.jsonl")
    assert run_batch_file(model, source, target, replace(OPTIONS, max_new_tokens=3)).done == 1


def test_logprobs_are_in_a_description_where_there_are_any(model: Phi3Model) -> None:
    """What nobody asked for is left out."""
    reply = model.complete("hi", max_new_tokens=1)
    assert "logprobs" not in describe_reply(reply)
    described = describe_reply(replace(reply, logprobs=(-0.5, -1.0)))
    assert json.loads(json.dumps(described))["logprobs"] == [-0.5, -1.0]
