"""README and docs agree with the code: names, tests, commands, decisions."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import phi3ov
from phi3ov.cli import COMMANDS
from tests.typing.describe_api import MODULES, describe_api

from .conftest import REPOSITORY, RunPython

SOURCE = REPOSITORY / "src" / "phi3ov"
PAGES = [
    *REPOSITORY.glob("*.md"),
    *(REPOSITORY / "docs").rglob("*.md"),
    *(REPOSITORY / "examples").glob("*.md"),
    *(REPOSITORY / "benchmarks").glob("*.md"),
]
INTERNAL = {
    "AnswerText",
    "Bench",
    "Calibration",
    "Checkpoint",
    "Engine",
    "GraphWeights",
    "Prepared",
    "TokenStream",
}
"""Types that phi3ov's own modules pass to each other; users neither make nor receive them."""


def read(path: Path) -> str:
    """Return the text of a file."""
    return path.read_text(encoding="utf-8")


SELF_EXPLAINING = {"__init__.py", "__main__.py", "moved.py"}


def test_the_readmes_map_has_a_row_for_every_folder() -> None:
    """The README's map names each folder and each top-level module, and nothing else.

    So a newcomer finds the folder to change.
    """
    readme = read(REPOSITORY / "README.md")
    table = readme[readme.index("| in `src/phi3ov/`") :].partition("\n\n")[0]
    named = {name for row in table.splitlines()[2:] for name in re.findall(r"`([\w/.]+)`", row)}
    folders = {f"{path.name}/" for path in SOURCE.iterdir() if (path / "__init__.py").is_file()}
    modules = {path.name for path in SOURCE.glob("*.py")} - SELF_EXPLAINING
    assert folders | modules <= named
    assert all(
        (SOURCE / name).exists() or (SOURCE / "engine" / name).exists() or "(" in name
        for name in named
        if name.endswith(("/", ".py"))
    )


def test_the_index_of_decisions_lists_every_record() -> None:
    """Each record is linked once, in order, under its own number and title."""
    folder = REPOSITORY / "docs" / "decisions"
    listed = re.findall(r"^\| (\d+) \| \[(.+)\]\((\S+?)\)", read(folder / "index.md"), re.MULTILINE)
    records = sorted(path for path in folder.glob("*.md") if path.name != "index.md")
    assert [name for _, _, name in listed] == [path.name for path in records]
    for (number, title, _), path in zip(listed, records, strict=True):
        assert read(path).partition("\n")[0] == f"# {number}. {title}"
        assert path.name.startswith(f"{int(number):04}-")


def test_every_command_is_in_the_table_of_commands() -> None:
    """In the order in which the help lists them."""
    page = read(REPOSITORY / "docs" / "command.md")
    assert tuple(re.findall(r"^\| `phi3ov (\w+)", page, re.MULTILINE)) == COMMANDS


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_test_that_the_documents_name_exists(page: Path) -> None:
    """Pages name the tests that prove a claim; a renamed test must not leave a claim unproved."""
    files = list((REPOSITORY / "tests").rglob("test_*.py"))
    known = {path.stem for path in files}
    for path in files:
        known.update(re.findall(r"^(?:async )?def (test_\w+)", read(path), re.MULTILINE))
    assert not set(re.findall(r"\b(test_\w+)\b(?!:)", read(page))) - known  # `key:` is YAML


