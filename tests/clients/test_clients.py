"""Real clients, unchanged, against ``phi3ov serve`` with the reference model."""

from __future__ import annotations

import os
import re
import shlex
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
    "lm_eval": "lm_eval_client.py",
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


GUIDE = REPOSITORY / "docs" / "server" / "clients.md"
GUIDE_ADDRESS = "http://127.0.0.1:8000"
PARIS = "The capital of France is Paris."


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("title", ["openai", "LangChain", "litellm", "instructor", "pydantic-ai"])
def test_the_guides_python_runs_as_it_is_printed(title: str, run_client: RunClient) -> None:
    """The blocks of docs/server/clients.md, with the test's address."""
    environment = title.lower().replace("-", "_")
    said = run_client([python_of(environment), PROGRAMS / "run_snippet.py", GUIDE, title])
    assert ("capital='Paris'" if title in ("instructor", "pydantic-ai") else PARIS) in said


def printed(title: str, address: str) -> str:
    """Return a block of the guide by its title, with another address."""
    text = GUIDE.read_text(encoding="utf-8").replace(GUIDE_ADDRESS, address)
    (block,) = re.findall(rf'```\w+ title="{re.escape(title)}"\n(.*?)```', text, re.DOTALL)
    return str(block)


def with_environment(name: str, script: str) -> list[str | Path]:
    """Return the command that runs a shell script with a client's programs before all others."""
    folder = "" if name == "" else f"export PATH={shlex.quote(str(python_of(name).parent))}:$PATH\n"
    return ["bash", "-euc", folder + script]


def test_the_guides_curl_runs_as_it_is_printed(run_client: RunClient, urls: dict[str, str]) -> None:
    """Whole and streamed."""
    said = run_client(with_environment("", printed("curl", urls["SERVER_URL"])))
    assert PARIS in said
    assert "data: [DONE]" in said


def test_the_guides_llm_runs_as_it_is_printed(
    run_client: RunClient, urls: dict[str, str], tmp_path: Path
) -> None:
    """With the file of models that the guide shows."""
    models = tmp_path / "extra-openai-models.yaml"
    models.write_text(printed("extra-openai-models.yaml", urls["SERVER_URL"]), encoding="utf-8")
    settings = f"export LLM_USER_PATH={shlex.quote(str(tmp_path))} OPENAI_API_KEY=any\n"
    assert PARIS in run_client(with_environment("llm", settings + printed("llm", "")))


@pytest.mark.timeout(1200)
def test_the_guides_evaluation_runs_as_it_is_printed(
    run_client: RunClient, urls: dict[str, str], tmp_path: Path
) -> None:
    """lm-eval with the guide's own task: all of its questions are answered rightly."""
    address = urls["SCORING_SERVER_URL"]
    (tmp_path / "tasks").mkdir()
    for name in ("tasks/capitals.yaml", "capitals.jsonl"):
        (tmp_path / name).write_text(printed(name, address), encoding="utf-8")
    offline = "export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 HF_HOME=$PWD/hf\n"
    said = run_client(with_environment("lm_eval", offline + printed("lm-eval", address)))
    assert re.search(r"\|acc\s*\|.*\|\s*1(\.0+)?\|", said), said


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


@pytest.mark.timeout(1200)
def test_the_gradio_example_answers(reference_export: Path) -> None:
    """A page of its own process, asked by Gradio's client: streamed, with a memory."""
    program, example = PROGRAMS / "gradio_page.py", REPOSITORY / "examples" / "gradio_chat.py"
    done = subprocess.run(
        [python_of("gradio"), program, example, reference_export],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "src"), "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert "gradio: ok" in done.stdout, done.stdout[-6000:]


def test_the_npm_client_works_unchanged(run_client: RunClient, urls: dict[str, str]) -> None:
    """A second parser of the same protocol, and the guide's block as it is printed."""
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
    program = folder / "guide.mjs"
    program.write_text(printed("openai-npm", urls["SERVER_URL"]), encoding="utf-8")
    assert PARIS in run_client(["node", program], cwd=folder)


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
