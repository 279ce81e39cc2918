"""An export that cannot be done, or is stopped, says why and leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from phi3ov import (
    Artifact,
    ArtifactError,
    DraftModel,
    ExportError,
    ExportProgress,
    ExportReport,
    OptionError,
    Phi3OVError,
    UnsupportedModelError,
    export_model,
    load_model,
)
from phi3ov.engine.protocol import ENGINES, EngineName
from phi3ov.exporter.recipes import Compression
from phi3ov.quality.logits import SourceModel

from .checkpoints import FAMILY, LONGEST, VOCABULARY, build_checkpoint
from .conftest import LoadModel, Zoo, left_in
from .truth import Pin, greedy, prompt_text

ROW = "phi-3-mini-4k"


# Targets.


def test_an_export_that_is_there_is_replaced_only_on_request(zoo: Zoo, tmp_path: Path) -> None:
    """Without overwrite it stays as it was; with it, it is the new one."""
    target = tmp_path / "made"
    shutil.copytree(zoo.artifact(ROW), target)
    before = (target / "phi3ov.json").read_bytes()
    with pytest.raises(ExportError, match="overwrite=True"):
        export_model(zoo.checkpoint(ROW), target, compression="int8", progress=False)
    assert (target / "phi3ov.json").read_bytes() == before
    export_model(zoo.checkpoint(ROW), target, compression="int8", overwrite=True, progress=False)
    artifact = Artifact.open(target)
    assert artifact.manifest.recipe == {"mode": "int8"}
    artifact.verify()
    assert left_in(tmp_path) == ["made"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_is_no_artifact_is_never_replaced(
    overwrite: bool, zoo: Zoo, tmp_path: Path
) -> None:
    """Not even with overwrite: it may be anything."""
    precious = tmp_path / "home" / "thesis.txt"
    precious.parent.mkdir()
    precious.write_text("three years", encoding="utf-8")
    with pytest.raises(ExportError, match="not a folder that phi3ov exported"):
        export_model(zoo.checkpoint(ROW), precious.parent, overwrite=overwrite, progress=False)
    assert precious.read_text(encoding="utf-8") == "three years"
    assert [path.name for path in tmp_path.rglob("*")] == ["home", "thesis.txt"]


def test_a_failed_replacement_leaves_the_old_export(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was there works on when the new export fails."""
    target = tmp_path / "made"
    shutil.copytree(zoo.artifact(ROW), target)

    def fail(*_args: Any) -> None:
        raise RuntimeError("a tool gave up")

    monkeypatch.setattr("phi3ov.exporter.export.convert", fail)
    with pytest.raises(ExportError, match="'convert': RuntimeError: a tool gave up") as caught:
        export_model(zoo.checkpoint(ROW), target, overwrite=True, progress=False)
    assert isinstance(caught.value.__cause__, RuntimeError)
    Artifact.open(target).verify()
    assert left_in(tmp_path) == ["made"]


def test_two_exports_to_one_target_do_not_mix(zoo: Zoo, tmp_path: Path) -> None:
    """The second one raises at once, the first one goes on."""
    errors: list[Exception] = []

    def export_again() -> None:
        try:
            export_model(zoo.checkpoint(ROW), tmp_path / "made", progress=False)
        except Exception as error:  # noqa: BLE001 - the test looks at it
            errors.append(error)

    def in_the_middle(progress: ExportProgress) -> None:
        if progress.phase == "convert" and progress.done == 0:
            second = threading.Thread(target=export_again)
            second.start()
            second.join()

    export_model(zoo.checkpoint(ROW), tmp_path / "made", compression="fp16", progress=in_the_middle)
    (error,) = errors
    assert isinstance(error, ExportError)
    assert "Another export" in str(error)
    assert Artifact.open(tmp_path / "made").manifest.recipe == {"mode": "fp16"}
    assert left_in(tmp_path) == ["made"]


def test_exports_in_two_threads_take_turns(zoo: Zoo, tmp_path: Path) -> None:
    """Each is what it was asked for, although both replace functions of the same tools.

    And the process has the warning filters and the log levels that it had.
    """
    filters, level = list(warnings.filters), logging.getLogger("nncf").level
    recipes: dict[str, Compression] = {"int8": "int8", "fp16": "fp16"}

    def export(name: str) -> ExportReport:
        return export_model(
            zoo.checkpoint(ROW), tmp_path / name, compression=recipes[name], progress=False
        )

    with ThreadPoolExecutor(2) as threads:
        reports = dict(zip(recipes, threads.map(export, recipes), strict=True))
    for name, report in reports.items():
        assert {one.precision for one in report.weights} == {name}
        report.artifact.verify()
    assert warnings.filters == filters
    assert logging.getLogger("nncf").level == level