def test_the_modules_that_the_picture_names_exist() -> None:
    """docs/assets/dataflow.svg is drawn by hand; a renamed module must be renamed there."""
    drawn = re.findall(r"[\w/]+\.py", read(REPOSITORY / "docs" / "assets" / "dataflow.svg"))
    assert len(drawn) > 8
    assert set(drawn) <= {path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py")}


def is_python(block: str) -> bool:
    """Whether a block does something in Python: shell, trees and drawings do not parse."""
    try:
        tree = ast.parse(block)
    except SyntaxError:
        return False
    deeds = (ast.Call, ast.Assign, ast.Import, ast.ImportFrom)
    return any(isinstance(node, deeds) for node in ast.walk(tree))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_no_python_hides_in_an_indented_block(page: Path) -> None:
    """What is fenced as Python is run (test_documents.py); what is only indented is not."""
    unfenced = re.sub(r"^([ \t]*)```.*?^\1```$", "", read(page), flags=re.MULTILINE | re.DOTALL)
    for block in re.findall(r"(?:^ {4}.*\n|^\n)+", unfenced, re.MULTILINE):
        assert not is_python(textwrap.dedent(block)), f"fence it, so that it is run:\n{block}"


def test_hidden_python_would_be_found() -> None:
    """A call, an assignment or an import is Python; commands and trees are not."""
    assert is_python('artifact = open("x")\n')
    assert is_python("import phi3ov\n")
    assert not is_python("pip install phi3ov\n")
    assert not is_python("Phi3OVError(Exception)\n├─ MissingDependencyError(ImportError)\n")


def api_page() -> set[str]:
    """Return what the API page shows, as ``module.name``; mkdocs puts the exported names in."""
    page = read(REPOSITORY / "docs" / "api.md")
    exported = {
        f"phi3ov.{module}.{name}" for module, names in phi3ov._MODULES.items() for name in names
    }
    assert "<!-- public names -->" in page
    return exported | set(re.findall(r"^::: (\S+)", page, re.MULTILINE))


def test_every_public_name_is_on_the_api_page() -> None:
    """Those of ``phi3ov.__all__``, and those that are written down beside them."""
    shown = api_page()
    assert {name.rpartition(".")[2] for name in shown} >= set(phi3ov.__all__)
    assert shown >= {f"{module}.{name}" for module, names in MODULES.items() for name in names}


def test_every_type_that_a_public_signature_names_is_on_the_api_page() -> None:
    """A reader of the API page can look up every type that it shows."""
    defined = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.parse(read(path)).body:
            if isinstance(node, ast.ClassDef):
                defined.add(node.name)
            elif isinstance(node, ast.Assign):
                defined |= {one.id for one in node.targets if isinstance(one, ast.Name)}
    named = set(re.findall(r"\b[A-Z]+[a-z]\w*", describe_api())) & defined
    assert len(named) > 50
    assert not named - INTERNAL - {name.rpartition(".")[2] for name in api_page()}


def test_the_benchmark_page_is_what_the_results_say(tmp_path: Path) -> None:
    """``make bench-report`` over the committed results leaves pages and pictures as they are."""
    for name in ("benchmarks", "docs"):
        shutil.copytree(REPOSITORY / name, tmp_path / name)
    for old in [tmp_path / "docs" / "benchmarks.md", *(tmp_path / "docs/benchmarks").iterdir()]:
        old.unlink()
    search = [str(tmp_path / "benchmarks"), str(SOURCE.parent)]
    subprocess.run(
        [sys.executable, "-m", "phi3ov_bench", "report"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(search)},
        check=True,
        capture_output=True,
    )
    written = REPOSITORY / "docs"
    pages = [written / f"{name}.md" for name in ("benchmarks", "recipes", "where-stacks-disagree")]
    for path in [*pages, *(written / "benchmarks").iterdir()]:
        again = tmp_path / path.relative_to(REPOSITORY)
        assert read(again) == read(path), f"{path.name}: run `make bench-report`"


QUIET = """
import socket, sys, time

asked = []

def refuse(*arguments, **options):
    asked.append(arguments[:2])
    raise OSError("no network here")

socket.getaddrinfo = socket.socket.connect = refuse
import phi3ov

with phi3ov.load_model(sys.argv[1], device="CPU", engine=sys.argv[2]) as model:
    phi3ov.Phi3Chat(model).generate("Hello", max_new_tokens=4)
time.sleep(1)  # telemetry speaks from threads of its own
print(asked)
"""


@pytest.mark.parametrize("engine", ["pipeline", "paged"])
def test_loading_opens_no_connection_once_telemetry_is_off(
    engine: str, reference_export: Path, run_python: RunPython, tmp_path: Path
) -> None:
    """As docs/offline.md says; openvino's own telemetry obeys the file that opt_in_out writes."""
    folder = {"win32": "Intel Corporation"}.get(sys.platform, "intel")
    consent = tmp_path / "home" / folder / "openvino_telemetry"
    consent.parent.mkdir(parents=True)
    consent.write_text("0", encoding="utf-8")
    home = str(tmp_path / "home")
    done = run_python("-c", QUIET, reference_export, engine, HOME=home, LOCALAPPDATA=home, CI="")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "[]"
