"""Every Python block of README and guide, and every example, runs as it is printed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.checkpoints import FAMILY, build_checkpoint

from .conftest import REPOSITORY, RunPython
from .local_hub import LocalHub, serve_hub

SEED_MODEL = "microsoft/Phi-3-mini-4k-instruct"
EXAMPLES = {
    "minimal_chat.py": ("The capital of France is Paris.", "Berlin"),
    "streaming.py": ("The capital of France is Paris.", "[cancelled]"),
    "seed_walkthrough.py": ("the same",),
}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LocalHub]:
    """A hub that serves a tiny checkpoint under the name that the documents use."""
    checkpoint = build_checkpoint(
        tmp_path / "checkpoint",
        FAMILY["phi-3-mini-4k"],
        max_position_embeddings=4096,
        original_max_position_embeddings=4096,
    )
    with serve_hub(LocalHub({SEED_MODEL: checkpoint})) as hub:
        yield hub


@pytest.mark.parametrize("document", ["README.md", "docs/guide.md"])
def test_every_python_block_runs(
    document: str, hub: LocalHub, run_python: RunPython, tmp_path: Path
) -> None:
    """The blocks of a document, in order, are a program that works in an empty folder."""
    text = (REPOSITORY / document).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 4
    script = tmp_path / "blocks.py"
    script.write_text("\n".join(blocks), encoding="utf-8")
    done = run_python(script, HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "hf"))
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("example", sorted(EXAMPLES))
def test_example_runs(example: str, run_python: RunPython, reference_export: Path) -> None:
    """The example ends well on the reference model and prints what it promises."""
    done = run_python(REPOSITORY / "examples" / example, reference_export)
    assert done.returncode == 0, done.stderr[-2000:]
    for expected in EXAMPLES[example]:
        assert expected in done.stdout


def test_every_example_is_in_the_index_and_tested() -> None:
    """examples/README.md names every example, and each is run by a test."""
    names = {path.name for path in (REPOSITORY / "examples").glob("*.py")}
    index = (REPOSITORY / "examples" / "README.md").read_text(encoding="utf-8")
    assert names == {*EXAMPLES, "demo.py"}
    assert all(f"({name})" in index for name in names)


def test_every_source_file_is_in_the_readmes_map() -> None:
    """The README's table names every module, so that a newcomer finds the one to change."""
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    source = REPOSITORY / "src" / "phi3ov"
    names = {path.name for path in source.glob("*.py")} - {"__main__.py"}
    assert all(f"`{name}`" in readme for name in names)


def test_every_test_that_the_documents_name_exists() -> None:
    """docs/ name the tests that prove a claim; a renamed test must not leave a claim unproved."""
    defined: set[str] = set()
    for path in (REPOSITORY / "tests").rglob("test_*.py"):
        defined.update(
            re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        )
    files = {path.stem for path in (REPOSITORY / "tests").rglob("test_*.py")}
    for document in (REPOSITORY / "docs").glob("*.md"):
        named = set(re.findall(r"\b(test_\w+)\b", document.read_text(encoding="utf-8")))
        assert named <= defined | files, f"{document.name}: {named - defined - files}"
