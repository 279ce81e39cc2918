"""An export is what was asked for, or it raises and leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai
import pytest
import torch
from safetensors.torch import load_file, save_file

import phi3ov
from phi3ov import (
    Artifact,
    ArtifactError,
    CompressionError,
    DeviceError,
    ExportError,
    ExportProgress,
    Int4Compression,
    OptionError,
    Phi3OVError,
    UnsupportedModelError,
    export_model,
    load_model,
)
from phi3ov.artifact import MODEL_BIN, MODEL_XML
from phi3ov.compression import Compression

from .checkpoints import FAMILY, LONGEST, build_checkpoint
from .conftest import EXACT, LoadModel, Zoo
from .truth import Pin, greedy, load_truth, prompt_text

ROW = "phi-3-mini-4k"
PHASES = ["check", "convert", "compress", "collect files", "verify"]
RECIPES: dict[str, Compression] = {
    "int4": Int4Compression(ratio=1.0, group_size=64),
    "int4 mixed": Int4Compression(),
    "int4 asymmetric": Int4Compression(symmetric=False, group_size=32),
    "int4 per row": Int4Compression(group_size=-1),
    "int8": "int8",
    "fp16": "fp16",
}


@pytest.fixture(scope="module")
def exports(zoo: Zoo, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """One export per recipe, made when first asked for. Do not write into them."""
    root = tmp_path_factory.mktemp("exports")

    def export(recipe: str) -> Path:
        folder = root / recipe
        if not folder.exists():
            export_model(zoo.checkpoint(ROW), folder, compression=RECIPES[recipe], progress=False)
        return folder

    return export


# What an export holds.


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_model_holds_what_was_asked_for(recipe: str, exports: Callable[[str], Path]) -> None:
    """OpenVINO's own reader counts the same precisions and group sizes as the manifest."""
    folder = exports(recipe)
    found: Counter[tuple[str, int]] = Counter()
    matrices: dict[str, tuple[int, ...]] = {}
    for node in openvino.Core().read_model(folder / MODEL_XML).get_ops():
        name = node.get_friendly_name()
        if node.get_type_name() != "Constant" or not name.endswith("weight"):
            continue
        shape = tuple(node.get_output_shape(0))
        if sum(size > 1 for size in shape) < 2:
            continue
        matrices[name] = shape
        stored = node.get_element_type().get_type_name()
        found[stored, shape[2] if len(shape) == 3 else 0] += 1
    assert len(matrices) == 2 * 4 + 2, "two blocks of four matrices, embeddings and output layer"
    weights = Artifact.open(folder).manifest.weights
    names = {"int4": ("i4", "u4"), "int8": ("i8", "u8"), "fp16": ("f16",)}
    claimed: Counter[tuple[str, int]] = Counter()
    for one in weights:
        stored = names[one.precision][0 if one.symmetric or one.precision == "fp16" else 1]
        claimed[stored, one.group_size] += one.layers
    assert found == claimed
    assert sum(one.parameters for one in weights) == sum(
        int(np.prod(shape)) for shape in matrices.values()
    )
    wanted = RECIPES[recipe]
    if isinstance(wanted, Int4Compression):
        stored = "i4" if wanted.symmetric else "u4"
        assert found[stored, max(wanted.group_size, 0)] >= (8 if wanted.ratio == 1 else 4)
    else:
        assert set(found) == {("u8" if wanted == "int8" else "f16", 0)}


