"""Servers and environments for the clients' tests, which ``make test-clients`` runs.

They install packages, so no other run collects them. Environments stay in ``.venv-clients``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from phi3ov import Int4Compression, export_model
from tests.conftest import MadeOnce
from tests.e2e.conftest import reference_checkpoint, reference_export
from tests.reference_with_tools import add_tools

__all__ = ["reference_checkpoint", "reference_export"]

if "PHI3OV_TEST_CLIENTS" not in os.environ:
    collect_ignore = ["test_clients.py", "test_ray_serve.py"]

REPOSITORY = Path(__file__).parents[2]
ENVIRONMENTS = REPOSITORY / ".venv-clients"
RunClient = Callable[..., str]


@contextmanager
def serving(folder: Path, log: Path, *options: str) -> Iterator[str]:
    """Run ``phi3ov serve`` on a free port; give its address once the model is loaded."""
    command = [sys.executable, "-m", "phi3ov", "serve", str(folder), "--port", "0", *options]
    with log.open("w", encoding="utf-8") as said:
        process = subprocess.Popen(command, stderr=said)
    try:
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None, log.read_text(encoding="utf-8")
            assert time.monotonic() < deadline, log.read_text(encoding="utf-8")
            found = re.search(r"Listening on (http://\S+)\.", log.read_text(encoding="utf-8"))
            if found is not None and _is_ready(found.group(1)):
                break
            time.sleep(0.2)
        yield found.group(1)
    finally:
        process.terminate()
        process.wait(60)


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=10) as answer:
            return bool(answer.status == 200)
    except OSError:  # 503 as well
        return False


@pytest.fixture(scope="session")
def urls(
    reference_export: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """Three servers, as the environment variables that the programs read.

    The second is easily full, and the third computes the log-probabilities of prompts.
    """
    logs = tmp_path_factory.mktemp("servers")
    with ExitStack() as stack:
        name = ("--model-name", "phi3")
        limits = ("--max-running", "2", "--max-waiting", "2")
        first = serving(reference_export, logs / "server.log", *name)
        second = serving(reference_export, logs / "limited.log", *name, *limits)
        third = serving(reference_export, logs / "scoring.log", *name, "--engine", "paged")
        yield {
            "SERVER_URL": stack.enter_context(first),
            "LIMITED_SERVER_URL": stack.enter_context(second),
            "SCORING_SERVER_URL": stack.enter_context(third),
        }


@pytest.fixture(scope="session")
def tools_export(reference_checkpoint: Path, made_once: MadeOnce) -> Path:
    """The reference model with Phi-4-mini's tool format, as int4."""
    checkpoint = made_once(
        "reference-with-tools", lambda folder: add_tools(reference_checkpoint, folder)
    )
    recipe = Int4Compression(on_indivisible="adjust")
    return made_once(
        "reference-with-tools-int4",
        lambda folder: export_model(checkpoint, folder, compression=recipe, progress=False),
    )


def python_of(name: str) -> Path:
    """Return the Python of a client's environment, made of its pinned requirements."""
    requirements = (REPOSITORY / "requirements" / "clients" / f"{name}.txt").read_bytes()
    folder = ENVIRONMENTS / name
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    stamp = folder / "requirements.txt"
    if not stamp.is_file() or stamp.read_bytes() != requirements:
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        wanted = REPOSITORY / "requirements" / "clients" / f"{name}.txt"
        # The pins are complete: resolving them again and compiling take most of the time.
        pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", python, "install"]
        pip += ["--quiet", "--no-deps", "--no-compile", "--requirement", wanted]
        subprocess.run(pip, check=True)
        stamp.write_bytes(requirements)
    return python


@pytest.fixture
def run_client(urls: dict[str, str], tmp_path: Path) -> RunClient:
    """Return a function that runs a program of ``programs/`` and returns what it printed."""

    def run(command: list[str | Path], *, cwd: Path = tmp_path, seconds: float = 900) -> str:
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            command,
            cwd=cwd,
            env=kept | urls,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-6000:]
        return done.stdout

    return run
