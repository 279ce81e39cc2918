"""Every recipe on a tiny checkpoint: exported, read back, and run."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from phi3ov import Artifact, CompressionError, Int4Compression, export_model
from phi3ov.artifact.folder import MODEL_XML
from phi3ov.artifact.ir import WeightLayer, layer_name, read_weights
from phi3ov.cli import main
from phi3ov.exporter.calibration import evaluation_text
from phi3ov.quality.logits import SourceModel
from phi3ov.quality.report import QualityReport, compare
from tests.conftest import MadeOnce

from .checkpoints import FAMILY, build_checkpoint
from .conftest import Zoo, left_in

ROW = "phi-3-mini-4k"
TIED = "phi-4-mini"
TEXT = evaluation_text()[:4000]

RECIPES = {
    "default": Int4Compression(),
    "small": Int4Compression.small(),
    "npu": Int4Compression.npu(14_000_000_000),
    "accurate": replace(Int4Compression.accurate(), num_samples=16, sample_tokens=64),
    "ignored": Int4Compression(
        ratio=1.0, backup="int8_sym", ignored_layers=("*.0.mlp.down_proj", "lm_head")
    ),
    "all": Int4Compression(
        symmetric=False, awq=True, scale_estimation=True, gptq=True, backup="none",
        layer_choice="nncf", rounding="nncf",
        ignored_layers=("*.qkv_proj",), texts=("Some text of ours. " * 100,),
        num_samples=16, sample_tokens=64,
    ),
}  # fmt: skip

IGNORED = {
    "ignored": ("model.layers.0.mlp.down_proj", "lm_head"),
    "all": ("model.layers.0.self_attn.qkv_proj", "model.layers.1.self_attn.qkv_proj"),
}


class Exports:
    """One export per recipe, made when first asked for."""

    def __init__(self, made_once: MadeOnce, zoo: Zoo) -> None:
        self._made_once, self.zoo = made_once, zoo

    def folder(self, recipe: str) -> Path:
        """Return the export of ``ROW`` by the recipe of that name."""
        source = self.zoo.checkpoint(ROW)
        return self._made_once(
            f"recipe-{recipe}",
            lambda folder: export_model(
                source, folder, compression=RECIPES[recipe], progress=False
            ),
        )

    def layers(self, recipe: str) -> dict[str, WeightLayer]:
        """Return what the IR holds, by layer name."""
        weights = read_weights(self.folder(recipe) / MODEL_XML)
        return {layer_name(one.name): one for one in weights}


@pytest.fixture(scope="module")
def exports(zoo: Zoo, made_once: MadeOnce) -> Exports:
    """The exports of this module."""
    return Exports(made_once, zoo)


@pytest.fixture(scope="module")
def measured(exports: Exports) -> dict[str, QualityReport]:
    """A report per recipe."""
    source = exports.zoo.checkpoint(ROW)
    return {
        name: compare(
            source,
            exports.folder(name),
            text=TEXT,
            window_tokens=128,
            max_tokens=1024,
            prompts=(),
            progress=False,
        )
        for name in RECIPES
    }


@pytest.mark.parametrize("name", RECIPES)
def test_the_ir_holds_what_the_recipe_asks(name: str, exports: Exports) -> None:
    """Each layer: int4 as asked, in the backup precision, or untouched where it is ignored."""
    recipe, layers = RECIPES[name], exports.layers(name)
    assert len(layers) == 10
    backup = {"int8": "int8", "int8_sym": "int8", "none": "bf16"}[recipe.backup]
    for layer_called, layer in layers.items():
        if layer_called in IGNORED.get(name, ()):
            assert layer.precision == "bf16"
        elif layer.precision == "int4":
            assert layer.symmetric == recipe.symmetric
            assert layer.group_size == max(recipe.group_size, 0)
        else:
            assert layer.precision == backup
            assert layer.symmetric == (recipe.backup != "int8")
    if recipe.embeddings == "backup":
        for end in ("model.embed_tokens", "lm_head"):
            assert layers[end].precision != "int4"
    count = sum(layer.precision == "int4" for layer in layers.values())
    if recipe.ignored_layers or recipe.target_bits:
        assert count > 0
    elif recipe.ratio == 1.0:
        assert count == 8
    else:
        assert 0 < count < 8


@pytest.mark.parametrize("name", RECIPES)
def test_the_manifest_records_the_recipe(name: str, exports: Exports) -> None:
    """Every field, and of calibration text its count and SHA-256, never the text."""
    folder, recipe = exports.folder(name), RECIPES[name]
    recorded = Artifact.open(folder).manifest.recipe
    for field in ("group_size", "ratio", "symmetric", "awq", "scale_estimation", "gptq", "backup"):
        assert recorded[field] == getattr(recipe, field)
    assert tuple(recorded["ignored_layers"]) == recipe.ignored_layers
    if recipe.data_aware:
        assert recorded["calibration"]["samples"] == 16
        assert recorded["calibration"]["origin"] == (
            "given" if recipe.texts else "pydoc_data.topics"
        )
    assert "Some text of ours" not in (folder / "phi3ov.json").read_text(encoding="utf-8")


def test_an_ignored_layer_keeps_its_values(exports: Exports) -> None:
    """Its constant is byte for byte the checkpoint's tensor."""
    import openvino
    import torch
    from safetensors.torch import load_file

    name = "model.layers.0.mlp.down_proj"
    source = load_file(exports.zoo.checkpoint(ROW) / "model.safetensors")[f"{name}.weight"]
    model = openvino.Core().read_model(exports.folder("ignored") / MODEL_XML)
    (constant,) = [
        node
        for node in model.get_ops()
        if node.get_type_name() == "Constant"
        and node.get_element_type().get_type_name() == "bf16"
        and layer_name(node.get_friendly_name()) == name
    ]
    kept = torch.from_numpy(constant.get_data(dtype="float32"))
    assert torch.equal(kept, source.float())


