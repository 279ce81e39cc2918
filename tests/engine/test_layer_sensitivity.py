"""Which layers become int4 and how they are rounded, against slow and obvious computations."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import openvino
import pytest
import torch
from safetensors.torch import load_file, save_file

from phi3ov import Artifact, CompressionError, Int4Compression, export_model
from phi3ov.artifact.folder import MODEL_XML
from phi3ov.artifact.ir import is_weight, layer_name, read_weights
from phi3ov.exporter.compress import GraphWeights
from phi3ov.exporter.gptq import fit_layers, round_by_gptq
from phi3ov.exporter.preparation import Prepared
from phi3ov.exporter.rounding import fit_groups
from phi3ov.exporter.sensitivity import measure_sensitivity

from .checkpoints import FAMILY, build_checkpoint
from .conftest import Zoo
from .truth import load_truth

SAMPLES = [[(7 * start + 3 * step) % 200 + 5 for step in range(24)] for start in range(8)]
TEXT = ("Some text of ours, which the layers are measured on. " * 60,)


def calm(folder: Path, row: str) -> Path:
    """Return a checkpoint whose weights are small, so that its loss is close to quadratic."""
    source = build_checkpoint(folder, FAMILY[row])
    weights = load_file(source / "model.safetensors")
    weights = {
        name: (tensor * 0.25 if tensor.dim() > 1 and "router" not in name else tensor).contiguous()
        for name, tensor in weights.items()
    }
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    return source


def coarse(rows: torch.Tensor) -> torch.Tensor:
    """Round to 41 levels per row: an error that is small enough for a second-order estimate."""
    step = rows.abs().amax(-1, keepdim=True) / 20
    return (rows / step.clamp(min=1e-9)).round() * step


def coarsely(rows: torch.Tensor, _: object) -> torch.Tensor:
    """Round for `measure_sensitivity`."""
    return coarse(rows)


def divergence_of(source: Path, layer: str) -> float:
    """Return KL(source || source with one rounded layer), in nats per token."""
    model = load_truth(source)
    ids = torch.tensor(SAMPLES)
    weight = model.get_parameter(f"{layer}.weight")
    before = weight.detach().clone()
    with torch.inference_mode():
        p = model(ids, use_cache=False).logits.log_softmax(-1)
        weight.copy_(coarse(before))
        q = model(ids, use_cache=False).logits.log_softmax(-1)
        weight.copy_(before)
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("row", ["phi-3-mini-4k", "phi-4-mini"])
def test_the_estimate_follows_the_divergence_of_each_layer(row: str, tmp_path: Path) -> None:
    """Rounding one layer at a time and measuring gives the same order, and the same size."""
    source = calm(tmp_path / "source", row)
    measured = measure_sensitivity(source, SAMPLES, coarsely, lambda items, _: iter(items))
    layers = [name for name in measured if ".layers." in name]
    assert len(layers) == 8
    truth = np.array([divergence_of(source, name) for name in layers])
    estimate = np.array([measured[name].effect for name in layers])
    assert 0.5 < estimate.sum() / truth.sum() < 2
    assert np.corrcoef(np.log(truth), np.log(estimate))[0, 1] > 0.7


def test_moments_are_the_mean_squares_of_the_inputs(zoo: Zoo) -> None:
    """Against hooks on transformers in float32."""
    source = zoo.checkpoint("phi-4")
    model = load_truth(source)
    seen: dict[str, torch.Tensor] = {}
    hooks = [
        module.register_forward_hook(
            lambda _, inputs, __, name=name: seen.update({name: inputs[0].detach()})
        )
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    with torch.inference_mode():
        model(torch.tensor(SAMPLES), use_cache=False)
    for hook in hooks:
        hook.remove()
    measured = measure_sensitivity(source, SAMPLES, coarsely, lambda items, _: iter(items))
    assert len(seen) == 9
    for name, inputs in seen.items():
        truth = inputs.flatten(0, 1).square().mean(0).numpy()
        np.testing.assert_allclose(measured[name].moments, truth, rtol=1e-3, atol=1e-6)


def naive_gptq(
    weight: torch.Tensor, statistics: torch.Tensor, scale: float, damping: float = 0.05
) -> torch.Tensor:
    """Round one column, spread its error by the inverse of what is left, and go on."""
    damped = statistics + torch.eye(len(statistics)) * damping * statistics.diagonal().mean()
    left = weight.clone().double()
    remaining = damped.double()
    result = torch.empty_like(weight)
    for column in range(weight.shape[1]):
        inverse = torch.linalg.inv(remaining)
        levels = (left[:, column] / scale).round().clamp(-8, 7)
        result[:, column] = levels.to(result.dtype)
        error = (left[:, column] - levels * scale) / inverse[0, 0]
        left[:, column:] -= torch.outer(error, inverse[0])
        remaining = remaining[1:, 1:]
    return result


def correlated_inputs(columns: int, tokens: int = 512) -> torch.Tensor:
    """Return inputs whose columns are correlated, as those of a model are."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5
    return torch.randn(tokens, columns, generator=generator) @ (mixing + torch.eye(columns))


