"""Mixtures of experts (`phimoe`): sparse kernels in every recipe, and answers as transformers'.

`test_parity.py`, `test_longrope.py` and `test_sliding_window.py` have them among their rows.
"""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import phi3ov
from phi3ov import (
    Artifact,
    ExportError,
    Int4Compression,
    LoraAdapter,
    OptionError,
    export_model,
    load_model,
)
from phi3ov.artifact.folder import MODEL_XML
from phi3ov.cli import main
from phi3ov.engine.protocol import EngineName
from phi3ov.exporter.recipes import Compression
from phi3ov.quality import compare

from ..conftest import MadeOnce
from .checkpoints import BORDER, EXPERTS, FAMILY, LONGEST
from .conftest import EXACT, LoadModel, Zoo
from .test_field_checkpoints import changed_copy
from .test_lora import make_adapter, merged_greedy
from .test_published_folders import publish
from .truth import greedy, prompt_text

ROW = "phi-mini-moe"
LAYERS = 2
ROWS = tuple(name for name in FAMILY if name.endswith("-moe"))
RECIPES: dict[str, Compression] = {
    "fp16": "fp16",
    "int8": "int8",
    "int4": Int4Compression(group_size=64),
    "small": Int4Compression(group_size=64, ratio=1.0),
    "npu": Int4Compression(group_size=-1, ratio=1.0),
    "accurate": Int4Compression.accurate(),
}
KERNELS = {
    "fp16": {"f32"},
    "int8": {"u8"},
    "int4": {"i4", "u8"},
    "small": {"i4"},
    "npu": {"i4"},
    "accurate": {"u4", "u8"},
}
"""Types of weights that the kernels of the experts read, by recipe."""


@pytest.fixture(scope="module", params=RECIPES)
def recipe(request: pytest.FixtureRequest) -> str:
    """The name of a recipe."""
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def artifact(recipe: str, zoo: Zoo, made_once: MadeOnce) -> Path:
    """An export by that recipe."""
    if recipe == "fp16":
        return zoo.artifact(ROW)
    return made_once(
        f"{ROW}-{recipe}",
        lambda folder: export_model(
            zoo.checkpoint(ROW), folder, compression=RECIPES[recipe], progress=False
        ),
    )


def expert_kernels(compiled: Any) -> Counter[str]:
    """Count the kernels that read the chosen experts alone, by the type of their weights."""
    found: Counter[str] = Counter()
    for node in compiled.get_runtime_model().get_ops():
        kind = node.get_rt_info()["layerType"]
        if (kind if isinstance(kind, str) else str(kind.value)) == "GatherMatmul":
            found[node.get_input_element_type(1).get_type_name()] += 1
    return found


def test_experts_compile_to_sparse_kernels(recipe: str, artifact: Path) -> None:
    """Three kernels per layer read the chosen experts alone, whatever the recipe."""
    compiled = openvino.Core().compile_model(artifact / MODEL_XML, "CPU", EXACT.to_properties())
    found = expert_kernels(compiled)
    assert found.total() == 3 * LAYERS
    assert found.keys() <= KERNELS[recipe]


def test_experts_stay_sparse_with_paged_attention(recipe: str, artifact: Path) -> None:
    """So they do in the graph that the worker and the paged engine run."""
    from openvino import _offline_transformations

    core = openvino.Core()
    model = core.read_model(artifact / MODEL_XML)
    _offline_transformations.paged_attention_transformation(model)
    found = expert_kernels(core.compile_model(model, "CPU", EXACT.to_properties()))
    assert found.total() == 3 * LAYERS
    assert found.keys() <= KERNELS[recipe]


def test_an_export_holds_what_its_recipe_asks_for(recipe: str, artifact: Path) -> None:
    """The IR is read back: experts stacked, by the recipe, and routers as they were."""
    layers = {layer.name: layer for layer in Artifact.open(artifact).manifest.layers}
    config = Artifact.open(artifact).config
    for name, shape in config.linear_shapes().items():
        layer = layers[f"{name}.weight"]
        assert layer.parameters == int(np.prod(shape))
        if name.endswith("mlp.router"):
            assert layer.precision == "fp32"
        elif recipe in ("fp16", "int8"):
            assert layer.precision == recipe
        elif ".experts." in name and layer.precision == "int4":
            assert layer.group_size == (0 if recipe == "npu" else 64)
    experts = [layer for name, layer in layers.items() if ".experts." in name]
    assert len(experts) == 3 * LAYERS
    assert recipe in ("fp16", "int8") or any(layer.precision == "int4" for layer in experts)


