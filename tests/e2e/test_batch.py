"""``phi3ov batch`` on the reference model: killed in the middle and run again."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .conftest import RunPython


@pytest.mark.slow
def test_killed_and_run_again_it_goes_on_where_it_stopped(
    reference_export: Path, run_python: RunPython, tmp_path: Path
) -> None:
    """Nothing is lost or doubled, a bad line has its record, and a finished job stays finished."""
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [{"id": f"n{number}", "prompt": f"Say {number}."} for number in range(30)]
    lines[3] = {"id": "n3", "question": "?"}
    source.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    command = ["-m", "phi3ov", "batch", str(reference_export), str(source), str(target)]
    command += ["--device", "CPU", "--max-new-tokens", "16", "--max-running", "4"]
    with subprocess.Popen([sys.executable, *command], stderr=subprocess.DEVNULL) as first:
        while not target.exists() or target.read_bytes().count(b"\n") < 5:
            assert first.poll() is None
            time.sleep(0.01)
        first.kill()
    begun = target.read_bytes().rpartition(b"\n")[0]
    assert begun.count(b"\n") < len(lines) - 1

    second = run_python(*command)
    assert second.returncode == 1
    assert "1 of 30 lines failed" in second.stderr
    assert "30 of 30 done, 1 failed" in second.stderr
    assert target.read_bytes().startswith(begun)
    records = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    assert sorted(one["line"] for one in records) == list(range(1, len(lines) + 1))
    for one in records:
        assert one["id"] == f"n{one['line'] - 1}"
        assert ("error" in one) == (one["line"] == 4)
        assert "error" in one or one["usage"]["completion_tokens"] > 0

    whole = target.read_bytes()
    assert run_python(*command, "--quiet").returncode == 1
    assert target.read_bytes() == whole
    other = run_python(*command, "--temperature", "0.5")
    assert other.returncode == 1
    assert "different options" in other.stderr
    assert target.read_bytes() == whole


def test_wrong_files_are_named_before_the_model_is_loaded(
    run_python: RunPython, tmp_path: Path
) -> None:
    """An input that is not there, and an output that is the input."""
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n', encoding="utf-8")
    for files, message in (
        (("no", "out"), "no is not a file"),
        (("in.jsonl",) * 2, "is the input"),
    ):
        done = run_python("-m", "phi3ov", "batch", "no-model", *files)
        assert done.returncode == 1
        assert message in done.stderr