def test_other_threads_go_on_while_one_exports(zoo: Zoo, tmp_path: Path, load: LoadModel) -> None:
    """A model is loaded by transformers, and a warning is heard, in the middle of an export."""
    seen: list[str] = []

    def work() -> None:
        model = load(zoo.artifact(ROW), engine="transformers")
        ids = model.tokenizer.encode_raw("abc")
        if SourceModel(zoo.checkpoint(ROW)).logits(ids).shape[0] == len(ids):
            seen.append("answered")
        try:
            warnings.warn("heard", UserWarning, stacklevel=1)
        except UserWarning:
            seen.append("heard")

    def in_the_middle(progress: ExportProgress) -> None:
        if progress.phase == "compress" and not seen:
            other = threading.Thread(target=work)
            other.start()
            other.join(timeout=120)
            assert seen == ["answered", "heard"], "the other thread waits for the export"

    zoo.artifact(ROW)
    export_model(zoo.checkpoint(ROW), tmp_path / "made", compression="int8", progress=in_the_middle)
    assert seen == ["answered", "heard"]


# Checkpoints that cannot be exported.


def _edit_config(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8")) | changes
        path.write_text(json.dumps(config), encoding="utf-8")

    return edit


def _write(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: void((folder / name).write_text(text, encoding="utf-8"))


def _remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def void(_value: object) -> None:
    """Turn an expression into a statement."""


def _shorten_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def _lose_a_tensor(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _pickle_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


BAD: dict[str, tuple[Callable[[Path], None], type[Phi3OVError], str]] = {
    "another architecture": (
        _edit_config(model_type="llama"),
        UnsupportedModelError,
        "model_type='llama'",
    ),
    "phi-3-small": (
        _edit_config(model_type="phi3small"),
        UnsupportedModelError,
        "another architecture",
    ),
    "unknown rope": (
        _edit_config(rope_scaling={"type": "yarn", "factor": 4.0}),
        UnsupportedModelError,
        "yarn",
    ),
    "config is not JSON": (_write("config.json", "{"), ExportError, "not JSON"),
    "no config": (_remove("config.json"), ExportError, "config.json"),
    "no tokenizer": (_remove("tokenizer.json"), ExportError, "tokenizer.json"),
    "broken tokenizer": (_write("tokenizer.json", "{}"), Phi3OVError, "tokenizer"),
    "no chat template": (_remove("chat_template.jinja"), ExportError, "chat template"),
    "unknown chat template": (
        _write("chat_template.jinja", "{{ messages[0]['content'] }}"),
        UnsupportedModelError,
        "chat_template",
    ),
    "no weights": (_remove("model.safetensors"), ExportError, "safetensors"),
    "pickled weights only": (_pickle_weights, ExportError, "pickled"),
    "weights cut short": (_shorten_weights, ExportError, "safetensors|Safetensor"),
    "a tensor is missing": (_lose_a_tensor, ExportError, "layers.1.mlp.down_proj"),
    "weights of another shape": (
        _edit_config(intermediate_size=512),
        ExportError,
        "intermediate_size|shape|size|mismatch",
    ),
    "more layers in the config than in the weights": (
        _edit_config(num_hidden_layers=3),
        ExportError,
        "layers.2",
    ),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_checkpoint_leaves_nothing_behind(fault: str, zoo: Zoo, tmp_path: Path) -> None:
    """Each fault is told by name, and neither a target nor anything beside it is left."""
    spoil, error, words = BAD[fault]
    source = tmp_path / "source"
    shutil.copytree(zoo.checkpoint(ROW), source)
    spoil(source)
    place = tmp_path / "place"
    place.mkdir()
    with pytest.raises(error, match=words):
        export_model(source, place / "made", progress=False)
    assert left_in(place) == []


def test_the_rope_type_of_the_first_releases_is_longrope(
    tmp_path: Path, zoo: Zoo, load: LoadModel
) -> None:
    """Early 128k revisions call it "su"; the answer is that of the same weights today.

    transformers cannot read such a config, neither for the engine nor for a quality report.
    """
    row = "phi-3-mini-128k"
    rope = dict(FAMILY[row].config["rope_scaling"]) | {"type": "su"}
    source = build_checkpoint(tmp_path / "su", FAMILY[row], config_only={"rope_scaling": rope})
    with pytest.raises(KeyError, match="original_max_position_embeddings"):
        AutoConfig.from_pretrained(source)
    export_model(source, tmp_path / "made", compression="fp16", progress=False)
    pins: tuple[tuple[int | None, Pin], ...] = ((None, "short"), (LONGEST, "long"))
    for context_tokens, pin in pins:
        model = load(tmp_path / "made", context_tokens=context_tokens)
        ids = model.tokenizer.encode_raw(prompt_text(24))
        truth = greedy(zoo.checkpoint(row), ids, 32, pin=pin)
        assert model.complete(prompt_text(24), max_new_tokens=32).token_ids == truth
        model.close()
    model = load(tmp_path / "made", engine="transformers")
    ids = model.tokenizer.encode_raw(prompt_text(24))
    truth = greedy(zoo.checkpoint(row), ids, 8, pin="short")
    assert model.complete(prompt_text(24), max_new_tokens=8).token_ids == truth
    assert int(SourceModel(source).logits(ids)[-1].argmax()) == truth[0]


# Disks.


def test_a_full_disk_is_noticed_before_the_work(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says how much is needed and how much is there."""
    real = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _path: real._replace(free=10_000_000))
    phases: list[str] = []
    with pytest.raises(ExportError, match=r"needs about 0\.1 GB of disk.*0\.0 GB are free"):
        export_model(
            zoo.checkpoint(ROW),
            tmp_path / "made",
            progress=lambda progress: phases.append(progress.phase),
        )
    assert phases == ["check"]
    assert left_in(tmp_path) == []


def test_too_little_memory_is_noticed_before_the_work(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says how much is needed, how much is there, and what to do."""
    monkeypatch.setattr("phi3ov.exporter.workplace.free_memory", lambda: 500_000_000)
    words = r"needs about 0\.8 GB of memory, but 0\.5 GB are free\. Close other programs"
    with pytest.raises(ExportError, match=words):
        export_model(zoo.checkpoint(ROW), tmp_path / "made", progress=False)
    assert left_in(tmp_path) == []


@contextmanager
def _small_disk(folder: Path, size_kilobytes: int) -> Iterator[Path]:
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root on Linux")
    folder.mkdir()
    options = f"size={size_kilobytes}k"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)],
        check=False,
        capture_output=True,
        text=True,
    )
    if mounted.returncode != 0:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("size_kilobytes", [200, 600])
def test_a_disk_that_fills_up_leaves_nothing_behind(
    size_kilobytes: int, zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real disk that is full while the model is compressed, and while it is written."""
    plenty = shutil.disk_usage(tmp_path)._replace(free=10**12)
    with _small_disk(tmp_path / "disk", size_kilobytes) as disk:
        monkeypatch.setattr("shutil.disk_usage", lambda _path: plenty)
        with pytest.raises(ExportError, match="failed in the phase"):
            export_model(zoo.checkpoint(ROW), disk / "made", progress=False)
        assert left_in(disk) == []


# Interruptions.


_PROCESSES: Any = multiprocessing.get_context(
    "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
)
if _PROCESSES.get_start_method() == "forkserver":  # so that torch is imported once, not 20 times
    _PROCESSES.set_forkserver_preload(
        ["phi3ov.exporter.compress", "nncf", "optimum.exporters.openvino"]
    )


def _export_step_by_step(source: Path, target: Path, connection: Connection) -> None:
    """Export, and wait for a message after each report of the progress."""

    def report(progress: ExportProgress) -> None:
        connection.send(progress.phase)
        connection.recv()

    connection.send("ready")
    connection.recv()
    export_model(source, target, compression="int8", progress=report)


def _export_and_kill(source: Path, target: Path, reports: int, seconds: float) -> str:
    """Kill an export so many seconds after so many of its reports; return the last one."""
    ours, theirs = _PROCESSES.Pipe()
    child = _PROCESSES.Process(target=_export_step_by_step, args=(source, target, theirs))
    child.start()
    theirs.close()
    last = ""
    with ours, contextlib.suppress(EOFError, ConnectionError):
        for _ in range(reports + 1):
            last = ours.recv()
            ours.send("go on")
    time.sleep(seconds)
    child.kill()
    child.join()
    return last


@pytest.mark.slow
def test_an_export_killed_at_any_moment_leaves_all_or_nothing(
    zoo: Zoo, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """SIGKILL at 20 random moments, from before the work until after the last report.

    There is either no target or one that verifies, and at most a hidden folder beside it, which
    the next export to the target removes.
    """
    moments = random.Random(20)
    source, target = zoo.checkpoint(ROW), tmp_path / "made"
    reached = []
    for _ in range(20):
        # 7 phases begin, and the passes over the weights report at least once more
        reached.append(
            _export_and_kill(source, target, moments.randrange(9), moments.random() ** 3)
        )
        if target.exists():
            Artifact.open(target).verify()
            shutil.rmtree(target)
        else:
            with pytest.raises(ArtifactError, match="not a folder"):
                load_model(target)
        assert all(path.name.startswith(".made.") for path in tmp_path.iterdir())
    assert len(set(reached)) >= 5, reached
    (tmp_path / ".made.phi3ov-export").mkdir(exist_ok=True)
    export_model(source, target, compression="int8", progress=False)
    Artifact.open(target).verify()
    assert left_in(tmp_path) == ["made"]
    assert "left over from an export that was killed" in caplog.text


def test_an_export_goes_on_without_a_tokenizer_pair(
    zoo: Zoo, tmp_path: Path, load: LoadModel
) -> None:
    """Every engine runs such a folder; a draft model says why it cannot."""
    source = tmp_path / "source"
    shutil.copytree(zoo.checkpoint(ROW), source)
    definition = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    definition["normalizer"] = {"type": "Nmt"}
    (source / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    log = tmp_path / "tools.log"
    report = export_model(source, tmp_path / "made", compression="fp16", progress=False, log=log)
    [note] = report.notes
    installed = f"openvino-tokenizers {version('openvino-tokenizers')} with openvino "
    assert installed + version("openvino") in note
    assert "Nmt" in log.read_text(encoding="utf-8")
    assert Artifact.open(tmp_path / "made").manifest.notes == report.notes
    expected = load(zoo.artifact(ROW)).complete("abc", max_new_tokens=6).token_ids
    engines: tuple[EngineName, ...] = ("pipeline", "worker", "paged", "transformers")
    assert set(engines) == set(ENGINES)
    for engine in engines:
        model = load(tmp_path / "made", engine=engine)
        assert model.complete("abc", max_new_tokens=6).token_ids == expected
        model.close()
    with pytest.raises(OptionError, match=r"needs openvino_tokenizer\.xml in the model's folder"):
        load(tmp_path / "made", speculation=DraftModel(path=zoo.artifact(ROW)))


def test_a_token_without_a_row_is_refused_at_export_and_load(
    zoo: Zoo, tmp_path: Path, load: LoadModel
) -> None:
    """A token was added and the embedding was not resized."""
    source = tmp_path / "source"
    shutil.copytree(zoo.checkpoint(ROW), source)
    definition = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    last = definition["added_tokens"][-1]
    for token_id in range(last["id"] + 1, VOCABULARY):
        definition["added_tokens"].append(last | {"id": token_id, "content": f"<{token_id}>"})
    definition["added_tokens"].append(last | {"id": VOCABULARY, "content": "<tool>"})
    (source / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    words = f"token '<tool>' has the id {VOCABULARY}, but the model knows vocab_size={VOCABULARY}"
    with pytest.raises(UnsupportedModelError, match=words):
        export_model(source, tmp_path / "made", progress=False)
    shutil.copytree(zoo.artifact(ROW), tmp_path / "artifact")
    (tmp_path / "artifact" / "phi3ov.json").unlink()
    shutil.copyfile(source / "tokenizer.json", tmp_path / "artifact" / "tokenizer.json")
    with pytest.raises(UnsupportedModelError, match=words):
        load(tmp_path / "artifact")


@pytest.mark.parametrize("phase", ["check", "measure", "convert", "verify"])
def test_an_interrupted_export_cleans_up(phase: str, zoo: Zoo, tmp_path: Path) -> None:
    """Ctrl-C comes through as it is, and leaves nothing."""

    def interrupt(progress: ExportProgress) -> None:
        if progress.phase == phase:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_model(zoo.checkpoint(ROW), tmp_path / "made", progress=interrupt)
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("phase", ["check", "convert", "compress", "verify"])
def test_what_a_callback_raises_comes_out_as_it_is(phase: str, zoo: Zoo, tmp_path: Path) -> None:
    """A caller who ends an export by an error of his own catches that error, cause and all."""
    raised = ZeroDivisionError("enough")

    def stop(progress: ExportProgress) -> None:
        if progress.phase == phase:
            raise raised from LookupError("why")

    with pytest.raises(ZeroDivisionError) as caught:
        export_model(zoo.checkpoint(ROW), tmp_path / "made", progress=stop)
    assert caught.value is raised
    assert isinstance(raised.__cause__, LookupError)
    assert left_in(tmp_path) == []


def test_code_that_a_checkpoint_brings_is_never_run(zoo: Zoo, tmp_path: Path) -> None:
    """No supported model needs any; what its config points at is not even read."""
    source = tmp_path / "source"
    shutil.copytree(zoo.checkpoint(ROW), source)
    names = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    _edit_config(auto_map=names)(source)
    code = f"open({str(tmp_path / 'ran')!r}, 'w').close()\nraise SystemExit\n"
    (source / "own.py").write_text(code, encoding="utf-8")
    export_model(source, tmp_path / "made", compression="fp16", progress=False)
    assert left_in(tmp_path) == ["made", "source"]
