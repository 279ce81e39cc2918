"""Batches on a Ray cluster of two nodes on this machine: dying nodes, resume, checkpoints."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import phi3ov
from phi3ov import (
    ArtifactError,
    GenerationError,
    GenerationOptions,
    OptionError,
    RequestLimits,
    RuntimeConfig,
)
from phi3ov.artifact.fingerprint import ModelFingerprint
from phi3ov.batch.file import run_batch_file
from phi3ov.batch.runner import BatchProgress
from phi3ov.integrations.ray import LoadOptions, answer_dataset, claim_checkpoint
from phi3ov.integrations.ray.actors import AnswerLines
from phi3ov.integrations.ray.job import RayCluster, answer_lines_on_ray
from phi3ov.runtime.processor import usable_cpus

ray = pytest.importorskip("ray")
pytest.importorskip("ray.data")
psutil = pytest.importorskip("psutil")

from ray.cluster_utils import Cluster  # noqa: E402 - after the check that it is there

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="Ray's test cluster needs Linux"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
]

NODE: dict[str, Any] = {
    "num_cpus": 1,
    "object_store_memory": 100 * 2**20,
    "memory": 3 * 2**30,
    "node_ip_address": "127.0.0.1",
}
LOAD = LoadOptions(device=("CPU",), limits=RequestLimits(max_running=4))
ON_CPU: dict[str, Any] = {"device": "CPU", "engine": "worker", "config": RuntimeConfig(threads=1)}
SHORT = GenerationOptions(max_new_tokens=12)


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for a condition, but not for ever."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes with a CPU each, on the loopback device; this process is the driver."""
    cluster = Cluster(
        initialize_head=True,
        head_node_args={**NODE, "include_dashboard": False},
        shutdown_at_exit=False,
    )
    try:
        cluster.add_node(**NODE)
        cluster.wait_for_nodes(timeout=60)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def write_prompts(path: Path, count: int) -> list[int]:
    """Write an input with one bad line; return the numbers of its lines."""
    lines = [{"id": f"n{number}", "prompt": f"Say {number}."} for number in range(1, count + 1)]
    lines[2] = {"id": "n3", "question": "?"}
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return list(range(1, count + 1))


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the records in the order of the input's lines."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return sorted(records, key=lambda record: record["line"])


def engines_of(node: Any) -> list[Any]:
    """Return the processes below a node's raylet that have loaded OpenVINO."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return [
        process
        for process in raylet.children(recursive=True)
        if process.is_running()
        and process.status() != psutil.STATUS_ZOMBIE
        and any("openvino_intel_cpu" in region.path for region in process.memory_maps())
    ]


@pytest.mark.slow
def test_a_node_that_dies_loses_and_doubles_nothing(
    cluster: Cluster, reference_export: Path, tmp_path: Path
) -> None:
    """Its blocks are answered again where there is room; its engine dies with it."""
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    numbers = write_prompts(source, 160)
    doomed = next(node for node in cluster.list_all_nodes() if not node.head)
    ended: list[list[Any]] = []

    def kill_in_the_middle(progress: BatchProgress) -> None:
        if progress.done < len(numbers) // 8 or ended:
            return
        wait_until(lambda: bool(engines_of(doomed)))
        ended.append(engines_of(doomed))
        cluster.remove_node(doomed, allow_graceful=False)
        cluster.add_node(**NODE)  # as a cluster manager does

    end = answer_lines_on_ray(
        reference_export,
        source,
        target,
        SHORT,
        kill_in_the_middle,
        cluster=RayCluster(actors=2, cores=1),
        load=LOAD,
    )
    assert ended
    assert end == BatchProgress(done=160, failed=1, total=160)
    records = read_records(target)
    assert [record["line"] for record in records] == numbers
    for record in records:
        assert record["id"] == f"n{record['line']}"
        assert ("error" in record) == (record["line"] == 3)
        assert "error" in record or record["usage"]["completion_tokens"] > 0
    wait_until(lambda: not any(process.is_running() for process in ended[0]))


@pytest.mark.slow
def test_a_file_goes_on_on_a_cluster_and_back(
    cluster: Cluster, reference_export: Path, tmp_path: Path
) -> None:
    """Records of one machine stay, the cluster adds the others, and another job is refused."""
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    numbers = write_prompts(source, 24)

    def stop(progress: BatchProgress) -> None:
        if progress.done == 5:
            raise KeyboardInterrupt

    with phi3ov.load_model(reference_export, **ON_CPU) as model, pytest.raises(KeyboardInterrupt):
        run_batch_file(model, source, target, SHORT, stop)
    begun = target.read_bytes()
    assert begun.count(b"\n") == 5
    seen: list[BatchProgress] = []
    here = RayCluster(actors=1, cores=1)
    end = answer_lines_on_ray(
        reference_export, source, target, SHORT, seen.append, cluster=here, load=LOAD
    )
    assert (seen[0].done, end) == (5, BatchProgress(done=24, failed=1, total=24))
    assert target.read_bytes().startswith(begun)
    assert [record["line"] for record in read_records(target)] == numbers
    whole = target.read_bytes()
    other = GenerationOptions(max_new_tokens=13)
    with pytest.raises(OptionError, match="different options"):
        answer_lines_on_ray(reference_export, source, target, other, cluster=here, load=LOAD)
    with phi3ov.load_model(reference_export, **ON_CPU) as model:
        assert run_batch_file(model, source, target, SHORT) == end
    assert target.read_bytes() == whole


def test_a_cluster_without_room_is_refused(
    cluster: Cluster, reference_export: Path, tmp_path: Path
) -> None:
    """Ray would wait for it for ever."""
    source = tmp_path / "in.jsonl"
    write_prompts(source, 3)
    with pytest.raises(OptionError, match="room for 2 actors with 1 cores each, and 3 are"):
        answer_lines_on_ray(
            reference_export,
            source,
            tmp_path / "out.jsonl",
            SHORT,
            cluster=RayCluster(actors=3, cores=1),
            load=LOAD,
        )


def test_another_model_on_a_node_ends_the_job(cluster: Cluster, reference_export: Path) -> None:
    """A node with an older copy of the folder does not mix its answers in."""
    other = ModelFingerprint(weights="0" * 64, tokenizer="0" * 64, chat_format="phi3")
    with pytest.raises(ArtifactError, match="on this node is not the model of the job"):
        AnswerLines(reference_export, load=LOAD, fingerprint=other)


def test_an_actor_that_cannot_load_ends_the_job_with_its_error(
    cluster: Cluster, reference_export: Path, tmp_path: Path
) -> None:
    """The error names the cause, and not Ray's traceback around it."""
    source = tmp_path / "in.jsonl"
    write_prompts(source, 3)
    with pytest.raises(GenerationError, match=r"^Ray ended the job: .*DeviceError.* NPU is not"):
        answer_lines_on_ray(
            reference_export,
            source,
            tmp_path / "out.jsonl",
            SHORT,
            cluster=RayCluster(actors=1, cores=1),
            load=replace(LOAD, device=("NPU",)),
        )


