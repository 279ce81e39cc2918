"""Paths as people have them: spaces, letters of any script, links, folders that are read-only."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

import phi3ov
from phi3ov import DraftModel, LoraAdapter, Phi3Chat, RuntimeConfig
from phi3ov.answer.token_stream import TokenRequest
from phi3ov.engine.protocol import EngineName
from phi3ov.runtime.devices import list_devices
from phi3ov.runtime.tuning import TunedSettings, TuningKey, TuningRecord, write_record
from tests.conftest import state_of

from .conftest import EXACT, LoadModel, Zoo
from .test_lora import make_adapter
from .truth import prompt_text

STRANGE = "mödèl ünd 模型 👍"
ROW, LONGROPE = "phi-4", "phi-3.5-mini"
ENGINES = get_args(EngineName)
PROMPT = prompt_text(40)


def tokens_of(model: phi3ov.Phi3Model) -> tuple[int, ...]:
    """Return the first tokens of an answer."""
    return model.complete(PROMPT, max_new_tokens=12).token_ids


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder whose name has spaces, umlauts, an ideograph and an emoji."""
    folder = tmp_path / STRANGE
    folder.mkdir()
    return folder


def record_for(export: Path, file: Path) -> Path:
    """Write what ``phi3ov tune`` would have found for an export: one thread."""
    key = TuningKey.of(phi3ov.Artifact.open(export), list_devices()["CPU"])
    found = TunedSettings(threads=1, reason="measured")
    write_record(TuningRecord(key=key, date="2026-11-28", latency=found, throughput=found), file)
    return file


@pytest.mark.trap(
    "Spaces and letters of any script in every path (checkpoint, export, cache folder, adapter, "
    "draft, tuned settings, saved chat and KV cache) work with every engine.",
    about="Machines",
)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("row", [ROW, LONGROPE])
def test_every_path_may_have_any_letters(
    *,
    row: str,
    engine: EngineName,
    folder: Path,
    zoo: Zoo,
    load: LoadModel,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The answers are those of the same model in a plain folder, and nothing is printed."""
    expected = tokens_of(load(zoo.artifact(row), engine=engine))
    export = shutil.copytree(zoo.artifact(row), folder / f"{STRANGE} export")
    options: dict[str, Any] = {"engine": engine}
    if engine == "transformers":  # on a CPU the others gain nothing from it, and warn
        options["config"] = RuntimeConfig(
            inference_precision="f32", kv_cache_precision="f32", cache_dir=folder / STRANGE
        )
    else:
        options["tuning"] = record_for(export, folder / f"{STRANGE}.json")
        options["config"] = RuntimeConfig.exact()
    capfd.readouterr()
    model = load(export, **options)
    assert tokens_of(model) == expected
    if engine == "transformers":
        assert any((folder / STRANGE).iterdir())
    else:
        assert [item.value for item in model.settings if item.chosen_by == "tune"] == ["1"]
    if engine == "paged":
        chat = Phi3Chat(model)
        chat.generate("hello", max_new_tokens=4)
        chat.save(folder / "chat.json")
        chat.save_kv_cache(folder / f"{STRANGE}.kv")
        assert model.restore_kv_cache(folder / f"{STRANGE}.kv") > 0
        assert Phi3Chat.restore(model, folder / "chat.json").messages == chat.messages
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


@pytest.mark.parametrize("engine", ["pipeline", "worker"])
def test_adapter_and_draft_may_have_any_letters(
    engine: EngineName, folder: Path, zoo: Zoo, load: LoadModel
) -> None:
    """The adapter changes the answer as from a plain folder; the draft does not change it."""
    export = shutil.copytree(zoo.artifact(ROW), folder / "export")
    make_adapter(folder / STRANGE, zoo.checkpoint(ROW), seed=1)
    plain = shutil.copytree(folder / STRANGE, folder.parent / "plain")
    expected = tokens_of(load(zoo.artifact(ROW), engine=engine, adapter=LoraAdapter(path=plain)))
    adapted = load(export, engine=engine, adapter=LoraAdapter(path=folder / STRANGE))
    assert tokens_of(adapted) == expected
    alone = tokens_of(load(zoo.artifact(ROW), engine=engine))
    assert alone != expected
    drafted = load(export, engine=engine, speculation=DraftModel(path=export))
    assert tokens_of(drafted) == alone


def test_checkpoint_and_target_may_have_any_letters(folder: Path, zoo: Zoo) -> None:
    """The export works beside the target, in a folder of such a name as well."""
    checkpoint = shutil.copytree(zoo.checkpoint(ROW), folder / f"{STRANGE} checkpoint")
    target, log = folder / "export 模型", folder / f"{STRANGE}.log"
    report = phi3ov.export_model(checkpoint, target, compression="fp16", progress=False, log=log)
    report.artifact.verify()
    model, plain = "openvino_model.bin", zoo.artifact(ROW)
    assert (target / model).read_bytes() == (plain / model).read_bytes()
    assert log.exists()


@pytest.mark.trap(
    "Checkpoints and exports whose files are symbolic links, as in the hub's cache, or that cannot "
    "be written, are read as they are; nothing is written beside them.",
    about="Machines",
)
@pytest.mark.parametrize("engine", ENGINES)
def test_linked_and_read_only_sources(
    engine: EngineName, tmp_path: Path, zoo: Zoo, load: LoadModel
) -> None:
    """Links to files under other names, in a folder that is a link itself."""
    snapshot = link_files(zoo.artifact(LONGROPE), tmp_path)
    before = state_of(tmp_path)
    try:
        model = load(snapshot, engine=engine)
        assert tokens_of(model) == tokens_of(load(zoo.artifact(LONGROPE), engine=engine))
        model.clear_cache()
    finally:
        set_mode(tmp_path, 0o755)
    assert state_of(tmp_path) == before


def test_a_linked_and_read_only_checkpoint_is_exported(tmp_path: Path, zoo: Zoo) -> None:
    """The export is made of files, not of links."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    snapshot = link_files(zoo.checkpoint(ROW), source)
    before = state_of(source)
    try:
        phi3ov.export_model(snapshot, target, compression="fp16", progress=False)
    finally:
        set_mode(source, 0o755)
    assert state_of(source) == before
    assert not any(path.is_symlink() for path in target.iterdir())
    phi3ov.Artifact.open(target).verify()


def link_files(source: Path, folder: Path) -> Path:
    """Lay a folder out as the hub's cache does, read-only; return the link to its snapshot."""
    blobs, snapshot = folder / "blobs", folder / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(source.iterdir())):
        shutil.copyfile(path, blobs / f"{number:064x}")
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", f"{number:064x}"))
    link = folder / "latest"
    link.symlink_to(snapshot, target_is_directory=True)
    set_mode(folder, 0o555)
    return link


