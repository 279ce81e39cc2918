"""Every Python block of README and docs, and every example, runs as it is printed."""

from __future__ import annotations

import json
import re
import shutil
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from phi3ov import export_model
from tests.conftest import MadeOnce
from tests.engine.checkpoints import FAMILY, MINI_REASONING, build_checkpoint
from tests.engine.test_lora import make_adapter

from .conftest import REPOSITORY, RunPython
from .local_hub import LocalHub, serve_hub

SEED_MODEL = "microsoft/Phi-3-mini-4k-instruct"
CONTEXT: dict[str, Any] = {
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
}
ExecuteNotebook = Callable[[str], list[dict[str, Any]]]
EXAMPLES = {
    "minimal_chat.py": ("The capital of France is Paris.", "Berlin"),
    "lasting_chat.py": ("The capital of France is Paris.", "[3 messages in chat.json]"),
    "saved_prefix.py": ("tokens read and saved", "prompt tokens cached]"),
    "structured_answer.py": ("Animal(name=",),
    "streaming.py": ("The capital of France is Paris.", "[cancelled]"),
    "seed_walkthrough.py": ("the same",),
    "terminal_chat.py": ("The capital of France is Paris.", "tokens/s]"),
    "branches.py": ("The capital of France is Paris.", "[seed 2,", "[2 messages in the trunk]"),
    "batch.py": ("0 The capital of France is Paris.", "1 ", "2 "),
    "many_users.py": ("tokens/s  The capital of France is Paris.",),
    "errors.py": ("GPU.7 is not there", "context: ", "top_p=0.9 has no effect"),
    "weights.py": ("int4, group 64", "#", "bits per weight"),
    "devices.py": ("CPU", "not NPU: It is not there", "runs on CPU: "),
    "candidates.py": ("[seed 1, -", "[seed 2, -", "[seed 3, -"),
    "speculation.py": ("none           1.00 tokens per pass", "The harbour office opens at eight."),
    "demo.py": ("Loaded on CPU", "The capital of France is Paris.", "tokens/s", "bits per weight"),
    "export_and_measure.py": (" MB became ", "perplexity", "exported.svg"),
    "lora.py": ("without: The capital of France is Paris.", "\nwith: "),
    "tools.py": (" calls. ",),
    "agent.py": (" messages] ",),
    "langchain_chat.py": ("The capital of France is Paris.", "Animal(name=", " tokens in "),
    "ray_batch.py": ("-> The capital of France is Paris.", "'' -> messages[0].content is empty"),
}
"""What each example prints, in part."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LocalHub]:
    """A hub that serves a tiny checkpoint under the name that the documents use."""
    checkpoint = build_checkpoint(
        tmp_path / "checkpoint",
        FAMILY["phi-3-mini-4k"],
        **CONTEXT,
    )
    with serve_hub(LocalHub({SEED_MODEL: checkpoint})) as hub:
        yield hub


DOCUMENTS = [
    "README.md",
    *sorted(
        path.relative_to(REPOSITORY).as_posix()
        for path in (REPOSITORY / "docs").rglob("*.md")
        if "```python" in path.read_text(encoding="utf-8")
    ),
]


SLOW = {
    *("docs/recipes.md", "docs/guides/export.md", "export_and_measure.py", "demo.py"),
    *("docs/guides/ray.md", "ray_batch.py"),
}
"""Pages and examples that export in their run, or start Ray."""

NEEDS = {"docs/guides/ray.md": "ray.data", "ray_batch.py": "ray.data"}
"""Modules without which a page or an example is left out."""


def marked(names: list[str]) -> list[Any]:
    """Return the names as parameters, with the mark of those that are `SLOW`."""
    return [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in names]


@pytest.fixture(scope="session")
def exported(made_once: MadeOnce) -> Path:
    """A folder with what pages begin with: tiny exports and an adapter."""

    def make(home: Path) -> None:
        for name, row, changes in (
            ("phi3-int4", FAMILY["phi-3-mini-4k"], {}),
            ("phi3-draft-int4", FAMILY["phi-3-mini-4k"], {"num_hidden_layers": 1}),
            ("phi4-mini-int4", FAMILY["phi-4-mini"], {"max_position_embeddings": 8192}),
            ("phi4-mini-reasoning-int4", MINI_REASONING, {}),
        ):
            checkpoint = home / "checkpoints" / name
            build_checkpoint(checkpoint, row, **(CONTEXT | changes))
            export_model(checkpoint, home / "models" / name, progress=False)
        (home / "adapters").mkdir()
        make_adapter(home / "adapters" / "poet", home / "checkpoints" / "phi3-int4", seed=1)

    return made_once("documents", make)


def python_blocks(text: str) -> list[str]:
    """Return the fenced Python of a page, also in lists and tabs, but not others' stacks'."""
    fence = re.compile(r"^([ \t]*)```[ \t]*python\b(.*)\n((?:.*\n)*?)\1```$", re.MULTILINE)
    return [
        textwrap.dedent(body)
        for _, title, body in fence.findall(text)
        if not title.endswith('(not ours)"')
    ]


@pytest.mark.parametrize("document", marked(DOCUMENTS))
def test_every_python_block_runs(
    document: str, hub: LocalHub, exported: Path, run_python: RunPython, tmp_path: Path
) -> None:
    """The blocks of a document, in order, are a program that works in an empty folder.

    It holds those of ``models/phi3-int4``, ``models/phi3-draft-int4``, ``models/phi4-mini-int4``,
    ``models/phi4-mini-reasoning-int4`` and ``adapters/poet`` that the page names and does not make.
    """
    pytest.importorskip(NEEDS.get(document, "phi3ov"))
    text = (REPOSITORY / document).read_text(encoding="utf-8")
    blocks = python_blocks(text)
    others = text.count('(not ours)"\n')
    assert len(blocks) + others == len(re.findall(r"``` *python\b", text)), "a block is not found"
    program = "\n".join(blocks)
    for path in [*exported.glob("models/*"), *exported.glob("adapters/*")]:
        name = path.relative_to(exported).as_posix()
        made = re.search(rf'export_model\([^()]*"{name}"', program)
        if f'"{name}"' in program and not made:
            shutil.copytree(path, tmp_path / name)
    hub.models["me/phi3-int4-ov"] = exported / "models" / "phi3-int4"
    script = tmp_path / "blocks.py"
    script.write_text(program, encoding="utf-8")
    done = run_python(script, HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "hf"), HF_TOKEN="hf_test")
    assert done.returncode == 0, done.stderr[-2000:]


def test_blocks_are_found_wherever_they_stand() -> None:
    """At the margin, in a list and in a tab; what another stack does is not run."""
    page = """
