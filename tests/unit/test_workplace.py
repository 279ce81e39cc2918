"""Where an export ends up: nothing of anybody else's is lost on the way."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from phi3ov.artifact.folder import MANIFEST_NAME
from phi3ov.errors import ExportError
from phi3ov.exporter import workplace
from phi3ov.exporter.workplace import check_target, free_memory, open_workplace, put_into_place


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


def test_an_output_under_a_file_is_refused_by_name(tmp_path: Path) -> None:
    """What the system says of the path is the library's error, before any work."""
    (tmp_path / "file.txt").write_text("mine", encoding="utf-8")
    target = tmp_path / "file.txt" / "out"

    def begin() -> None:
        check_target(target, overwrite=False)
        with open_workplace(target):
            pytest.fail("there is no such place")

    with pytest.raises(ExportError, match=r"output='.*out' cannot be made: .*another folder"):
        begin()
    assert (tmp_path / "file.txt").read_text(encoding="utf-8") == "mine"


def test_an_error_of_the_work_is_not_taken_for_one_of_the_place(tmp_path: Path) -> None:
    """Only what the place itself refuses is told by the target's name."""
    with (
        pytest.raises(FileNotFoundError, match="a file of the work"),
        open_workplace(tmp_path / "o"),
    ):
        raise FileNotFoundError("a file of the work")


@pytest.mark.skipif(os.name == "nt", reason="filelock removes its file there, safely")
def test_the_lock_is_one_file_for_good(tmp_path: Path) -> None:
    """A lock that is removed when one lets go is still held by who has just got it.

    The next one would make a new file and hold that, and two would work in one folder.
    """
    target, lock = tmp_path / "made", tmp_path / ".made.phi3ov-lock"
    files = []
    for _ in range(2):
        with open_workplace(target) as work:
            assert work.is_dir()
            with pytest.raises(ExportError, match="Another export"), open_workplace(target):
                pytest.fail("two at once")
        assert not work.exists()
        files.append(lock.stat().st_ino)
    assert files[0] == files[1]


@pytest.mark.export
@pytest.mark.parametrize("version", [1, 2])
def test_a_containers_limit_counts_what_is_used(
    version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Free is what the limit leaves; files that are only cached count as free."""
    names = ("memory.max", "memory.current")
    folder = tmp_path
    if version == 1:
        names, folder = ("memory.limit_in_bytes", "memory.usage_in_bytes"), tmp_path / "memory"
        folder.mkdir()
    for name, text in zip((*names, "memory.stat"), ("1000", "700", STAT), strict=True):
        (folder / name).write_text(text, encoding="ascii")
    plenty = SimpleNamespace(available=10**12, free=0)
    monkeypatch.setattr("psutil.virtual_memory", lambda: plenty)
    monkeypatch.setattr("psutil.swap_memory", lambda: plenty)
    assert free_memory() >= 0, "this machine's own"
    monkeypatch.setattr(workplace, "_CGROUPS", tmp_path)
    assert free_memory() == 1000 - 700 + 150 + 50
    (folder / names[0]).write_text("max", encoding="ascii")
    assert free_memory() == 10**12


STAT = "anon 450\nfile 250\nshmem 50\ninactive_file 150\nactive_file 50\n"
