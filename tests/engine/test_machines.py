"""Machines as people have them: a user without a home, no console, Python inside of a program."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import pytest

import phi3ov
from tests.unit.server.serving import wait_until

from .conftest import LoadModel, Zoo

ROW = "phi-3-mini-4k"
LONGROPE = "phi-3.5-mini"
STRANGER = 54321
"""A user id that no password file has."""
PYTHON_PATH = str(Path(phi3ov.__file__).parents[1])

EVERYTHING = """
import sys
from pathlib import Path
import phi3ov
phi3ov.export_model("checkpoint", "export", compression="int8", progress=True)
for engine in ("pipeline", "worker", "paged", "transformers"):
    with phi3ov.load_model("longrope", device="CPU", engine=engine) as model:
        assert len(model.complete("abc", max_new_tokens=4).token_ids) == 4
with Path("done").open("w") as file:
    file.write("yes")
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user may enter, which pytest's own folders are not."""
    folder = Path(tempfile.mkdtemp(prefix="phi3ov-stranger-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def stranger(open_folder: Path, zoo: Zoo) -> tuple[list[str], Path]:
    """A command that runs another as a user without a name and a home, and that user's folder.

    The folder holds a checkpoint and two exports.
    """
    if not hasattr(os, "getuid") or os.getuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root becomes another user, with setpriv")
    for name, source in (
        ("checkpoint", zoo.checkpoint(ROW)),
        ("model", zoo.artifact(ROW)),
        ("longrope", zoo.artifact(LONGROPE)),
    ):
        shutil.copytree(source, open_folder / name)
        for path in (open_folder / name, *(open_folder / name).iterdir()):
            path.chmod(0o755)  # the stranger reads them and cannot write there
    os.chown(open_folder, STRANGER, STRANGER)
    becoming = ["setpriv", f"--reuid={STRANGER}", f"--regid={STRANGER}", "--clear-groups"]
    # Where root's own folder holds the interpreter, the stranger must be able to read it.
    reading = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    environment = ["env", "-i", "PATH=/usr/bin:/bin", f"PYTHONPATH={PYTHON_PATH}"]
    for extra in ([], reading):
        command = [*becoming, *extra, *environment]
        probe = [*command, sys.executable, "-c", "import phi3ov.loading, msgspec"]
        if subprocess.run(probe, check=False, capture_output=True, timeout=100).returncode == 0:
            return command, open_folder
    pytest.skip("another user cannot read this Python")


def run(command: Sequence[str], folder: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command in a folder."""
    return subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        cwd=folder,
        input=stdin,
        timeout=500,
    )


@pytest.mark.trap(
    "A user id without an entry in the password file and without HOME, as containers give, "
    "exports, loads with every engine, chats and serves; files that need a home are left out.",
    about="Machines",
)
@pytest.mark.slow
def test_a_user_without_name_and_home(stranger: tuple[list[str], Path]) -> None:
    """The tools that look for a home find none, and nothing is written to the current folder."""
    command, folder = stranger
    before = {path.name for path in folder.iterdir()}
    done = run([*command, sys.executable, "-c", EVERYTHING], folder)
    assert done.returncode == 0, done.stderr
    left = {path.name for path in folder.iterdir()} - before
    assert left == {"export", ".export.phi3ov-lock", "done"}
    assert "telemetry" not in done.stderr
    chat = [*command, sys.executable, "-m", "phi3ov", "chat", "model", "--max-new-tokens", "4"]
    for message in ([], ["hi"]):
        done = run([*chat, *message], folder, stdin="hello\n")
        assert done.returncode == 0, done.stderr
    tune = run([*command, sys.executable, "-m", "phi3ov", "tune", "model"], folder)
    assert tune.returncode == 1
    assert "no home folder" in tune.stderr
    assert "XDG_DATA_HOME" in tune.stderr
    hub = run([*command, sys.executable, "-m", "phi3ov", "info", "owner/name"], folder)
    assert hub.returncode == 1
    assert "no home folder" in hub.stderr
    assert {path.name for path in folder.iterdir()} - before == left, "a folder called ~"


def test_a_user_without_name_and_home_serves(stranger: tuple[list[str], Path]) -> None:
    """The server answers, and ends when it is told to."""
    command, folder = stranger
    arguments = [sys.executable, "-m", "phi3ov", "serve", "model", "--port", "0"]
    log = folder / "log"
    with log.open("wb") as said:
        process = subprocess.Popen([*command, *arguments], cwd=folder, stderr=said)
    try:
        wait_until(lambda: b"Listening on " in log.read_bytes(), 100)
        found = re.search(r"Listening on (http://\S+)\.", log.read_text(encoding="utf-8"))
        assert found is not None
        url = found.group(1)
        wait_until(lambda: httpx.get(f"{url}/health").json()["status"] == "ready", 100)
        asked = {"model": "model", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
        answer = httpx.post(f"{url}/v1/chat/completions", json=asked, timeout=100)
        assert answer.json()["choices"][0]["finish_reason"] in ("stop", "length")
    finally:
        process.terminate()
        assert process.wait(100) in (0, -signal.SIGTERM), log.read_text(encoding="utf-8")


@pytest.mark.trap(
    "Without stdout and stderr, as under pythonw.exe, everything that shows progress or warns "
    "works.",
    about="Machines",
)
@pytest.mark.slow
def test_without_a_console(tmp_path: Path, zoo: Zoo) -> None:
    """The export's progress, the engines, the comparison's progress, and the command."""
    for name, source in (("checkpoint", zoo.checkpoint(ROW)), ("longrope", zoo.artifact(LONGROPE))):
        shutil.copytree(source, tmp_path / name)
    (tmp_path / "longrope" / "phi3ov.json").unlink()  # which is told by a warning
    script = f"""
import sys
sys.stdin = sys.stdout = sys.stderr = sys.__stdout__ = sys.__stderr__ = None
from pathlib import Path
try:
    {EVERYTHING.strip().replace(chr(10), chr(10) + "    ")}
    from phi3ov.quality.report import compare
    from phi3ov.machine import tuner
    compare("checkpoint", "export", text="abc " * 300, max_tokens=64, window_tokens=32)
    tuner._say("a line of tune")
    from phi3ov.cli import main
    assert main(["chat", "export", "hi", "--max-new-tokens", "4"]) == 0
    assert main(["info", "no-such-folder"]) == 1
except BaseException:
    import traceback
    Path("failed").write_text(traceback.format_exc())
    raise
Path("whole").touch()
"""
    run([sys.executable, "-c", script], tmp_path)
    failed = tmp_path / "failed"
    assert not failed.exists(), failed.read_text(encoding="utf-8")
    assert (tmp_path / "whole").exists()


@pytest.mark.trap(
    "In a program that embeds Python, sys.executable is that program, empty or None; the worker "
    "finds the interpreter of the installation, or the error names what to set.",
    about="Machines",
)
@pytest.mark.parametrize("executable", [None, "", shutil.which("true"), "/no/such/python"])
def test_the_worker_in_a_program_that_embeds_python(
    executable: str | None, zoo: Zoo, load: LoadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers; the program is not started a second time."""
    monkeypatch.setattr("multiprocessing.spawn._python_exe", executable)
    monkeypatch.setattr(sys, "executable", executable)
    started: list[str] = []
    popen = subprocess.Popen

    def start(command: list[str], **options: object) -> object:
        started.append(command[0])
        return popen(command, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "Popen", start)
    model = load(zoo.artifact(ROW), engine="worker")
    assert len(model.complete("abc", max_new_tokens=4).token_ids) == 4
    assert executable not in started


@pytest.mark.trap(
    "OpenVINO starts no more threads than the affinity mask of the process has processors.",
    about="Machines",
)
def test_openvino_obeys_the_affinity_mask(zoo: Zoo) -> None:
    """Which is why phi3ov sets no number of threads for a mask."""
    if not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two processors and a system with affinity masks")
    script = """
import os, sys
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
import openvino
from phi3ov import RuntimeConfig
from phi3ov.runtime.properties import device_settings
from phi3ov.runtime.settings import passed_properties
core = openvino.Core()
properties = passed_properties(device_settings(RuntimeConfig(), core, "CPU"))
model = core.compile_model(sys.argv[1], "CPU", properties)
print(model.get_property("INFERENCE_NUM_THREADS"))
"""
    model = zoo.artifact(ROW) / "openvino_model.xml"
    done = run([sys.executable, "-c", script, str(model)], model.parent)
    assert (done.stdout, done.returncode) == ("1\n", 0), done.stderr