def test_two_actors_on_one_node_do_not_share_a_core(
    cluster: Cluster, reference_export: Path
) -> None:
    """Inside an actor the engine has the threads that Ray reserved, and is not pinned."""

    class Loader:
        def settings(self) -> dict[str, str]:
            actor = AnswerLines(reference_export, load=LOAD)
            settings = {setting.name: setting.value for setting in actor.model.settings}
            actor.model.close()
            return settings

    settings = ray.get(ray.remote(num_cpus=1)(Loader).remote().settings.remote(), timeout=120)
    assert settings["INFERENCE_NUM_THREADS"] == "1"
    if usable_cpus() > 1:
        assert settings["ENABLE_CPU_PINNING"] == "NO"


@pytest.mark.slow
def test_rays_checkpoint_goes_on_and_refuses_another_job(
    cluster: Cluster, reference_export: Path, tmp_path: Path
) -> None:
    """A job that failed in the middle answers the rest; each row is written once."""
    rows: list[dict[str, Any]] = [
        {"id": number, "prompt": f"Say {number}."} for number in range(48)
    ]
    ray.data.from_items(rows, override_num_blocks=6).write_parquet(str(tmp_path / "in"))
    context = ray.data.DataContext.get_current()
    source = str(tmp_path / "in")
    room = cluster.add_node(**NODE | {"num_cpus": 2})  # for reading and the checkpoint's filter

    def run(*, fail: bool, **options: Any) -> None:
        context.checkpoint_config = claim_checkpoint(
            tmp_path / "checkpoint",
            id_column="id",
            path=reference_export,
            source=source,
            load=LOAD,
            **options,
        )

        def check(block: Any) -> Any:
            if fail and max(block.column("id").to_pylist()) >= 40:
                raise RuntimeError("the disk is full")
            return block

        answers = answer_dataset(
            ray.data.read_parquet(source),
            reference_export,
            actors=1,
            cores=1,
            load=LOAD,
            rows_per_block=8,
            **options,
        )
        answers.map_batches(check, batch_format="pyarrow").write_parquet(str(tmp_path / "out"))

    def written() -> list[int]:
        import pyarrow.parquet

        files = (tmp_path / "out").glob("*.parquet")
        tables = [pyarrow.parquet.read_table(file) for file in files]
        assert all(set(table.column("error").to_pylist()) == {None} for table in tables)
        return sorted(number for table in tables for number in table.column("id").to_pylist())

    try:
        with pytest.raises(ray.exceptions.RayTaskError, match="the disk is full"):
            run(fail=True, max_new_tokens=8)
        begun = written()
        assert 0 < len(begun) < 48
        with pytest.raises(OptionError, match="different options"):
            run(fail=False, max_new_tokens=9)
        run(fail=False, max_new_tokens=8)
        assert written() == list(range(48))
    finally:
        context.checkpoint_config = None
        cluster.remove_node(room)


@pytest.mark.slow
def test_the_command_answers_on_a_cluster(
    cluster: Cluster, reference_export: Path, run_python: Callable[..., Any], tmp_path: Path
) -> None:
    """``--ray`` with the cluster's address, from a process of its own, as from a shell."""
    numbers = write_prompts(tmp_path / "in.jsonl", 12)
    command = ["-m", "phi3ov", "batch", str(reference_export), "in.jsonl", "out.jsonl"]
    command += ["--device", "CPU", "--threads", "1", "--max-new-tokens", "8"]
    done = run_python(*command, "--ray", cluster.address)
    assert done.returncode == 1
    assert "12 of 12 done, 1 failed" in done.stderr
    assert "1 of 12 lines failed" in done.stderr
    assert [record["line"] for record in read_records(tmp_path / "out.jsonl")] == numbers
