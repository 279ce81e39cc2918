"""The package as installed: a wheel in a fresh environment with nothing but the base install."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from .conftest import REPOSITORY

CHAT = """
import importlib.util, json, sys
import phi3ov
names = ("torch", "transformers", "nncf", "optimum")
heavy = [name for name in names if importlib.util.find_spec(name)]
with phi3ov.load_model(sys.argv[1]) as model:
    chat = phi3ov.Phi3Chat(model, system="You are a helpful AI assistant.")
    text = chat.generate("What is the capital of France?", max_new_tokens=64).text
missing = []
for call in (
    lambda: phi3ov.export_model(".", "x", progress=False),
    lambda: phi3ov.load_model(sys.argv[1], engine="transformers"),
):
    try:
        call()
    except phi3ov.MissingDependencyError as error:
        missing.append(error.command)
print(json.dumps({"heavy": heavy, "text": text, "missing": missing, "file": phi3ov.__file__}))
"""


@pytest.fixture(scope="module")
def installed_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of a fresh environment in which the wheel, and only what it asks for, is installed."""
    folder = tmp_path_factory.mktemp("install")
    _run(
        sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
        "--wheel-dir", folder, REPOSITORY,
    )  # fmt: skip
    [wheel] = folder.glob("phi3ov-*.whl")
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    constraints = REPOSITORY / "requirements" / "dev.txt"
    _run(python, "-m", "pip", "install", "--quiet", "--constraint", constraints, wheel)
    return python


def _run(*command: str | Path) -> str:
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_base_install_loads_and_chats_without_torch(
    installed_python: Path, reference_export: Path, tmp_path: Path
) -> None:
    """The wheel alone answers; what needs the extra names the exact pip command."""
    script = tmp_path / "chat.py"
    script.write_text(CHAT, encoding="utf-8")
    said = json.loads(_run(installed_python, script, reference_export))
    assert said["heavy"] == []
    assert said["text"] == "The capital of France is Paris."
    assert said["missing"] == ['pip install "phi3ov[export]"'] * 2
    assert "site-packages" in said["file"]


def test_the_base_install_stays_small(installed_python: Path) -> None:
    """site-packages, pip included, takes at most 350 MiB."""
    site = _run(installed_python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
    total = sum(path.lstat().st_size for path in Path(site.strip()).rglob("*") if not path.is_dir())
    assert total < 350 * 2**20
