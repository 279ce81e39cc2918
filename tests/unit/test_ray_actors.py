"""Blocks of conversations in a Ray actor, without a cluster: columns, errors as rows, cores."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from phi3ov import (
    EngineCrashedError,
    GenerationOptions,
    OptionError,
    Phi3Model,
    RequestLimits,
    RuntimeConfig,
)
from phi3ov.batch.file import read_lines
from phi3ov.integrations.ray import AnswerConversations, LoadOptions, claim_checkpoint, dataset
from phi3ov.integrations.ray import actors as module

from .fakes import FakeEngine, make_artifact, make_model
from .test_batch import crowd
from .test_batch_file import echo

pa = pytest.importorskip("pyarrow")


class FakeActor(AnswerConversations):
    """The actor around a model that is there already."""

    def __init__(self, model: Phi3Model, **options: Any) -> None:
        self.model = model
        self.options = GenerationOptions(**options)


def user(text: str) -> list[Mapping[str, str]]:
    """Return a conversation of one message."""
    return [{"role": "user", "content": text}]


def test_columns_are_added_in_the_order_of_the_rows() -> None:
    """The block keeps its columns and rows; answers come out of order and are put in place."""
    model, engine = crowd(8)
    block = pa.table({"id": list(range(40)), "prompt": [f"number {n}" for n in range(40)]})
    answers = FakeActor(model)(block)
    assert answers.column_names == ["id", "prompt", "answer", "finish_reason", "usage", "error"]
    for row in answers.to_pylist():
        assert f"number {row['id']}" in row["answer"]
        assert (row["finish_reason"], row["error"]) == ("stop", None)
        assert row["usage"]["completion_tokens"] > 0
    assert engine.most > 1, "the rows of a block are answered together"


def test_messages_with_fields_of_others_are_read() -> None:
    """Arrow fills the fields that only some messages have with nulls, which count as absent."""
    first = [{"role": "system", "content": "Be brief.", "name": "a"}, *user("hi")]
    block = pa.table({"messages": [first, user("hello")]})
    assert block.to_pylist()[1]["messages"][0]["name"] is None
    answers = FakeActor(make_model(FakeEngine(echo)), max_new_tokens=20)(block).to_pylist()
    assert [row["error"] for row in answers] == [None, None]


def test_what_cannot_be_answered_is_a_row() -> None:
    """Nulls, empty and misshapen conversations, and those that do not fit; the others go on."""
    rows = [user("hi"), None, [], user(""), [{"role": "wizard", "content": "hi"}], user("hi " * 99)]
    model = make_model(FakeEngine(echo), context_tokens=60)
    answers = FakeActor(model, max_new_tokens=5)(pa.table({"messages": rows})).to_pylist()
    kinds = [row["error"] and row["error"]["type"] for row in answers]
    assert kinds == [None, *["PromptError"] * 4, "ContextLengthError"]
    assert answers[0]["answer"]
    for row in answers[1:]:
        assert (row["answer"], row["finish_reason"], row["usage"]) == (None, None, None)
        assert row["error"]["message"]
    prompts = FakeActor(model, max_new_tokens=5)(
        pa.table({"prompt": pa.array([None, "hi"])})
    ).to_pylist()
    assert [row["error"] is None for row in prompts] == [False, True]


def test_a_prompt_that_crashes_the_engine_is_a_row() -> None:
    """Those that ran beside it are asked again and answered."""
    model, _engine = crowd(4)
    block = pa.table({"prompt": ["poison" if n == 5 else f"no {n}" for n in range(12)]})
    answers = FakeActor(model)(block).to_pylist()
    kinds = [row["error"] and row["error"]["type"] for row in answers]
    assert kinds == [EngineCrashedError.__name__ if n == 5 else None for n in range(12)]


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"prompt": ["hi"]}, 'batch_format="pyarrow"'),
        (pa.table({"text": ["hi"]}), "either 'messages' or 'prompt'"),
        (pa.table({"prompt": ["hi"], "messages": [user("hi")]}), "either 'messages' or 'prompt'"),
        (pa.table({"prompt": ["hi"], "error": [""]}), "named like the answer's: error"),
    ],
)
def test_a_block_of_another_shape_ends_the_job(block: Any, message: str) -> None:
    """A dataset that is wrong in every row is one error that says how to mend it."""
    with pytest.raises(OptionError, match=message):
        FakeActor(make_model(FakeEngine(echo)))(block)


@pytest.mark.parametrize(
    ("cores", "usable", "asked", "expected"),
    [
        (4, 8, None, (4, "NO")),
        (8, 8, None, (8, None)),
        (16, 8, None, (8, None)),  # the affinity mask, or a node that claims more than it has
        (4, 8, 8, (8, None)),
        (1, 1, None, (1, None)),
    ],
)
def test_threads_are_the_cores_of_the_actor(
    cores: int,
    usable: int,
    asked: int | None,
    expected: tuple[int, str | None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray's CPUs within the affinity mask; threads on a part of the cores are not pinned."""
    monkeypatch.setattr(module, "usable_cpus", lambda: usable)
    config = LoadOptions(config=RuntimeConfig(threads=asked)).on_cores(cores).config
    assert (config.threads, config.properties.get("ENABLE_CPU_PINNING")) == expected


