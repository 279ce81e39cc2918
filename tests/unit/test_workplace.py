"""Where an export ends up: nothing of anybody else's is lost on the way."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from phi3ov.artifact.folder import MANIFEST_NAME
from phi3ov.errors import ExportError
from phi3ov.exporter import workplace
from phi3ov.exporter.checkpoint import Checkpoint
from phi3ov.exporter.int4 import Int4Compression
from phi3ov.exporter.recipes import read_recipe
from phi3ov.exporter.workplace import (
    check_replaceable,
    check_target,
    disk_needed,
    free_memory,
    memory_needed,
    open_workplace,
    put_into_place,
)
from phi3ov.family import Phi3Config

from .fakes import SMALL_MIXTURE, make_config


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A workplace beside the target ``out`` in which a folder has been made."""
    return make(tmp_path / ".out.phi3ov-export")


def make(folder: Path) -> Path:
    """Let an export finish in the workplace ``folder``."""
    (folder / "made").mkdir(parents=True)
    (folder / "made" / MANIFEST_NAME).write_text("new", encoding="utf-8")
    (folder / "made" / "openvino_model.bin").write_text("new weights", encoding="utf-8")
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
    with pytest.raises(
        ExportError,
        match=r"not a folder that phi3ov exported.*is kept in .*out-finished",
    ):
        put_into_place(work / "made", target, work, overwrite=overwrite)
    assert (target / "thesis.tex").read_text(encoding="utf-8") == "precious"
    finished = tmp_path / "out-finished" / MANIFEST_NAME
    assert finished.read_text(encoding="utf-8") == "new", "an hour's work is never deleted"


def test_an_artifact_that_came_meanwhile_needs_overwrite(work: Path, tmp_path: Path) -> None:
    """Another export may have been quicker."""
    target = an_artifact(tmp_path / "out")
    with pytest.raises(ExportError, match="overwrite=True"):
        put_into_place(work / "made", target, work, overwrite=False)
    assert (target / MANIFEST_NAME).read_text(encoding="utf-8") == "old"
    put_into_place(make(work) / "made", target, work, overwrite=True)
    assert (target / MANIFEST_NAME).read_text(encoding="utf-8") == "new"