def test_a_ratio_below_one_leaves_some_layers_in_eight_bits(exports: Callable[[str], Path]) -> None:
    """The seed recipe: about 60 % of the blocks' parameters are int4, none is in more than 8."""
    weights = Artifact.open(exports("int4 mixed")).manifest.weights
    int4 = sum(one.parameters for one in weights if one.precision == "int4")
    blocks = 2 * (128 * 384 + 128 * 128 + 128 * 512 + 256 * 128)
    assert 0.4 < int4 / blocks < 0.8
    assert {one.precision for one in weights} == {"int4", "int8"}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_weights_of_any_precision_become_fp16_and_nothing_else_does(
    dtype: str, tmp_path: Path, load: LoadModel
) -> None:
    """Rotary frequencies and norms stay exact, or answers far into a context would go wrong."""
    source = build_checkpoint(tmp_path / "source", FAMILY["phi-4"], dtype=dtype)
    export_model(source, tmp_path / "made", compression="fp16", progress=False)
    model = load(tmp_path / "made")
    prompt = prompt_text(300)
    truth = greedy(source, model.tokenizer.encode_raw(prompt), 16)
    assert model.complete(prompt, max_new_tokens=16).token_ids == truth
    halves = [
        node.get_friendly_name()
        for node in openvino.Core().read_model(tmp_path / "made" / MODEL_XML).get_ops()
        if node.get_type_name() == "Constant" and node.get_element_type() == openvino.Type.f16
    ]
    assert len(halves) == 10
    assert all(name.endswith("weight") for name in halves)


def test_weights_beyond_the_range_of_fp16_are_refused(tmp_path: Path) -> None:
    """bf16 holds a million and fp16 does not: it must not become infinite in silence."""
    source = build_checkpoint(tmp_path / "source", FAMILY["phi-4"])
    weights = load_file(source / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][3, 5] = 1e6
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CompressionError, match=r"layers\.1\.mlp\.down_proj.*fp16 cannot"):
        export_model(source, tmp_path / "made", compression="fp16", progress=False)


@pytest.mark.parametrize("recipe", ["int4 mixed", "int8"])
def test_a_compressed_model_still_resembles_its_source(
    recipe: str, exports: Callable[[str], Path], zoo: Zoo
) -> None:
    """The weights are the checkpoint's and not noise: the logits correlate with the source's."""
    ids = np.array([list(prompt_text(40).encode())], dtype=np.int64)
    compiled = openvino.Core().compile_model(
        exports(recipe) / MODEL_XML, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    inputs = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "position_ids": np.arange(ids.shape[1])[None],
        "beam_idx": np.zeros(1, dtype=np.int32),
    }
    logits = compiled.create_infer_request().infer(inputs)["logits"]
    with torch.inference_mode():
        truth = load_truth(zoo.checkpoint(ROW))(torch.tensor(ids), use_cache=False).logits.numpy()
    correlation = np.corrcoef(logits[0, :8].ravel(), truth[0, :8].ravel())[0, 1]
    assert correlation > (0.99 if recipe == "int8" else 0.6)


def test_the_manifest_says_what_was_done(exports: Callable[[str], Path], zoo: Zoo) -> None:
    """Source, recipe, format, tool versions, and every file with its size."""
    folder = exports("int4 mixed")
    manifest = Artifact.open(folder).manifest
    source = zoo.checkpoint(ROW)
    assert manifest.source == str(source)
    assert (manifest.revision, manifest.commit) == (None, None)
    assert manifest.source_bytes == (source / "model.safetensors").stat().st_size
    assert manifest.recipe == {
        "mode": "int4",
        "group_size": 128,
        "ratio": 0.6,
        "symmetric": True,
        "on_indivisible": "error",
        "backup": "int8",
        "ignored_layers": [],
        "awq": False,
        "scale_estimation": False,
        "gptq": False,
    }
    assert (manifest.chat_format, manifest.system_messages) == ("phi3", "kept")
    assert {"openvino", "nncf", "optimum-intel", "phi3ov"} <= manifest.versions.keys()
    assert set(manifest.files) == {path.name for path in folder.iterdir()} - {"phi3ov.json"}
    for name, record in manifest.files.items():
        assert record.size_bytes == (folder / name).stat().st_size
    Artifact.open(folder).verify()


