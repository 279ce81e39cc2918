"""Where an export ends up: nothing of anybody else's is lost on the way."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from phi3ov.artifact import MANIFEST_NAME
from phi3ov.errors import ExportError
from phi3ov.workplace import put_into_place


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A workplace in which a folder has been made."""
    folder = tmp_path / "work"
    (folder / "made").mkdir(parents=True)
    (folder / "made" / MANIFEST_NAME).write_text("new", encoding="utf-8")
    return folder


def an_artifact(folder: Path) -> Path:
    """Make what counts as exported by phi3ov."""
    folder.mkdir()
    (folder / MANIFEST_NAME).write_text("old", encoding="utf-8")
    return folder


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_came_while_the_export_worked_is_not_replaced(
    overwrite: bool, work: Path, tmp_path: Path
) -> None:
    """A folder of the user's, made after the first look at the target."""
    target = tmp_path / "out"
    target.mkdir()
    (target / "thesis.tex").write_text("precious", encoding="utf-8")
    with pytest.raises(ExportError, match="is no folder that phi3ov exported"):
        put_into_place(work / "made", target, work, overwrite=overwrite)
    assert (target / "thesis.tex").read_text(encoding="utf-8") == "precious"


def test_an_artifact_that_came_meanwhile_needs_overwrite(work: Path, tmp_path: Path) -> None:
    """Another export may have been quicker."""
    target = an_artifact(tmp_path / "out")
    with pytest.raises(ExportError, match="overwrite=True"):
        put_into_place(work / "made", target, work, overwrite=False)
    assert (target / MANIFEST_NAME).read_text(encoding="utf-8") == "old"
    put_into_place(work / "made", target, work, overwrite=True)
    assert (target / MANIFEST_NAME).read_text(encoding="utf-8") == "new"


def test_a_rename_that_fails_gives_the_old_artifact_back(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows, where a scanner may hold a file of the new one open."""
    target = an_artifact(tmp_path / "out")
    replace = os.replace

    def refuse_the_new_one(source: Path, destination: Path) -> None:
        if source == work / "made":
            raise PermissionError("in use")
        replace(source, destination)

    monkeypatch.setattr(os, "replace", refuse_the_new_one)
    with pytest.raises(PermissionError, match="in use"):
        put_into_place(work / "made", target, work, overwrite=True)
    assert (target / MANIFEST_NAME).read_text(encoding="utf-8") == "old"
