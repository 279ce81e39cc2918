"""The package as distributed: built, installed without the source tree, tried there.

The environments hold the wheel and its dependencies, at the lowest and at the highest versions
(requirements/lowest.txt and highest.txt); neither has torch. What they prove: the public surface
is there, phi3ov loads and chats, and the modules that call a dependency work with its oldest and
newest version. The other unit tests do not depend on where phi3ov is installed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

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


CALLS_A_DEPENDENCY = (
    "package",  # the public surface
    "hub",  # huggingface-hub
    "kv_cache_file",  # safetensors
    "prompt_parity",  # tokenizers
    "text",  # tokenizers' streaming decoder
    "batch_file",  # filelock
)
"""Unit tests of modules that call a dependency, by the end of their file's name."""


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel, and the bytes that the wheel and its dependencies take."""

    python: Path
    site_bytes: int


def run(*command: str | Path, cwd: Path | None = None, **environment: str) -> str:
    """Run a command that must succeed, and return what it printed."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [*map(str, command)],
        cwd=cwd, env=clean | environment, capture_output=True, text=True, encoding="utf-8",
        check=False, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def build(source: Path, target: Path, kind: str) -> Path:
    """Build the ``kind`` of distribution from a source folder."""
    run(sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", target, cwd=source)
    [made] = target.glob("phi3ov-*.whl" if kind == "wheel" else "phi3ov-*.tar.gz")
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the repository."""
    return build(REPOSITORY, tmp_path_factory.mktemp("wheel"), "wheel")


def size_of(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


@pytest.fixture(scope="module", params=["lowest", "highest"])
def installed(
    request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory
) -> Installed:
    """A fresh environment with the wheel, its dependencies at one end of what is allowed."""
    folder = tmp_path_factory.mktemp("install")
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    pip = (python, "-m", "pip", "install", "--quiet", "--constraint")
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    empty = size_of(Path(site))  # pip, and setuptools in older Pythons
    run(*pip, REPOSITORY / "requirements" / f"{request.param}.txt", wheel)
    size = size_of(Path(site)) - empty
    tools = ("pytest", "pytest-timeout", "hypothesis", "httpx", "jinja2", "jsonschema", "pydantic")
    run(*pip, REPOSITORY / "requirements" / "dev.txt", "--no-compile", *tools)
    return Installed(python, size)


@pytest.mark.slow
def test_the_base_install_loads_and_chats_without_torch(
    installed: Installed, reference_export: Path, tmp_path: Path
) -> None:
    """The wheel alone answers; what needs the extra names the exact pip command."""
    script = tmp_path / "chat.py"
    script.write_text(CHAT, encoding="utf-8")
    said = json.loads(run(installed.python, script, reference_export))
    assert said["heavy"] == []
    assert said["text"] == "The capital of France is Paris."
    assert said["missing"] == ['pip install "phi3ov[export]"'] * 2
    assert "site-packages" in said["file"]


@pytest.mark.slow
def test_the_base_install_stays_small(installed: Installed) -> None:
    """The wheel and its dependencies take at most 350 MB."""
    assert installed.site_bytes < 350_000_000


@pytest.mark.slow
def test_the_command_chats_where_it_is_installed(
    installed: Installed, reference_export: Path, tmp_path: Path
) -> None:
    """The script that pip made answers, in a folder without the source tree."""
    command = installed.python.with_name("phi3ov.exe" if os.name == "nt" else "phi3ov")
    question = "What is the capital of France?"
    said = run(command, "chat", reference_export, question, cwd=tmp_path)
    assert said.strip() == "The capital of France is Paris."


@pytest.mark.slow
@pytest.mark.parametrize("module", CALLS_A_DEPENDENCY)
def test_modules_work_with_the_oldest_and_newest_dependencies(
    module: str, installed: Installed, tmp_path: Path
) -> None:
    """Their unit tests pass without torch and without the source tree."""
    shutil.copytree(REPOSITORY / "tests", tmp_path / "tests")
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    said = run(
        installed.python, "-m", "pytest", "-q", f"tests/unit/test_{module}.py",
        "-m", "not export", "-p", "no:cacheprovider", cwd=tmp_path,
    )  # fmt: skip
    assert re.search(r"[1-9]\d* passed", said)


def test_the_source_distribution_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    """The wheel from the sdist has the bytes of the one from the repository; tests travel along."""
    sdist = build(REPOSITORY, tmp_path / "sdist", "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    [source] = (tmp_path / "unpacked").iterdir()
    again = build(source, tmp_path / "wheel", "wheel")
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(again) as other:
        assert one.namelist() == other.namelist()
        assert all(one.read(name) == other.read(name) for name in one.namelist())
    for name in (
        "tests/e2e/test_install.py",
        "docs/guides/chat.md",
        "Makefile",
        "requirements/dev.txt",
    ):
        assert (source / name).is_file(), name
    assert not list(source.rglob("*.bin"))


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    """Every module, the marker for type checkers, the data; no tests, no caches."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    source = REPOSITORY / "src"
    tracked = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert names == tracked


@pytest.mark.slow
def test_the_export_extra_resolves_to_what_is_tested(wheel: Path, tmp_path: Path) -> None:
    """``pip install "phi3ov[export]"`` finds one set of versions, and it is the tested one.

    Only resolved, not installed: from a plain index torch brings several GB of CUDA.
    """
    report = tmp_path / "report.json"
    run(
        sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed",
        "--report", report, "--constraint", REPOSITORY / "requirements" / "torch.txt",
        f"{wheel}[export]",
    )  # fmt: skip
    found = {
        one["metadata"]["name"].lower(): one["metadata"]["version"]
        for one in json.loads(report.read_text(encoding="utf-8"))["install"]
    }
    assert Version(found["optimum-intel"]).release[:2] == (2, 2)
    assert Version(found["transformers"]).release[:2] == (5, 5)
    assert {"nncf", "torch", "openvino", "openvino-genai"} <= found.keys()


def test_the_development_set_lacks_only_what_it_leaves_out_on_purpose() -> None:
    """`pip check` of the pinned set complains of torchvision and llama.cpp alone."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False
    )
    lacking = {line.split(" requires ")[1].partition(",")[0] for line in done.stdout.splitlines()}
    assert lacking == {"torchvision", "llama-cpp-python", "llm"}, done.stdout


def test_the_lowest_versions_are_the_bounds_of_pyproject() -> None:
    """The lowest*.txt pin exactly the lower bounds; lowest.txt is what the wheel is tested at."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lowest = _pins("lowest-export")
    for extra in project["optional-dependencies"].values():
        for one in map(Requirement, extra):
            if one.name != "torch":
                bound = min(Version(part.version) for part in one.specifier)
                assert lowest[one.name].release[:2] == bound.release[:2], str(one)
                assert lowest[one.name] in one.specifier
    pins = _pins("lowest")
    for text in project["dependencies"]:
        asked = Requirement(text)
        [bound] = [Version(part.version) for part in asked.specifier if part.operator == ">="]
        assert pins[asked.name].release[:2] == bound.release[:2], text
        assert pins[asked.name] in asked.specifier
        assert _pins("highest")[asked.name] in asked.specifier


def _pins(name: str) -> dict[str, Version]:
    lines = (REPOSITORY / "requirements" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if "==" in line)
    return {package: Version(version) for package, version in pairs}
