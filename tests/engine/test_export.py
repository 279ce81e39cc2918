"""An export is what was asked for, or it raises and leaves nothing behind."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai
import pytest
import torch
from safetensors.torch import load_file, save_file

from phi3ov import Artifact, CompressionError, ExportProgress, Int4Compression, export_model
from phi3ov.artifact.folder import MODEL_BIN, MODEL_XML
from phi3ov.exporter.mapped_weights import MappedConstants
from phi3ov.exporter.progress import Phases
from phi3ov.exporter.recipes import Compression
from tests.conftest import MadeOnce

from .checkpoints import FAMILY, build_checkpoint
from .conftest import LoadModel, Zoo, left_in
from .truth import greedy, load_truth, prompt_text

ROW = "phi-3-mini-4k"
PHASES = [
    "check", "measure", "convert", "analyse", "compress", "write", "collect files", "verify"
]  # fmt: skip
RECIPES: dict[str, Compression] = {
    "int4": Int4Compression(ratio=1.0, group_size=64),
    "int4 mixed": Int4Compression(),
    "int4 asymmetric": Int4Compression(symmetric=False, group_size=32),
    "int4 per row": Int4Compression(group_size=-1),
    "int8": "int8",
    "fp16": "fp16",
}


@pytest.fixture(scope="module")
def exports(zoo: Zoo, made_once: MadeOnce) -> Callable[[str], Path]:
    """One export per recipe, made when first asked for."""

    def export(recipe: str) -> Path:
        source = zoo.checkpoint(ROW)
        return made_once(
            f"export-{recipe}",
            lambda folder: export_model(
                source, folder, compression=RECIPES[recipe], progress=False
            ),
        )

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
    assert manifest.source == source.name, "no path of this machine"
    for path in folder.iterdir():
        assert str(source.parent).encode() not in path.read_bytes(), path.name
    assert (manifest.revision, manifest.commit) == (None, None)
    assert manifest.source_bytes == (source / "model.safetensors").stat().st_size
    assert manifest.recipe == {
        "mode": "int4",
        "group_size": 128,
        "ratio": 0.6,
        "symmetric": True,
        "on_indivisible": "error",
        "backup": "int8",
        "target_bytes": None,
        "target_bits": None,
        "embeddings": "backup",
        "layer_choice": "effect",
        "rounding": "weighted",
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
        if progress.done == 0:
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
    begun = [one for one in seen if one.done == 0]
    assert [one.phase for one in begun] == capsys.readouterr().out.splitlines() == PHASES
    assert [(one.step, one.steps) for one in begun] == [(step, 8) for step in range(1, 9)]
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


@pytest.mark.slow
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
    assert left_in(tmp_path) == []


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
    monkeypatch.setattr(Int4Compression, "apply", lambda *_: None)
    with pytest.raises(CompressionError, match="10 of 10 layers are not"):
        export_model(zoo.checkpoint(ROW), tmp_path / "made", progress=False)
    assert left_in(tmp_path) == []


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
        assert line.startswith(f"phi3ov export [{step}/8] {phase} (")


@pytest.mark.parametrize("recipe", [Int4Compression(), "int8", "fp16"])
def test_a_long_phase_tells_how_far_it_is(recipe: Compression, zoo: Zoo, tmp_path: Path) -> None:
    """Every pass over the weights rises from 0 to 1, and estimates the time that is left."""
    seen: list[ExportProgress] = []
    export_model(zoo.checkpoint(ROW), tmp_path / "made", compression=recipe, progress=seen.append)
    passes = {(one.phase, one.detail) for one in seen if one.done > 0}
    phases = [phase for phase, _ in sorted(passes)]
    assert phases == (
        ["compress", "measure"] if isinstance(recipe, Int4Compression) else ["compress"]
    )
    for phase, detail in passes:
        assert detail
        shares = [one.done for one in seen if (one.phase, one.detail) == (phase, detail)]
        assert shares == sorted(shares)
        assert shares[-1] == 1.0
    assert all((one.remaining_seconds is None) == (one.done == 0) for one in seen)


def test_a_terminal_shows_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """One per phase, with its share, and a full one when the next phase begins."""
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr("phi3ov.exporter.progress._REPORT_EVERY_SECONDS", 0)
    with contextlib.closing(Phases(True)) as phases:
        phases.begin("convert")
        phases.begin("compress")
        for _ in phases.follow(range(4), "Applying Weight Compression"):
            pass
    shown = terminal.getvalue()
    assert "[3/8] convert" in shown
    assert "[5/8] compress" in shown
    assert " 25 %" in shown
    assert "100 %" in shown


def test_what_the_tools_say_goes_to_a_file_on_request(
    zoo: Zoo, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """NNCF's table and the tracer's warnings are there, and nothing of it on the terminal."""
    log = tmp_path / "export.log"
    export_model(zoo.checkpoint(ROW), tmp_path / "made", log=log, progress=False)
    assert capfd.readouterr() == ("", "")
    text = log.read_text(encoding="utf-8")
    assert "Statistics of the bitwidth distribution" in text
    assert "TracerWarning" in text


# What an export takes.


@pytest.mark.parametrize("recipe", [Int4Compression(), "int8", "fp16"])
def test_weights_are_never_all_in_memory_nor_on_disk_in_full(
    recipe: Compression, zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each new weight goes to the mapped file, and no file of an export holds the source's.

    So the anonymous memory of an export does not grow with the number of layers.
    """
    moved: list[int] = []
    store = MappedConstants._store

    def count(self: MappedConstants, values: Any, shape: Any, element_type: Any) -> Any:
        moved.append(values.nbytes)
        return store(self, values, shape, element_type)

    monkeypatch.setattr(MappedConstants, "_store", count)
    # The shapes of reshapes are smaller.
    monkeypatch.setattr("phi3ov.exporter.mapped_weights._WORTH_MOVING", 64)
    largest: dict[str, int] = {}

    def look(progress: ExportProgress) -> None:
        for path in tmp_path.rglob("*.bin"):
            with contextlib.suppress(FileNotFoundError):
                largest[path.name] = max(largest.get(path.name, 0), path.stat().st_size)

    report = export_model(zoo.checkpoint(ROW), tmp_path / "made", compression=recipe, progress=look)
    weights = sum(one.size_bytes for one in report.weights)
    assert sum(moved) == weights
    assert largest["openvino_model.bin"] == (tmp_path / "made" / MODEL_BIN).stat().st_size
    assert largest["compressed.bin"] < weights + 4096 * len(moved)
