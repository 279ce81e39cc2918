"""Fixtures shared by the end-to-end tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from phi3ov import Int4Compression, export_model
from phi3ov.reference import build_reference

REPOSITORY = Path(__file__).parents[2]

RunPython = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def reference_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference checkpoint, built once for all tests. Do not write into it."""
    return build_reference(tmp_path_factory.mktemp("checkpoint") / "reference")


@pytest.fixture(scope="session")
def reference_export(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The reference checkpoint as int4, exported once for all tests. Do not write into it.

    PHI3OV_TEST_EXPORT names a folder that is there already, for an environment that cannot export.
    """
    if made := os.environ.get("PHI3OV_TEST_EXPORT"):
        return Path(made)
    output = tmp_path_factory.mktemp("exported") / "reference-int4"
    recipe = Int4Compression(on_indivisible="adjust")
    checkpoint = request.getfixturevalue("reference_checkpoint")
    export_model(checkpoint, output, compression=recipe, progress=False)
    return output


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