```python
one = 1
```

- In a list:

    ```python
    if one:
        two = 2
    ```

=== "A tab"

    ``` python title="ours"
    three = 3
    ```

```python title="genai (not ours)"
four = 4
```
"""
    assert python_blocks(page) == ["one = 1\n", "if one:\n    two = 2\n", "three = 3\n"]


@pytest.fixture
def arguments(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], tuple[str, ...]]:
    """What an example is called with: mostly an export of the reference model."""

    def choose(example: str) -> tuple[str, ...]:
        checkpoint: Path = request.getfixturevalue("reference_checkpoint")
        export: Path = request.getfixturevalue("reference_export")
        if example == "demo.py":  # what it would build is there already
            shutil.copytree(export, tmp_path / "build" / "reference-int4")
            return ("build",)
        if example == "export_and_measure.py":
            return (str(checkpoint), "exported")
        if example == "lora.py":
            make_adapter(tmp_path / "adapter", checkpoint, seed=1)
            return (str(export), "adapter")
        if example in (
            "tools.py",
            "agent.py",
        ):  # no real Phi-4-mini is at hand: what it says is noise
            exported: Path = request.getfixturevalue("exported")
            return (str(exported / "models" / "phi4-mini-int4"),)
        return (str(export),)

    return choose


@pytest.mark.parametrize("example", marked(sorted(EXAMPLES)))
def test_example_runs(
    example: str,
    arguments: Callable[[str], tuple[str, ...]],
    run_python: RunPython,
    tmp_path: Path,
) -> None:
    """The example ends well on the reference model and prints what it promises."""
    pytest.importorskip(NEEDS.get(example, "phi3ov"))
    question = "What is the capital of France?\n"
    program = REPOSITORY / "examples" / example
    done = run_python(program, *arguments(example), stdin=question)
    assert done.returncode == 0, done.stderr[-2000:]
    for expected in EXAMPLES[example]:
        assert expected in done.stdout
    for picture in tmp_path.glob("*.svg"):
        assert ElementTree.parse(picture).getroot().tag.endswith("svg")


@pytest.fixture
def execute(hub: LocalHub, run_python: RunPython, tmp_path: Path) -> ExecuteNotebook:
    """Run a notebook in a kernel of its own; return its code cells with what they show.

    The model is a tiny checkpoint under the name that the notebooks use. A notebook is committed
    without outputs.
    """

    def run(name: str) -> list[dict[str, Any]]:
        committed = json.loads((REPOSITORY / "examples" / name).read_text(encoding="utf-8"))
        assert not any(cell.get("outputs") for cell in committed["cells"]), "commit no outputs"
        program = tmp_path / "execute.py"
        program.write_text(
            "import nbformat, nbclient, sys\n"
            "notebook = nbformat.read(sys.argv[1], as_version=4)\n"
            "nbclient.NotebookClient(notebook, timeout=500, kernel_name='python3').execute()\n"
            "nbformat.write(notebook, 'out.ipynb')\n",
            encoding="utf-8",
        )
        done = run_python(
            program,
            REPOSITORY / "examples" / name,
            timeout=900,
            HF_ENDPOINT=hub.url,
            HF_HOME=str(tmp_path / "hf"),
            JUPYTER_PLATFORM_DIRS="1",
        )
        assert done.returncode == 0, done.stderr[-2000:]
        cells = json.loads((tmp_path / "out.ipynb").read_text(encoding="utf-8"))["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        assert all(cell["outputs"] for cell in code), "every code cell shows something"
        return code

    return run


def shown(cell: dict[str, Any], kind: str) -> list[str]:
    """Return the outputs of a cell that are of one kind, such as ``text/html``."""
    found = [output.get("data", {}).get(kind) for output in cell["outputs"]]
    return ["".join(output) for output in found if output is not None]


def test_notebook_runs(execute: ExecuteNotebook) -> None:
    """Every cell of the first notebook runs, and its picture has a bar for each weight matrix."""
    code = execute("e2e_openvino_chat_phi3.ipynb")
    assert len(code) == 7
    [drawn] = [picture for cell in code for picture in shown(cell, "image/svg+xml")]
    assert drawn.count("<rect") >= 10


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_notebook_with_pictures_runs(execute: ExecuteNotebook) -> None:
    """Layers, quality and settings are drawn, tokens coloured, and the widgets there."""
    _exports, layers, quality, tuned, tokens, widgets = execute("see_it.ipynb")
    for cell in (layers, quality):
        assert len(shown(cell, "image/png")) == 1
    [table] = shown(tuned, "text/html")
    assert table.count("<tr>") > 2
    assert "OpenVINO's own" in table.replace("&#x27;", "'")
    [coloured] = shown(tokens, "text/html")
    assert coloured.count("<span") == 32
    assert "rgba(" in coloured
    assert shown(widgets, "application/vnd.jupyter.widget-view+json")


def test_every_example_is_in_the_index_and_tested() -> None:
    """examples/README.md names every example, and each is run by a test."""
    names = {path.name for path in (REPOSITORY / "examples").glob("*.py")}
    index = (REPOSITORY / "examples" / "README.md").read_text(encoding="utf-8")
    # Run by tests/engine/test_server.py and in tests/clients.
    servers = {"fastapi_server.py", "mounted_server.py", "ray_serve.py", "gradio_chat.py"}
    assert names == {*EXAMPLES, *servers}
    assert all(f"({name})" in index for name in names)
    whole_programs = {"demo.py", "fastapi_server.py", "ray_serve.py", "seed_walkthrough.py"}
    for name in names - whole_programs:
        lines = (REPOSITORY / "examples" / name).read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 40, f"{name} shows more than one thing"