def test_what_the_caller_says_of_pinning_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A property that is set stays, and so do the other options."""
    monkeypatch.setattr(module, "usable_cpus", lambda: 8)
    mine = RuntimeConfig(properties={"ENABLE_CPU_PINNING": "YES"})
    load = LoadOptions(config=mine, limits=RequestLimits(max_running=3)).on_cores(2)
    assert load.config.properties["ENABLE_CPU_PINNING"] == "YES"
    assert load.limits.max_running == 3


def test_parts_of_the_input_hold_every_line_once(tmp_path: Path) -> None:
    """Whatever is done already and however many lines a part has, numbers and bytes agree."""
    from phi3ov.integrations.ray.job import cut_input, read_range

    source = tmp_path / "in.jsonl"
    source.write_bytes(b"a\n\nb\n\xff\n\n\nc\nd")  # empty lines, no text, no end
    with source.open("rb") as file:
        every = dict(read_lines(file))
    assert sorted(every) == [1, 3, 4, 7, 8]
    for done in ((), (1,), (3, 4), (8,), (1, 7), (1, 3, 4, 7)):
        for rows in (1, 2, 3, 9):
            parts = list(cut_input(source, done, rows))
            read = [read_range(pa.Table.from_pylist([part])).to_pylist() for part in parts]
            assert all(len(part) == rows for part in read[:-1])
            found = {row["line"]: row["raw"] for part in read for row in part}
            assert found == {number: every[number] for number in every if number not in done}


def test_a_checkpoint_belongs_to_one_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another input, model, column or option is refused, and so is a folder of something else."""
    pytest.importorskip("ray.data")
    monkeypatch.setattr(dataset, "find_artifact", lambda _path, revision: make_artifact())
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine", encoding="utf-8")
    claim: dict[str, Any] = {"id_column": "id", "path": "model", "source": "may"}
    with pytest.raises(OptionError, match="does not say that a batch began it"):
        claim_checkpoint(tmp_path / "taken", **claim)
    with pytest.raises(OptionError, match="source=''"):
        claim_checkpoint(tmp_path / "new", **claim | {"source": ""})
    config = claim_checkpoint(tmp_path / "new", **claim)
    assert (config.id_column, config.checkpoint_path) == ("id", str(tmp_path / "new"))
    (tmp_path / "new" / "ids.parquet").touch()
    claim_checkpoint(tmp_path / "new", **claim)
    for change in ({"source": "june"}, {"max_new_tokens": 3}, {"id_column": "line"}):
        with pytest.raises(OptionError, match="was begun with different"):
            claim_checkpoint(tmp_path / "new", **claim | change)


def test_a_block_that_comes_twice_is_recorded_once() -> None:
    """Ray answers a block again where it lost the result; lines with a record stay as they are."""
    from phi3ov.integrations.ray.job import collect_records

    def block(*lines: int) -> Any:
        columns = {"data": [b"%d" % line for line in lines], "failed": [False] * len(lines)}
        return pa.table({"line": list(lines), **columns})

    records = collect_records([block(1, 2), block(3), block(2, 1), block(9, 4)], done={9})
    assert [(record.line, record.data) for record in records] == [
        *((1, b"1"), (2, b"2"), (3, b"3"), (4, b"4")),
    ]


def test_a_cluster_that_is_not_there_is_an_error_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray itself tries to connect for minutes."""
    pytest.importorskip("ray.data")
    from phi3ov.integrations.ray.job import RayCluster, answer_lines_on_ray

    monkeypatch.setattr(dataset, "find_artifact", lambda _path, revision: make_artifact())
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "hi"}\n', encoding="utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # bound, but nothing listens
        nowhere = RayCluster(address=f"127.0.0.1:{probe.getsockname()[1]}")
        with pytest.raises(OptionError, match="there is no Ray cluster"):
            answer_lines_on_ray(
                "model", source, tmp_path / "out.jsonl", GenerationOptions(), cluster=nowhere
            )