def test_a_rename_that_fails_gives_the_old_artifact_back(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows, where a scanner may hold a file of the new one open."""
    target = an_artifact(tmp_path / "out")
    replace = os.replace

    def refuse_the_new_one(source: Path, destination: Path) -> None:
        if destination == target and source == work / "made":
            raise PermissionError("in use")
        replace(source, destination)

    monkeypatch.setattr(os, "replace", refuse_the_new_one)
    with pytest.raises(
        ExportError, match=r"out: in use\. The finished export is kept in"
    ) as caught:
        put_into_place(work / "made", target, work, overwrite=True)
    assert isinstance(caught.value.__cause__, PermissionError)
    assert (target / MANIFEST_NAME).read_text(encoding="utf-8") == "old"
    assert (tmp_path / "out-finished" / "openvino_model.bin").is_file()


def finish(target: Path, *, overwrite: bool = False) -> None:
    """Export to ``target``, as far as folders are concerned."""
    check_target(target, overwrite=overwrite)
    check_replaceable(target)
    with open_workplace(target) as work:
        make(work)
        put_into_place(work / "made", target, work, overwrite=overwrite)


def content_of(folder: Path) -> dict[str, str]:
    """Return the files of a folder and what is in them, the lock's left out."""
    return {
        path.name: path.read_text(encoding="utf-8")
        for path in folder.iterdir()
        if path.name != ".phi3ov-lock"
    }


NEW = {MANIFEST_NAME: "new", "openvino_model.bin": "new weights"}


@pytest.mark.trap(
    "An export into an existing folder, such as the current one, an empty volume of a container or "
    "a symbolic link, fills that very folder.",
    about="Exporting",
)
@pytest.mark.parametrize("kind", ["empty", "current", "link"])
@pytest.mark.parametrize("before", ["nothing", "an artifact"])
def test_an_existing_folder_stays_the_one_it_is(
    kind: str, before: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell whose current folder it is, or a mount, sees the export."""
    folder = tmp_path / "out"
    folder.mkdir()
    if before == "an artifact":
        (folder / MANIFEST_NAME).write_text("old", encoding="utf-8")
        (folder / "old.xml").write_text("old", encoding="utf-8")
    target = folder
    if kind == "current":
        monkeypatch.chdir(folder)
    elif kind == "link":
        target = tmp_path / "link"
        target.symlink_to(folder)
    inode = folder.stat().st_ino
    finish(target, overwrite=before == "an artifact")
    assert content_of(folder) == NEW
    if kind != "empty" or before == "nothing":
        assert folder.stat().st_ino == inode
    finish(target, overwrite=True)
    assert content_of(folder) == NEW
    assert not [path for path in tmp_path.iterdir() if "finished" in path.name]


@pytest.mark.skipif(sys.platform != "linux" or os.name != "posix", reason="mounts a tmpfs")
@pytest.mark.parametrize("before", ["nothing", "an artifact"])
def test_a_mount_point_is_filled(before: str, tmp_path: Path) -> None:
    """It cannot be renamed, and the room that counts is its own."""
    folder = tmp_path / "volume"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(command, check=False, capture_output=True).returncode != 0:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        if before == "an artifact":
            (folder / MANIFEST_NAME).write_text("old", encoding="utf-8")
        with open_workplace(folder) as work:
            assert shutil.disk_usage(work).total == 2**20
        finish(folder, overwrite=before == "an artifact")
        assert content_of(folder) == NEW
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_moving_up_fails_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was there is there again, and the finished export is kept."""
    target = tmp_path / "out"
    target.mkdir()
    (target / MANIFEST_NAME).write_text("old", encoding="utf-8")
    (target / "old.xml").write_text("old", encoding="utf-8")
    monkeypatch.chdir(target)
    replace = os.replace

    def refuse_weights(source: Path, destination: Path) -> None:
        if destination == target / "openvino_model.bin":
            raise PermissionError("in use")
        replace(source, destination)

    monkeypatch.setattr(os, "replace", refuse_weights)
    with pytest.raises(ExportError, match=r"in use\. The finished export is kept in"):
        finish(target, overwrite=True)
    assert content_of(target / "phi3ov-finished") == NEW
    shutil.rmtree(target / "phi3ov-finished")
    assert content_of(target) == {MANIFEST_NAME: "old", "old.xml": "old"}


@pytest.mark.trap(
    "A target that could not take the export (a symbolic link to nothing, an artifact that a "
    "loaded model holds on Windows) is refused at the start, and finished work is never deleted.",
    about="Exporting",
)
def test_a_target_that_cannot_be_replaced_is_refused_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not after an hour."""
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ExportError, match=r"is a symbolic link to .*nowhere, which does not exist"):
        check_target(link, overwrite=False)
    target = an_artifact(tmp_path / "out")
    monkeypatch.setattr(workplace, "_LOADED_FILES_ARE_HELD", True)
    check_replaceable(target)
    assert content_of(target) == {MANIFEST_NAME: "old"}

    def refuse(_source: Path, _destination: Path) -> None:
        raise PermissionError("a program has mapped it")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(ExportError, match=r"cannot be replaced .*has mapped it\. Close the model"):
        check_replaceable(target)


def test_the_room_for_a_float32_source_is_not_counted_twice(tmp_path: Path) -> None:
    """It has as many values as one in 16 bits, so its export is no larger."""
    config = make_config()
    needed = []
    for size_bytes in (2, 4):
        folder = tmp_path / str(size_bytes)
        folder.mkdir()
        with (folder / "model.safetensors").open("wb") as file:
            parameters = Checkpoint(path=folder, config=config, source="x").parameters
            file.truncate(parameters * size_bytes)
        checkpoint = Checkpoint(path=folder, config=config, source="x")
        assert checkpoint.source_bits == 8 * size_bytes
        needed.append(
            [
                disk_needed(checkpoint, recipe)
                for recipe in (Int4Compression(), read_recipe("int8"), read_recipe("fp16"))
            ]
        )
        none = disk_needed(checkpoint, Int4Compression(backup="none"))
        ignored = disk_needed(checkpoint, Int4Compression(ignored_layers=["lm_head"]))
        assert min(none, ignored) > needed[-1][0]
    assert needed[0] == needed[1] == sorted(needed[0])


def test_a_mixture_of_experts_needs_room_for_a_second_copy(tmp_path: Path) -> None:
    """Its experts are stacked in a file first; the largest stack sets the memory."""
    config = Phi3Config.parse(SMALL_MIXTURE | {"vocab_size": 96})
    with (tmp_path / "model.safetensors").open("wb") as file:
        parameters = Checkpoint(path=tmp_path, config=config, source="x").parameters
        file.truncate(parameters * 2)
    checkpoint = Checkpoint(path=tmp_path, config=config, source="x")
    recipe = read_recipe("fp16")
    assert checkpoint.is_restacked
    assert disk_needed(checkpoint, recipe) == 3 * 2 * parameters + 64 * 2**20
    wider = replace(config, num_local_experts=2 * config.num_local_experts)
    least, most = (
        memory_needed(replace(checkpoint, config=each), recipe) for each in (config, wider)
    )
    assert most - least == 5.5 * 4 * 4 * 32 * 64  # four more experts of 32 rows in float32


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


def test_gptq_needs_room_for_its_integers_and_the_activations_of_its_text(tmp_path: Path) -> None:
    """More text takes more memory; NNCF's own takes that of the whole model in float32."""
    (tmp_path / "model.safetensors").touch()
    checkpoint = Checkpoint(path=tmp_path, config=make_config(**WIDTHS), source="x")
    plain, gptq = Int4Compression(), Int4Compression(gptq=True, num_samples=32)
    more = Int4Compression(gptq=True, num_samples=64)
    by_nncf = Int4Compression(gptq=True, layer_choice="nncf", rounding="nncf")
    assert disk_needed(checkpoint, gptq) - disk_needed(checkpoint, plain) == checkpoint.parameters
    plain_needs, gptq_needs, more_needs = (
        memory_needed(checkpoint, recipe) for recipe in (plain, gptq, more)
    )
    tokens = 32 * 256
    assert more_needs - gptq_needs == 4 * tokens * 6 * (512 + 256)
    assert plain_needs < gptq_needs
    assert memory_needed(checkpoint, by_nncf) > 4 * checkpoint.parameters


WIDTHS = {
    "hidden_size": 512,
    "intermediate_size": 256,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
}
