"""Real clients, unchanged, against ``phi3ov serve`` with the reference model."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from .conftest import ENVIRONMENTS, REPOSITORY, RunClient, python_of

PROGRAMS = Path(__file__).parent / "programs"
CLIENTS = {
    "openai": "openai_python.py",
    "langchain": "langchain_suite.py",
    "litellm": "litellm_client.py",
    "instructor": "instructor_client.py",
    "pydantic_ai": "pydantic_ai_client.py",
    "llm": "llm_client.py",
    "schemathesis": "schemathesis_run.py",
}


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("client", CLIENTS)
def test_a_python_client_works_unchanged(client: str, run_client: RunClient) -> None:
    """The program asserts; here it must end well."""
    print(run_client([python_of(client), PROGRAMS / CLIENTS[client]]))


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("title", ["LlamaIndex", "Haystack", "llm"])
def test_a_snippet_runs_as_it_is_printed(title: str, run_client: RunClient) -> None:
    """The blocks of docs/guides/frameworks.md, with the test's address; each asks for Paris."""
    page = REPOSITORY / "docs" / "guides" / "frameworks.md"
    environment = {"LlamaIndex": "llama_index"}.get(title, title.lower())
    said = run_client([python_of(environment), PROGRAMS / "run_snippet.py", page, title])
    assert "The capital of France is Paris." in said


@pytest.mark.timeout(3600)
def test_langchains_suites_pass_in_process(reference_export: Path, tools_export: Path) -> None:
    """Unit and integration suites over `ChatPhi3`, with tools and without; no server."""
    exports = {"REFERENCE_EXPORT": str(reference_export), "TOOLS_EXPORT": str(tools_export)}
    done = subprocess.run(
        [python_of("langchain_in_process"), PROGRAMS / "langchain_in_process.py"],
        env={**os.environ, **exports, "PYTHONPATH": str(REPOSITORY / "src")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]


def test_the_npm_client_works_unchanged(run_client: RunClient) -> None:
    """A second parser of the same protocol."""
    folder = ENVIRONMENTS / "npm"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(REPOSITORY / "requirements" / "clients" / name, folder / name)
    npm = shutil.which("npm")
    assert npm is not None, "install node"
    subprocess.run([npm, "ci", "--no-audit", "--no-fund", "--silent"], cwd=folder, check=True)
    program = folder / "openai_node.mjs"
    shutil.copy(PROGRAMS / "openai_node.mjs", program)
    assert "ok" in run_client(["node", program], cwd=folder)


def test_the_page_works_in_a_browser(run_client: RunClient, tmp_path: Path) -> None:
    """In headless Chromium: answers, stopping, settings, errors, and a phone's width.

    With PHI3OV_SCREENSHOT the first picture is kept there.
    """
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    assert chromium is not None, "install chromium"
    pictures = [tmp_path / "page.png", tmp_path / "phone.png"]
    print(run_client([python_of("page"), PROGRAMS / "page.py", *pictures]))
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)
    if kept := os.environ.get("PHI3OV_SCREENSHOT"):
        shutil.copy(pictures[0], kept)