def set_mode(folder: Path, mode: int) -> None:
    """Change who may write to a folder and those below it."""
    for path in (folder, *folder.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            path.chmod(mode)


@pytest.mark.trap(
    "`engine='transformers'` prints no warnings: without stop tokens it says nothing of "
    "eos_token_id, and only the call's limit ends the answer.",
    about="Answers",
)
def test_transformers_without_stop_tokens(tmp_path: Path, zoo: Zoo, load: LoadModel) -> None:
    """Not even the stop token that the checkpoint names."""
    request = TokenRequest(prompt_ids=tuple(b"hello"), max_new_tokens=8, stop_ids=frozenset())

    def submit(model: phi3ov.Phi3Model) -> list[int]:
        return [token for chunk in model._engine.submit(request) for token in chunk]

    expected = submit(load(zoo.artifact(ROW)))
    copy = shutil.copytree(zoo.artifact(ROW), tmp_path / "copy")
    (copy / "phi3ov.json").unlink()
    for name in ("config.json", "generation_config.json"):
        values = json.loads((copy / name).read_text(encoding="utf-8"))
        values["eos_token_id"] = expected[2]
        (copy / name).write_text(json.dumps(values), encoding="utf-8")
    assert submit(load(copy, engine="transformers", config=EXACT)) == expected
    code = (  # a process of its own: transformers says it once, to the stderr of its first import
        "import sys, phi3ov\n"
        "phi3ov.load_model(sys.argv[1], device='CPU', engine='transformers').close()"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, str(zoo.artifact(ROW))],
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (said.stdout, said.stderr) == ("", "")