def test_report_and_callback_tell_what_happened(
    zoo: Zoo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bytes before and after, weights, and every phase in order; a callback may print."""
    seen: list[ExportProgress] = []

    def note(progress: ExportProgress) -> None:
        seen.append(progress)
        print(progress.phase)

    report = export_model(zoo.checkpoint(ROW), tmp_path / "made", compression="int8", progress=note)
    assert report.artifact.path == tmp_path / "made"
    assert report.weights == report.artifact.manifest.weights
    assert report.source_bytes == (zoo.checkpoint(ROW) / "model.safetensors").stat().st_size
    on_disk = sum(path.stat().st_size for path in (tmp_path / "made").iterdir())
    manifest_bytes = (tmp_path / "made" / "phi3ov.json").stat().st_size
    assert report.artifact_bytes == on_disk - manifest_bytes
    assert list(report.phase_seconds) == PHASES
    assert 8 <= report.artifact.bits_per_weight < 9
    assert [one.phase for one in seen] == capsys.readouterr().out.splitlines() == PHASES
    assert [(one.step, one.steps) for one in seen] == [(step, 5) for step in range(1, 6)]
    times = [one.elapsed_seconds for one in seen]
    assert times == sorted(times)


@pytest.mark.parametrize("row", FAMILY)
def test_the_checkpoints_own_files_travel_along_unchanged(row: str, zoo: Zoo) -> None:
    """Byte for byte; the config is the checkpoint's, not the exporter's rewritten one."""
    names = (
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    )
    for name in names:
        exported = zoo.artifact(row) / name
        assert exported.read_bytes() == (zoo.checkpoint(row) / name).read_bytes(), name


def test_the_folder_works_with_genai_alone(zoo: Zoo) -> None:
    """openvino-genai's own pipeline loads the folder, tokenizer pair included."""
    artifact = zoo.artifact("phi-4")
    prompt = prompt_text(30)
    pipeline = openvino_genai.LLMPipeline(
        str(artifact), "CPU", INFERENCE_PRECISION_HINT="f32", KV_CACHE_PRECISION="f32"
    )
    ids = pipeline.get_tokenizer().encode(prompt, add_special_tokens=False).input_ids.data
    assert ids.tolist() == [[ord(letter) - ord("a") + 64 for letter in prompt]]
    config = openvino_genai.GenerationConfig(max_new_tokens=16)
    result = pipeline.generate(openvino.Tensor(ids), config)
    assert tuple(result.tokens[0]) == greedy(zoo.checkpoint("phi-4"), ids[0].tolist(), 16)


def test_the_folder_works_with_optimum_alone(zoo: Zoo) -> None:
    """optimum-intel loads the folder as it is."""
    from optimum.intel import OVModelForCausalLM

    model = OVModelForCausalLM.from_pretrained(
        zoo.artifact("phi-4"),
        ov_config={"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"},
    )
    ids = [ord(letter) - ord("a") + 64 for letter in prompt_text(30)]
    produced = model.generate(torch.tensor([ids]), max_new_tokens=16, do_sample=False)
    assert tuple(produced[0, 30:].tolist()) == greedy(zoo.checkpoint("phi-4"), ids, 16)


@pytest.fixture(scope="module")
def fresh_runs(
    zoo: Zoo, tmp_path_factory: pytest.TempPathFactory
) -> dict[bool, tuple[Path, subprocess.CompletedProcess[str]]]:
    """The same export in two processes of its own, without and with progress."""
    root = tmp_path_factory.mktemp("fresh")
    source = str(zoo.checkpoint("phi-3-mini-128k"))
    runs = {}
    for progress in (False, True):
        target = root / str(progress)
        code = f"phi3ov.export_model({source!r}, {str(target)!r}, progress={progress})"
        command = [sys.executable, "-c", f"import phi3ov\n{code}"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        runs[progress] = (target, done)
    return runs


def test_the_same_export_twice_is_the_same(
    fresh_runs: dict[bool, tuple[Path, subprocess.CompletedProcess[str]]],
) -> None:
    """In two processes it gives the same bytes, manifest included."""
    one, two = (folder for folder, _ in fresh_runs.values())
    different = [
        path.name for path in one.iterdir() if path.read_bytes() != (two / path.name).read_bytes()
    ]
    assert different == []


# Group sizes that do not fit.


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose layers are 96 and 160 wide, which 128 does not divide."""
    folder = tmp_path_factory.mktemp("narrow") / "source"
    return build_checkpoint(folder, FAMILY["phi-4"], hidden_size=96, intermediate_size=160)


def test_a_group_size_that_does_not_divide_names_the_layers(narrow: Path, tmp_path: Path) -> None:
    """All of them in ``layers``, the first ones and the way out in the message."""
    with pytest.raises(CompressionError, match=r"qkv_proj \(96\).*on_indivisible") as caught:
        export_model(narrow, tmp_path / "made", progress=False)
    assert len(caught.value.layers) == 8
    assert "model.layers.1.mlp.down_proj" in caught.value.layers
    assert list(tmp_path.iterdir()) == []


def test_a_group_size_that_does_not_divide_can_be_adjusted(narrow: Path, tmp_path: Path) -> None:
    """Each layer gets the largest power of two that divides its width."""
    recipe = Int4Compression(ratio=1.0, on_indivisible="adjust")
    report = export_model(narrow, tmp_path / "made", compression=recipe, progress=False)
    int4 = [one for one in report.weights if one.precision == "int4"]
    assert [(one.group_size, one.layers) for one in int4] == [(32, 8)]


def test_a_compression_that_did_nothing_is_noticed(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a tool says nothing and compresses nothing, the export raises."""

    def copy_uncompressed(full: Path, made: Path, *_recipe: Any) -> None:
        for name in (MODEL_XML, MODEL_BIN):
            shutil.copyfile(full / name, made / name)

    monkeypatch.setattr("phi3ov.exporter.compress_ir", copy_uncompressed)
    with pytest.raises(CompressionError, match="10 of 10 layers are not"):
        export_model(zoo.checkpoint(ROW), tmp_path / "made", progress=False)
    assert list(tmp_path.iterdir()) == []


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
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_is_no_artifact_is_never_replaced(
    overwrite: bool, zoo: Zoo, tmp_path: Path
) -> None:
    """Not even with overwrite: it may be anything."""
    precious = tmp_path / "home" / "thesis.txt"
    precious.parent.mkdir()
    precious.write_text("three years", encoding="utf-8")
    with pytest.raises(ExportError, match="no folder that phi3ov exported"):
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

    monkeypatch.setattr("phi3ov.exporter.compress_ir", fail)
    with pytest.raises(ExportError, match="'compress': RuntimeError: a tool gave up") as caught:
        export_model(zoo.checkpoint(ROW), target, overwrite=True, progress=False)
    assert isinstance(caught.value.__cause__, RuntimeError)
    Artifact.open(target).verify()
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_two_exports_to_one_target_do_not_mix(zoo: Zoo, tmp_path: Path) -> None:
    """The second one raises at once, the first one goes on."""
    errors: list[Exception] = []

    def export_again() -> None:
        try:
            export_model(zoo.checkpoint(ROW), tmp_path / "made", progress=False)
        except Exception as error:  # noqa: BLE001 - the test looks at it
            errors.append(error)

    def in_the_middle(progress: ExportProgress) -> None:
        if progress.phase == "convert":
            second = threading.Thread(target=export_again)
            second.start()
            second.join()

    export_model(zoo.checkpoint(ROW), tmp_path / "made", compression="fp16", progress=in_the_middle)
    (error,) = errors
    assert isinstance(error, ExportError)
    assert "Another export" in str(error)
    assert Artifact.open(tmp_path / "made").manifest.recipe == {"mode": "fp16"}
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


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
    assert list(place.iterdir()) == []


def test_the_rope_type_of_the_first_releases_is_longrope(
    tmp_path: Path, zoo: Zoo, load: LoadModel
) -> None:
    """Early 128k revisions call it "su"; the answer is that of the same weights today."""
    row = "phi-3-mini-128k"
    rope = dict(FAMILY[row].config["rope_scaling"]) | {"type": "su"}
    source = build_checkpoint(tmp_path / "su", FAMILY[row], config_only={"rope_scaling": rope})
    export_model(source, tmp_path / "made", compression="fp16", progress=False)
    pins: tuple[tuple[int | None, Pin], ...] = ((None, "short"), (LONGEST, "long"))
    for context_tokens, pin in pins:
        model = load(tmp_path / "made", context_tokens=context_tokens)
        ids = model.tokenizer.encode_raw(prompt_text(24))
        truth = greedy(zoo.checkpoint(row), ids, 32, pin=pin)
        assert model.complete(prompt_text(24), max_new_tokens=32).token_ids == truth
        model.close()


# Disks.


def test_a_full_disk_is_noticed_before_the_work(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says how much is needed and how much is there."""
    real = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _path: real._replace(free=10_000_000))
    phases: list[str] = []
    with pytest.raises(ExportError, match=r"needs about 0\.1 GB.*has 0\.0 GB free"):
        export_model(
            zoo.checkpoint(ROW),
            tmp_path / "made",
            progress=lambda progress: phases.append(progress.phase),
        )
    assert phases == ["check"]
    assert list(tmp_path.iterdir()) == []


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


@pytest.mark.parametrize("size_kilobytes", [400, 1100])
def test_a_disk_that_fills_up_leaves_nothing_behind(
    size_kilobytes: int, zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real disk that is full while the model is converted, and while it is compressed."""
    plenty = shutil.disk_usage(tmp_path)._replace(free=10**12)
    with _small_disk(tmp_path / "disk", size_kilobytes) as disk:
        monkeypatch.setattr("shutil.disk_usage", lambda _path: plenty)
        with pytest.raises(ExportError, match="failed in the phase"):
            export_model(zoo.checkpoint(ROW), disk / "made", progress=False)
        assert list(disk.iterdir()) == []


# Interruptions.


_EXPORT_SLOWLY = """
import sys, time
import phi3ov

def report(progress):
    print(progress.phase, flush=True)
    if progress.phase == sys.argv[3]:
        time.sleep(100)

phi3ov.export_model(sys.argv[1], sys.argv[2], compression="int8", progress=report)
"""


@pytest.mark.parametrize("phase", ["convert", "verify"])
def test_a_killed_export_leaves_no_target_and_the_next_one_works(
    phase: str, zoo: Zoo, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """SIGKILL leaves at most a hidden folder, which the next export to the target removes."""
    target = tmp_path / "made"
    child = subprocess.Popen(
        [sys.executable, "-c", _EXPORT_SLOWLY, str(zoo.checkpoint(ROW)), str(target), phase],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert child.stdout is not None
    with child.stdout:
        reached = any(line.strip() == phase for line in child.stdout)
        child.kill()
    assert child.wait() != 0
    assert reached
    assert not target.exists()
    with pytest.raises(ArtifactError, match="not a folder"):
        load_model(target)
    assert all(path.name.startswith(".made.") for path in tmp_path.iterdir())
    export_model(zoo.checkpoint(ROW), target, compression="int8", progress=False)
    Artifact.open(target).verify()
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    assert "an export that was killed left behind" in caplog.text


@pytest.mark.parametrize("phase", ["check", "convert", "verify"])
def test_an_interrupted_export_cleans_up(phase: str, zoo: Zoo, tmp_path: Path) -> None:
    """Ctrl-C comes through as it is, and leaves nothing."""

    def interrupt(progress: ExportProgress) -> None:
        if progress.phase == phase:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_model(zoo.checkpoint(ROW), tmp_path / "made", progress=interrupt)
    assert list(tmp_path.iterdir()) == []


# Progress.


def test_progress_goes_where_it_was_asked_to(
    fresh_runs: dict[bool, tuple[Path, subprocess.CompletedProcess[str]]],
) -> None:
    """False prints nothing at all, True one line per phase on stderr and nothing on stdout."""
    _, silent = fresh_runs[False]
    assert (silent.stdout, silent.stderr) == ("", "")
    _, told = fresh_runs[True]
    assert told.stdout == ""
    lines = told.stderr.splitlines()
    assert len(lines) == len(PHASES), told.stderr
    for step, (line, phase) in enumerate(zip(lines, PHASES, strict=True), 1):
        assert line.startswith(f"phi3ov export [{step}/5] {phase} (")


# Loading what is not as it was exported.


@pytest.fixture
def copy(zoo: Zoo, tmp_path: Path) -> Path:
    """A copy of an artifact, to be damaged."""
    folder = tmp_path / "copy"
    shutil.copytree(zoo.artifact(ROW), folder)
    return folder


@pytest.mark.parametrize("name", [MODEL_BIN, MODEL_XML, "tokenizer.json", "config.json"])
def test_a_missing_file_is_named(name: str, copy: Path) -> None:
    """Without any hashing."""
    (copy / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name}: missing") as caught:
        load_model(copy, device="CPU", verify=False)
    assert len(caught.value.problems) == 1


def test_every_problem_is_listed(copy: Path) -> None:
    """One message for all that is wrong."""
    (copy / "tokenizer.json").unlink()
    os.truncate(copy / MODEL_BIN, 1000)
    with pytest.raises(ArtifactError) as caught:
        load_model(copy, device="CPU")
    assert len(caught.value.problems) == 2


def test_a_file_that_was_cut_short_is_named(copy: Path) -> None:
    """Its size is enough to tell, so this holds without verify too."""
    os.truncate(copy / MODEL_BIN, (copy / MODEL_BIN).stat().st_size - 1)
    with pytest.raises(ArtifactError, match=rf"{MODEL_BIN}: \d+ bytes instead of \d+"):
        load_model(copy, device="CPU", verify=False)


def test_one_changed_byte_is_noticed_unless_told_not_to_look(copy: Path) -> None:
    """OpenVINO itself loads a damaged model without a word."""
    with (copy / MODEL_BIN).open("r+b") as file:
        file.seek(100_000)
        byte = file.read(1)
        file.seek(100_000)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(ArtifactError, match=f"{MODEL_BIN}: its content has changed"):
        load_model(copy, device="CPU")
    load_model(copy, device="CPU", verify=False).close()


def test_a_damaged_graph_is_explained_by_the_damage(copy: Path) -> None:
    """Where the compilation fails too, the message is still the one about the file."""
    path = copy / MODEL_XML
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(ArtifactError, match=f"{MODEL_XML}: its content has changed"):
        load_model(copy, device="CPU")


def test_a_checkpoint_is_no_artifact(zoo: Zoo) -> None:
    """The message says what to do with it."""
    with pytest.raises(ArtifactError, match="It holds a checkpoint: export it first"):
        load_model(zoo.checkpoint(ROW))


@pytest.mark.parametrize("device", ["TPU", "CPU.7", "AUTO:GPU,CPU", ()])
def test_an_unknown_device_is_refused(device: str | tuple[str, ...], zoo: Zoo) -> None:
    """Naming what was asked and what is there."""
    with pytest.raises(DeviceError, match="device="):
        load_model(zoo.artifact(ROW), device=device)


def test_a_gpu_that_is_not_there_is_refused_and_a_preference_falls_back(
    zoo: Zoo, load: LoadModel
) -> None:
    """Alone it is an error that lists the CPU; before the CPU it is the reason."""
    if any(name.startswith("GPU") for name in phi3ov.list_devices()):
        pytest.skip("this machine has a GPU")
    with pytest.raises(DeviceError, match=r"GPU\.0 is not there.*CPU"):
        load_model(zoo.artifact(ROW), device="GPU.0")
    model = load(zoo.artifact(ROW), device=("GPU.0", "CPU"))
    assert model.device.selected == "CPU"
    assert "GPU.0 is not there" in model.device.reason


def test_an_unknown_engine_is_refused(zoo: Zoo) -> None:
    """The message lists those there are."""
    with pytest.raises(OptionError, match="engine='vllm' is not one of 'pipeline'"):
        load_model(zoo.artifact(ROW), engine="vllm")  # type: ignore[arg-type]


@pytest.mark.parametrize("engine", ["pipeline", "transformers"])
def test_an_openvino_property_that_does_not_exist_is_refused(engine: Any, zoo: Zoo) -> None:
    """Nothing that the caller sets is ignored."""
    config = phi3ov.RuntimeConfig(properties={"NO_SUCH_PROPERTY": "1"})
    with pytest.raises(Phi3OVError, match="NO_SUCH_PROPERTY"):
        load_model(zoo.artifact(ROW), device="CPU", config=config, engine=engine)


def test_a_sampled_answer_is_repeatable_with_its_seed(zoo: Zoo, load: LoadModel) -> None:
    """The seed that a reply records gives the same answer again."""
    model = load(zoo.artifact(ROW), config=EXACT)
    first = model.complete(prompt_text(30), max_new_tokens=24, temperature=1.5)
    assert first.seed is not None
    again = model.complete(prompt_text(30), max_new_tokens=24, temperature=1.5, seed=first.seed)
    assert again.token_ids == first.token_ids