def test_gptq_rounds_as_the_slow_reference_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """One group and one scale: the same integers as by inverting anew for each column."""
    monkeypatch.setattr(
        "phi3ov.exporter.gptq.fit_groups",
        lambda weight, *_, **__: (np.full((len(weight), 1, 1), 0.125, np.float32), None),
    )
    weight = torch.randn(10, 32, generator=torch.Generator().manual_seed(1)) * 0.4
    inputs = correlated_inputs(32)
    statistics = inputs.T @ inputs / len(inputs)
    integers, _, _ = round_by_gptq(weight, statistics, 32, symmetric=True)
    truth = naive_gptq(weight, statistics, 0.125)
    assert (integers.float() == truth).float().mean() > 0.99  # float32 against float64


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [32, 128])
def test_gptq_loses_less_in_the_outputs_than_the_best_scales_do(
    group_size: int, symmetric: bool
) -> None:
    """The error of the outputs is what it is for."""
    weight = torch.randn(48, 128, generator=torch.Generator().manual_seed(2))
    inputs = correlated_inputs(128)
    statistics = inputs.T @ inputs / len(inputs)

    def output_error(integers: torch.Tensor, scales: np.ndarray, zeros: np.ndarray | None) -> float:
        shift = 0 if zeros is None else torch.from_numpy(zeros)
        grouped = integers.float().reshape(48, -1, group_size)
        rounded = ((grouped - shift) * torch.from_numpy(scales)).reshape(weight.shape)
        return float((inputs @ (rounded - weight).T).square().sum())

    made = round_by_gptq(weight, statistics, group_size, symmetric=symmetric)
    scales, zeros = fit_groups(
        weight, group_size, symmetric=symmetric, moments=statistics.diagonal()
    )
    grouped = weight.reshape(48, -1, group_size) / torch.from_numpy(scales)
    low, high = (-8, 7) if symmetric else (0, 15)
    shift = 0 if zeros is None else torch.from_numpy(zeros)
    nearest = (grouped.round() + shift).clamp(low, high).reshape(weight.shape)
    assert output_error(*made) < 0.8 * output_error(nearest, scales, zeros)


@pytest.mark.parametrize("row", ["phi-3-mini-4k", "phi-4-mini", "phi-tiny-moe"])
def test_gptq_reads_every_layer_that_is_asked_for(row: str, tmp_path: Path, zoo: Zoo) -> None:
    """Stacked experts and tied embeddings included; nothing else is written."""
    source = zoo.checkpoint(row)
    recipe = Int4Compression(
        group_size=32, symmetric=False, ratio=1.0, gptq=True, embeddings="int4", texts=TEXT,
        num_samples=4, sample_tokens=32,
    )  # fmt: skip
    report = export_model(source, tmp_path / "made", compression=recipe, progress=False)
    layers = {layer.name: layer for layer in report.artifact.manifest.layers}
    for name, layer in layers.items():
        assert layer.precision == "int4" or name.endswith("router.weight"), name


def constants(model: openvino.Model) -> dict[str, bytes]:
    """Return the content of every weight matrix, by its layer's name."""
    return {
        layer_name(node.get_friendly_name()): node.data.tobytes()
        for node in model.get_ops()
        if node.get_type_name() == "Constant"
        and is_weight(node.get_friendly_name(), node.get_output_shape(0))
    }


def test_nncf_by_name_gives_the_bytes_that_nncf_gives(tmp_path: Path, zoo: Zoo) -> None:
    """``layer_choice="nncf"`` and ``rounding="nncf"`` are NNCF on optimum's graph, nothing else."""
    import nncf

    source = zoo.checkpoint("phi-3-mini-4k")
    export_model(source, tmp_path / "plain", compression="fp16", progress=False)
    recipe = Int4Compression(layer_choice="nncf", rounding="nncf")
    export_model(source, tmp_path / "ours", compression=recipe, progress=False)
    core = openvino.Core()
    theirs = nncf.compress_weights(
        core.read_model(tmp_path / "plain" / MODEL_XML),
        mode=nncf.CompressWeightsMode.INT4_SYM,
        ratio=0.6,
        group_size=128,
    )
    ours = constants(core.read_model(tmp_path / "ours" / MODEL_XML))
    truth = constants(theirs)
    assert len(ours) == 10
    assert ours == truth