def test_a_compressed_export_computes_with_the_weights_that_it_holds(
    recipe: str, artifact: Path, zoo: Zoo, load: LoadModel
) -> None:
    """The same weights in transformers give the same logits, decompressed from the IR."""
    model = load_truth_with(zoo.checkpoint(ROW), decompressed(artifact))
    ids = load(artifact).tokenizer.encode_raw(prompt_text(40))
    with torch.inference_mode():
        truth = model(torch.tensor([ids]), use_cache=False).logits[0].numpy()
    logits = phi3ov_logits(artifact, ids)
    np.testing.assert_allclose(logits, truth, atol=1e-4 * truth.std())


def phi3ov_logits(artifact: Path, ids: list[int]) -> Any:
    """Return the logits of an export, the last ten tokens read from the cache."""
    compiled = openvino.Core().compile_model(artifact / MODEL_XML, "CPU", EXACT.to_properties())
    request, past, found = compiled.create_infer_request(), 0, []
    for chunk in (ids[:-10], ids[-10:-9], ids[-9:]):
        request.infer(
            {
                "input_ids": np.array([chunk]),
                "attention_mask": np.ones((1, past + len(chunk)), np.int64),
                "position_ids": np.arange(past, past + len(chunk))[None],
                "beam_idx": np.zeros(1, np.int32),
            }
        )
        found.append(request.get_tensor("logits").data[0].copy())
        past += len(chunk)
    return np.concatenate(found)


def decompressed(artifact: Path) -> dict[str, torch.Tensor]:
    """Return the weight matrices of an IR, decompressed in float32, by their names."""
    graph = openvino.Core().read_model(artifact / MODEL_XML)
    constants = {
        node.get_friendly_name(): node
        for node in graph.get_ops()
        if node.get_type_name() == "Constant"
    }
    shapes = {
        f"{name}.weight": shape
        for name, shape in Artifact.open(artifact).config.linear_shapes().items()
    }
    found = {}
    for name, node in constants.items():
        if not name.endswith("weight") or len(node.get_output_shape(0)) < 2:
            continue
        values = node.get_data(dtype=np.float32)
        for part, combine in (("zero_point", np.subtract), ("scale", np.multiply)):
            if f"{name}/{part}" in constants:
                values = combine(values, constants[f"{name}/{part}"].get_data(dtype=np.float32))
        plain = name.removeprefix("self.").replace("_openvino_orig_", "")
        shape = shapes.get(plain, values.shape)
        found[plain] = torch.tensor(values.reshape(shape))
    return found


