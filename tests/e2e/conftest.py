"""Fixtures shared by the end-to-end tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from phi3ov import Int4Compression, export_model
from phi3ov.reference.build import build_reference
from tests.conftest import MadeOnce

REPOSITORY = Path(__file__).parents[2]

RunPython = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def reference_checkpoint(made_once: MadeOnce) -> Path:
    """The reference checkpoint, built once for all tests."""
    return made_once("reference", build_reference)


@pytest.fixture(scope="session")
def reference_export(request: pytest.FixtureRequest, made_once: MadeOnce) -> Path:
    """The reference checkpoint as int4, exported once for all tests.

    PHI3OV_TEST_EXPORT names a folder that is there already, for an environment that cannot export.
    """
    if made := os.environ.get("PHI3OV_TEST_EXPORT"):
        return Path(made)
    recipe = Int4Compression(on_indivisible="adjust")
    checkpoint = request.getfixturevalue("reference_checkpoint")
    return made_once(
        "reference-int4",
        lambda folder: export_model(checkpoint, folder, compression=recipe, progress=False),
    )


@pytest.fixture(scope="session")
def commands(made_once: MadeOnce) -> Path:
    """A folder in which the command built the reference (``small``) and exported it.

    ``small-int8`` is the export, ``export.json`` what the command printed.
    """

    def build_and_export(folder: Path) -> None:
        folder.mkdir()
        export = ("export", "small", "small-int8", "--precision", "int8", "--quiet", "--json")
        printed = ""
        for arguments in (("reference", "small"), export):
            command = [sys.executable, "-m", "phi3ov", *arguments]
            done = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, encoding="utf-8", check=False
            )
            assert done.returncode == 0, done.stderr
            printed = done.stdout
        (folder / "export.json").write_text(printed, encoding="utf-8")

    return made_once("commands", build_and_export)


@pytest.fixture
def run_python(tmp_path: Path) -> RunPython:
    """Run Python as a user would: a process of its own, in an empty folder."""

    def run(
        *arguments: str | Path, stdin: str = "", timeout: float = 300, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, **environment, "PYTHONIOENCODING": "utf-8"},
            input=stdin,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=timeout,
            check=False,
        )

    return run