@pytest.mark.parametrize("bits", [5.0, 6.5])
def test_a_target_is_reached_and_not_exceeded(bits: float, tmp_path: Path, zoo: Zoo) -> None:
    """The model that is read back is at most as large, and not much smaller."""
    recipe = Int4Compression(
        group_size=64, symmetric=False, target_bits=bits, embeddings="int4", texts=TEXT
    )
    report = export_model(
        zoo.checkpoint("phi-4"), tmp_path / "made", compression=recipe, progress=False
    )
    assert bits - 0.5 < report.artifact.bits_per_weight <= bits
    found = {layer.precision for layer in read_weights(tmp_path / "made" / MODEL_XML)}
    assert found == {"int4", "int8"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"target_bytes": 1000}, "target_bytes=1000, cannot be reached: .* bytes"),
        ({"target_bits": 4.01, "group_size": 32}, "target_bits=4.01, which are"),
        ({"target_bits": 12.0}, "leaves nothing for int4"),
    ],
)
def test_a_target_out_of_reach_is_refused_before_any_work(
    changes: dict[str, float], said: str, tmp_path: Path, zoo: Zoo
) -> None:
    """With the sizes that can be had."""
    with pytest.raises(CompressionError, match=said):
        export_model(
            zoo.checkpoint("phi-4"),
            tmp_path / "made",
            compression=Int4Compression(**changes),  # type: ignore[arg-type]
            progress=False,
        )


def test_a_tool_that_compresses_other_layers_is_noticed(
    tmp_path: Path, zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a newer NNCF might, which asks for the layers in another way."""
    apply = Int4Compression.apply

    def apply_to_others(recipe: Int4Compression, weights: GraphWeights, prepared: Prepared) -> None:
        apply(recipe, weights, replace(prepared, int4_layers=None))

    monkeypatch.setattr(Int4Compression, "apply", apply_to_others)
    with pytest.raises(CompressionError, match="where another precision was chosen") as caught:
        export_model(zoo.checkpoint("phi-3-mini-4k"), tmp_path / "made", progress=False)
    assert caught.value.layers
    assert not (tmp_path / "made").exists()


def test_the_manifest_holds_error_and_effect_of_each_layer(tmp_path: Path, zoo: Zoo) -> None:
    """And a folder of an earlier version, without them, is still read."""
    export_model(zoo.checkpoint("phi-4"), tmp_path / "made", progress=False)
    manifest = Artifact.open(tmp_path / "made").manifest
    for layer in manifest.layers:
        assert layer.error is not None
        assert layer.int4_effect is not None
        limits = {"int4": (0.03, 0.25), "int8": (0.001, 0.03)}[layer.precision]
        assert limits[0] < layer.error < limits[1]
    plain = replace(
        manifest,
        layers=tuple(replace(layer, error=None, int4_effect=None) for layer in manifest.layers),
    )
    assert "int4_effect" not in plain.to_json()
    assert type(manifest).from_json(plain.to_json()) == plain


def test_a_layer_that_loses_too_much_warns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One large value in every row leaves nothing of the others."""
    source = build_checkpoint(tmp_path / "source", FAMILY["phi-4"])
    weights = load_file(source / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    weights[name][:, 0] = 20 * weights[name].float().std()
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    recipe = Int4Compression(ratio=1.0, group_size=-1, layer_choice="nncf", rounding="nncf")
    with caplog.at_level(logging.WARNING, "phi3ov"):
        export_model(source, tmp_path / "made", compression=recipe, progress=False)
    error = {layer.name: layer.error for layer in Artifact.open(tmp_path / "made").manifest.layers}
    assert (error[name] or 0) > 0.25
    assert name in caplog.text


def test_choice_and_rounding_do_not_depend_on_the_number_of_threads(
    tmp_path: Path, zoo: Zoo
) -> None:
    """Two exports have the same bytes of weights."""
    files = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        folder = tmp_path / str(threads)
        export_model(zoo.checkpoint("phi-3-mini-4k"), folder, progress=False)
        files.append((folder / "openvino_model.bin").read_bytes())
    assert files[0] == files[1]


def test_samples_of_any_length_are_read_by_gptq(tmp_path: Path, zoo: Zoo) -> None:
    """One token per sample is the shortest."""
    made = fit_layers(
        zoo.checkpoint("phi-4"),
        [[5], [6], [7]],
        {"model.layers.0.mlp.down_proj": 64},
        symmetric=True,
        folder=tmp_path,
        follow=lambda items, _: iter(items),
    )
    assert list(made) == ["model.layers.0.mlp.down_proj"]