def load_truth_with(checkpoint: Path, matrices: dict[str, torch.Tensor]) -> Any:
    """Load a checkpoint in transformers, and replace the matrices that an export holds."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    for index, block in enumerate(model.model.layers):
        prefix = f"model.layers.{index}.mlp.experts."
        gate, up, down = (
            matrices.pop(f"{prefix}{name}_proj.weight") for name in ("gate", "up", "down")
        )
        block.mlp.experts.gate_up_proj.data = torch.cat([gate, up], dim=1)
        block.mlp.experts.down_proj.data = down
    weights = dict(model.named_parameters())
    assert matrices.keys() <= weights.keys()
    for name, values in matrices.items():
        weights[name].data = values
    return model


@pytest.mark.parametrize(
    ("row", "context"), [("phi-tiny-moe", None), ("phi-3.5-moe", None), ("phi-3.5-moe", LONGEST)]
)
def test_the_worker_equals_transformers(
    row: str, context: int | None, zoo: Zoo, load: LoadModel
) -> None:
    """With a sliding window, and on both sides of the original context with its own scale."""
    model = load(zoo.artifact(row), engine="worker", context_tokens=context)
    pin: Any = {"short": "short", "long": "long"}.get(model.context.factors)
    for length, seed in ((9, 0), (BORDER - 8 if context is None else BORDER + 40, 1)):
        prompt = prompt_text(length, seed)
        truth = greedy(zoo.checkpoint(row), model.tokenizer.encode_raw(prompt), 6, pin=pin)
        for _ in range(2):  # the second time from the cache
            assert model.complete(prompt, max_new_tokens=6).token_ids == truth


def test_the_two_scales_are_told_apart(zoo: Zoo) -> None:
    """Guards the tests on both sides of the border: with the other scale they would fail."""
    checkpoint = zoo.checkpoint("phi-3.5-moe")
    ids = [64 + ord(letter) - ord("a") for letter in prompt_text(30)]
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    rope = model.model.rotary_emb.config.rope_parameters
    logits = []
    for scale in (rope["short_mscale"], rope["long_mscale"]):
        rope["short_mscale"] = scale
        with torch.inference_mode():
            logits.append(model(torch.tensor([ids]), use_cache=False).logits)
    assert (logits[0] - logits[1]).abs().max() > 0.1


@pytest.mark.parametrize("engine", ["pipeline", "worker"])
def test_an_adapter_of_the_attention_equals_merged_weights(
    engine: EngineName, zoo: Zoo, load: LoadModel, tmp_path: Path
) -> None:
    """Its projections are not fused, so the adapter is applied as it is."""
    tensors = make_adapter(tmp_path / "a", zoo.checkpoint(ROW), seed=1)
    model = load(zoo.artifact(ROW), engine=engine, adapter=LoraAdapter(path=tmp_path / "a"))
    prompt = prompt_text(50)
    ids = model.tokenizer.encode_raw(prompt)
    truth = merged_greedy(zoo.checkpoint(ROW), tensors, 2.0, ids, 12)
    assert model.complete(prompt, max_new_tokens=12).token_ids == truth
    assert truth != greedy(zoo.checkpoint(ROW), ids, 12)


def test_an_adapter_of_experts_is_refused(zoo: Zoo, load: LoadModel, tmp_path: Path) -> None:
    """With what it may change."""
    from safetensors.torch import save_file

    make_adapter(tmp_path / "a", zoo.checkpoint(ROW), seed=1)
    file = tmp_path / "a" / "adapter_model.safetensors"
    name = "base_model.model.model.layers.0.mlp.experts.down_proj"
    more = {f"{name}.lora_A.weight": torch.zeros(4, 64), f"{name}.lora_B.weight": torch.zeros(4, 4)}
    save_file(load_file(file) | more, file)
    with pytest.raises(OptionError, match=r"experts.*may change the attention alone"):
        load(zoo.artifact(ROW), adapter=LoraAdapter(path=tmp_path / "a"))


def test_a_checkpoint_without_one_expert_is_refused(zoo: Zoo, tmp_path: Path) -> None:
    """It would be drawn at random."""
    name = f"model.layers.1.block_sparse_moe.experts.{EXPERTS - 1}.w2.weight"

    def remove(_config: dict[str, Any], tensors: dict[str, Any]) -> None:
        del tensors[name]

    source = changed_copy(zoo.checkpoint(ROW), tmp_path / "source", remove)
    with pytest.raises(ExportError, match=f"has no tensors {name}"):
        export_model(source, tmp_path / "made", compression="fp16", progress=False)


def test_a_checkpoint_in_float32_is_exported(zoo: Zoo, tmp_path: Path, load: LoadModel) -> None:
    """It answers as transformers does, and its experts are sparse, too."""

    def widen(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        config["torch_dtype"] = "float32"
        for name, tensor in tensors.items():
            tensors[name] = tensor.float()

    source = changed_copy(zoo.checkpoint(ROW), tmp_path / "source", widen)
    export_model(source, tmp_path / "made", compression="fp16", progress=False)
    compiled = openvino.Core().compile_model(tmp_path / "made" / MODEL_XML, "CPU")
    assert expert_kernels(compiled).total() == 3 * LAYERS
    model = load(tmp_path / "made")
    ids = model.tokenizer.encode_raw(prompt_text(40))
    assert model.complete(prompt_text(40), max_new_tokens=12).token_ids == greedy(source, ids, 12)


@pytest.mark.parametrize("widened", [False, True])
def test_quality_is_measured(widened: bool, zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    """An fp16 export of exact weights loses nothing, also against a source read layer by layer."""
    if widened:
        monkeypatch.setattr("phi3ov.quality.logits._SMALL_BYTES", 0)
    report = compare(
        zoo.checkpoint(ROW), zoo.artifact(ROW), window_tokens=64, max_tokens=128, progress=False
    )
    assert report.mean_kl < 1e-6
    assert report.top1_agreement == 1.0


@pytest.mark.parametrize("bits", [4, 8])
def test_a_folder_that_optimum_made_loads_with_a_note(
    bits: int, zoo: Zoo, tmp_path: Path, load: LoadModel
) -> None:
    """All its experts are counted, and its compressed routers are named."""
    recipe = {"bits": bits, "sym": True, "group_size": 64 if bits == 4 else -1, "ratio": 1.0}
    publish(zoo.checkpoint(ROW), tmp_path / "made", recipe)
    artifact = Artifact.open(tmp_path / "made")
    counted = {layer.name: layer for layer in artifact.manifest.layers}
    assert {f"{name}.weight" for name in artifact.config.linear_shapes()} <= counted.keys()
    experts = [layer for name, layer in counted.items() if ".experts." in name]
    assert {layer.group_size for layer in experts} == {64 if bits == 4 else 0}
    (note,) = artifact.manifest.notes
    assert f"routers are compressed (int{bits})" in note
    assert load(tmp_path / "made").complete("Hello", max_new_tokens=4).token_ids


def test_a_rounded_router_chooses_other_experts(zoo: Zoo) -> None:
    """Four bits change the pair of every sixth token, and eight bits that of some."""
    model = AutoModelForCausalLM.from_pretrained(zoo.checkpoint(ROW), dtype=torch.float32).eval()
    router = model.model.layers[0].mlp.router
    ids = torch.randint(64, 250, (1, 400), generator=torch.Generator().manual_seed(0))
    pairs: list[torch.Tensor] = []
    router.register_forward_hook(lambda *call: pairs.append(call[2][2].sort(-1).values))
    weight = router.weight.data
    for levels in (None, 127, 7):  # float32, 8 bits, 4 bits in groups of 64
        if levels is not None:
            groups = weight.reshape(EXPERTS, -1, 64)
            scale = groups.abs().amax(-1, keepdim=True) / levels
            router.weight.data = ((groups / scale).round() * scale).reshape(weight.shape)
        with torch.inference_mode():
            model(ids, use_cache=False)
    exact, eight, four = pairs
    assert 0 < (exact != eight).any(-1).float().mean() < 0.03
    assert 0.1 < (exact != four).any(-1).float().mean() < 0.25


def test_info_names_the_experts(zoo: Zoo, capsys: pytest.CaptureFixture[str]) -> None:
    """How many there are and how many a token uses, and each kind of their weights."""
    assert main(["info", str(zoo.artifact(ROW))]) == 0
    printed = capsys.readouterr().out
    assert f"{EXPERTS} per block, 2 per token" in printed
    assert all(f"{name}_proj" in printed for name in ("gate", "up", "down"))


@pytest.mark.parametrize("row", ROWS)
def test_a_chat_speaks_with_every_member(row: str, zoo: Zoo) -> None:
    """On the device and engine that are chosen by default."""
    with load_model(zoo.artifact(row)) as model:
        chat = phi3ov.Phi3Chat(model, system="Speak.")
        first = chat.generate("Hello?", max_new_tokens=4)
        assert chat.generate("Again?", max_new_tokens=4).usage.cached_tokens
        assert first.usage.completion_tokens == 4


def test_upstream_optimum_widens_experts_to_float32(zoo: Zoo, tmp_path: Path) -> None:
    """Its own patch needs four bytes per parameter; when it no longer does, drop `StackedExperts`.

    Their names in its graph are not those of weights, either.
    """
    from optimum.exporters.openvino import main_export
    from optimum.intel import OVConfig

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of torch's tracer
        main_export(
            str(zoo.checkpoint(ROW)),
            tmp_path / "made",
            task="text-generation-with-past",
            library_name="transformers",
            convert_tokenizer=False,
            ov_config=OVConfig(dtype="auto"),
        )
    model = openvino.Core().read_model(tmp_path / "made" / MODEL_XML)
    types = {
        node.get_element_type().get_type_name()
        for node in model.get_ops()
        if node.get_type_name() == "Constant" and ".mlp.experts" in node.get_friendly_name()
        if len(node.get_output_shape(0)) == 3 and node.get_output_shape(0)[0] == EXPERTS
    }
    assert types == {"f32"}
