"""What is put beside a graph whose rope factors are pinned: what genai reads, and no more."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from phi3ov.engine.pinned import pinned_folder
from phi3ov.runtime.rope import ContextChoice

from .fakes import make_artifact, make_config
from .test_rope import NODE, graph

SHORT = ContextChoice(tokens=64, factors="short")
READ = ("config.json", "openvino_tokenizer.xml", "tokenizer.json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An export, and things that other programs left in its folder."""
    path = tmp_path / "artifact"
    path.mkdir()
    (path / "openvino_model.xml").write_text(graph(NODE), encoding="utf-8")
    (path / "openvino_model.bin").write_bytes(b"weights")
    for name in (*READ, "manual.kv", "pytorch_model.bin", "notes.txt", "phi3ov.json"):
        (path / name).write_text(name, encoding="utf-8")
    return path


@pytest.mark.parametrize("links", [True, False])
def test_only_what_genai_reads_is_there(
    links: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saved caches and other frameworks' weights stay where they are; no file is read whole."""
    monkeypatch.setattr(Path, "read_bytes", lambda _path: pytest.fail("read into memory"))
    if not links:

        def refuse(*_: object) -> None:
            raise OSError("another volume")

        monkeypatch.setattr(Path, "hardlink_to", refuse)
    config = make_config(rope_scaling={"type": "longrope"}, original_max_position_embeddings=64)
    artifact = dataclasses.replace(make_artifact(folder), config=config)
    with pinned_folder(artifact, SHORT, inside=str(tmp_path)) as pinned:
        names = sorted(path.name for path in pinned.iterdir())
        assert names == sorted([*READ, "openvino_model.bin", "openvino_model.xml"])
        assert [(pinned / name).read_text(encoding="utf-8") for name in READ] == list(READ)
        assert (pinned / "tokenizer.json").samefile(folder / "tokenizer.json") == links
        assert (pinned / "openvino_model.bin").samefile(folder / "openvino_model.bin")
    assert not pinned.exists()
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*names, "manual.kv", "pytorch_model.bin", "notes.txt", "phi3ov.json"]
    )