def test_tied_embeddings_can_be_ignored(zoo: Zoo, tmp_path: Path) -> None:
    """One matrix that two operations use is left alone by both."""
    recipe = Int4Compression(ratio=1.0, ignored_layers=("model.embed_tokens",))
    report = export_model(zoo.checkpoint(TIED), tmp_path / "x", compression=recipe, progress=False)
    layers = {layer_name(one.name): one for one in read_weights(report.artifact.path / MODEL_XML)}
    assert layers.pop("model.embed_tokens").precision == "bf16"
    assert {one.precision for one in layers.values()} == {"int4"}


def test_every_recipe_keeps_the_model(measured: dict[str, QualityReport]) -> None:
    """Each is nearer to its source than chance: random weights, hence no tight bound."""
    for name, report in measured.items():
        assert 0 < report.mean_kl < 3, name
        assert report.top1_agreement > 0.2, name


def test_more_bits_lose_less(measured: dict[str, QualityReport], exports: Exports) -> None:
    """fp16 loses nothing that counts, and ratio 1.0 loses more than 0.6."""
    fp16 = compare(
        exports.zoo.checkpoint(ROW),
        exports.zoo.artifact(ROW),
        text=TEXT,
        window_tokens=128,
        max_tokens=1024,
        prompts=("Hello",),
        progress=False,
    )
    assert fp16.mean_kl < 1e-6
    assert fp16.top1_agreement > 0.995
    assert fp16.samples[0].source == fp16.samples[0].artifact
    assert measured["default"].mean_kl < measured["small"].mean_kl


def test_the_same_recipe_gives_the_same_weights(exports: Exports, tmp_path: Path) -> None:
    """Calibration draws nothing at random: a second export has the same bytes of weights."""
    again = tmp_path / "again"
    recipe = RECIPES["accurate"]
    export_model(exports.zoo.checkpoint(ROW), again, compression=recipe, progress=False)
    name = "openvino_model.bin"
    assert (again / name).read_bytes() == (exports.folder("accurate") / name).read_bytes()


def test_a_recipe_that_cannot_fit_is_refused_before_any_work(tmp_path: Path, zoo: Zoo) -> None:
    """A layer that is not there, a sample longer than the context, a text too short."""
    short = build_checkpoint(tmp_path / "short", FAMILY[ROW], max_position_embeddings=128)
    for source, recipe, named in (
        (zoo.checkpoint(ROW), Int4Compression(ignored_layers=("*.q_proj",)), "ignored_layers="),
        (short, Int4Compression.accurate(), "sample_tokens=256"),
        (zoo.checkpoint(ROW), Int4Compression.accurate(("Too short.",)), "sample_tokens=256"),
    ):
        phases: list[str] = []
        with pytest.raises(CompressionError, match=named):
            export_model(
                source,
                tmp_path / "made",
                compression=recipe,
                progress=lambda one, seen=phases: seen.append(one.phase),  # type: ignore[misc]
            )
        assert phases == ["check"]
    assert left_in(tmp_path) == ["short"]


def test_the_command_takes_presets_and_calibration_text(
    zoo: Zoo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A preset, changed by a flag, fitted to a file; contradictions are one line and no work."""
    text = tmp_path / "text.txt"
    text.write_text("What the model will read. " * 40, encoding="utf-8")
    arguments = ["export", str(zoo.checkpoint(ROW)), str(tmp_path / "made"), "--quiet"]
    calibrate = ["--calibrate", str(text)]
    assert main([*arguments, "--preset", "accurate", "--ratio", "1.0", *calibrate]) == 0
    recipe = Artifact.open(tmp_path / "made").manifest.recipe
    assert (recipe["gptq"], recipe["ratio"]) == (True, 1.0)
    assert recipe["calibration"]["origin"] == "given"
    arguments[2] = str(tmp_path / "other")
    assert main([*arguments, "--preset", "optimum-intel", "--target-bits", "5", *calibrate]) == 1
    assert "ratio=1.0 contradicts target_bits=5.0" in capsys.readouterr().err
    assert main([*arguments, "--preset", "accurate", "--calibrate", str(tmp_path)]) == 1
    assert "cannot be read" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*arguments, "--preset", "small", "--precision", "int8"])
    assert "preset go with --precision int4 only" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def _dtypes(source: SourceModel) -> set[torch.dtype]:
    """Return the types of the matrices; norms are small and always float32."""
    return {one.dtype for one in source._model.parameters() if one.dim() > 1}


def test_a_large_source_is_computed_in_float32_as_a_small_one_is(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Widened layer by layer from bf16 or all at once: the same logits and the same answer."""
    ids = list(range(40, 90))
    for row in (ROW, TIED):
        whole = SourceModel(zoo.checkpoint(row))
        assert _dtypes(whole) == {torch.float32}
        monkeypatch.setattr("phi3ov.quality.logits._SMALL_BYTES", 0)
        monkeypatch.setattr("phi3ov.exporter.widened._WIDENED_VALUES", 128 * 50)
        layered = SourceModel(zoo.checkpoint(row))
        assert _dtypes(layered) == {torch.bfloat16}
        monkeypatch.undo()
        assert abs(whole.logits(ids) - layered.logits(ids)).max() < 1e-4
        said = [list(islice(one.continuation(ids), 8)) for one in (whole, layered)]
        assert said[0] == said[1]
