"""LoRA adapters: the same answers as weights merged by hand; what fits no layer is refused."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai
import pytest
import torch
from safetensors.torch import save_file

from phi3ov import LoraAdapter, OptionError
from phi3ov.engine.pipeline import scheduler_config
from phi3ov.engine.protocol import EngineName

from .conftest import EXACT, LoadModel, Zoo
from .truth import LEAST_MARGIN, load_truth, prompt_text

ROW = "phi-4"
RANK = 4
Tensors = dict[str, torch.Tensor]


def make_adapter(folder: Path, checkpoint: Path, seed: int, **settings: Any) -> Tensors:
    """Write an adapter for every linear layer, as PEFT does."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, weight in load_truth(checkpoint).named_parameters():
        if name.endswith("_proj.weight"):
            base = "base_model.model." + name.removesuffix(".weight")
            outputs, inputs = weight.shape
            for part, shape in (("A", (RANK, inputs)), ("B", (outputs, RANK))):
                drawn = 0.1 * torch.randn(shape, generator=generator)
                tensors[f"{base}.lora_{part}.weight"] = drawn
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 8, "bias": "none"} | settings
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return tensors


def merged_greedy(
    checkpoint: Path, tensors: Tensors, scale: float, ids: list[int], count: int
) -> tuple[int, ...]:
    """Merge by hand, in float32, and continue without a cache."""
    model = copy.deepcopy(load_truth(checkpoint))
    weights = dict(model.named_parameters())
    with torch.inference_mode():
        for name, first in tensors.items():
            if name.endswith("lora_A.weight"):
                second = tensors[name.replace("lora_A", "lora_B")]
                base = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                weights[f"{base}.weight"].data += scale * (second @ first)
        ids = list(ids)
        for _ in range(count):
            logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
            best, second_best = logits.topk(2).values.tolist()
            assert best - second_best > LEAST_MARGIN
            ids.append(int(logits.argmax()))
    return tuple(ids[-count:])


@pytest.mark.parametrize("engine", ["pipeline", "worker"])
@pytest.mark.parametrize(
    "case",
    [({}, 1.0, 2.0), ({}, 0.5, 1.0), ({"use_rslora": True, "lora_alpha": 2}, 1.0, 1.0)],
)
def test_an_adapter_equals_merged_weights(
    case: tuple[dict[str, Any], float, float],
    engine: EngineName,
    zoo: Zoo,
    load: LoadModel,
    tmp_path: Path,
) -> None:
    """With PEFT's scaling, first time and from the cache."""
    settings, weight, scale = case
    checkpoint = zoo.checkpoint(ROW)
    tensors = make_adapter(tmp_path / "a", checkpoint, seed=1, **settings)
    adapter = LoraAdapter(path=tmp_path / "a", weight=weight)
    model = load(zoo.artifact(ROW), engine=engine, adapter=adapter)
    prompt = prompt_text(50)
    truth = merged_greedy(checkpoint, tensors, scale, model.tokenizer.encode_raw(prompt), 12)
    for _ in range(2):
        assert model.complete(prompt, max_new_tokens=12).token_ids == truth


def unfuse(
    folder: Path, checkpoint: Path, left_out: tuple[str, ...], dtype: torch.dtype
) -> Tensors:
    """Write an adapter as an unfused copy's training gives it; return it for the fused layers."""
    made = make_adapter(folder, checkpoint, seed=2)
    config = load_truth(checkpoint).config
    head = config.hidden_size // config.num_attention_heads
    kept = head * config.num_key_value_heads
    parts = {
        "qkv_proj": {"q_proj": config.hidden_size, "k_proj": kept, "v_proj": kept},
        "gate_up_proj": dict.fromkeys(("gate_proj", "up_proj"), config.intermediate_size),
    }
    generator = torch.Generator().manual_seed(3)
    written, merged = {}, {}
    for name, tensor in made.items():
        layer = name.split(".")[-3]
        if layer not in parts:
            written[name] = merged[name] = tensor.to(dtype)
        elif name.endswith("lora_A.weight"):
            products = []
            for part, outputs in parts[layer].items():
                first = 0.1 * torch.randn((RANK, tensor.shape[1]), generator=generator)
                second = 0.1 * torch.randn((outputs, RANK), generator=generator)
                first, second = first.to(dtype), second.to(dtype)
                if part in left_out:
                    second = torch.zeros_like(second)
                else:
                    written[name.replace(layer, part)] = first
                    written[name.replace(layer, part).replace("lora_A", "lora_B")] = second
                products.append(second.float() @ first.float())
            merged[name] = torch.eye(tensor.shape[1])  # the product, written as one pair
            merged[name.replace("lora_A", "lora_B")] = torch.cat(products)
    save_file(written, folder / "adapter_model.safetensors")
    return {name: tensor.float() for name, tensor in merged.items()}


@pytest.mark.parametrize("engine", ["pipeline", "worker"])
@pytest.mark.parametrize(
    "case", [((), torch.float32), (("k_proj", "up_proj"), torch.bfloat16)], ids=str
)
def test_an_adapter_of_an_unfused_copy_equals_merged_weights(
    case: tuple[tuple[str, ...], torch.dtype],
    engine: EngineName,
    zoo: Zoo,
    load: LoadModel,
    tmp_path: Path,
) -> None:
    """Its q, k, v and gate, up are folded onto the fused layers, those left out as zeros."""
    checkpoint = zoo.checkpoint(ROW)
    merged = unfuse(tmp_path / "a", checkpoint, *case)
    model = load(zoo.artifact(ROW), engine=engine, adapter=LoraAdapter(path=tmp_path / "a"))
    prompt = prompt_text(50)
    truth = merged_greedy(checkpoint, merged, 2.0, model.tokenizer.encode_raw(prompt), 12)
    assert model.complete(prompt, max_new_tokens=12).token_ids == truth
    model.clear_cache()
    assert model.complete(prompt, max_new_tokens=12).token_ids == truth


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type='IA3'"),
        ({"use_dora": True}, "use_dora=True"),
        ({"bias": "all"}, "bias='all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"r": 8}, r"shape \(4, 256\), the model needs \(8, 256\)"),
    ],
)
def test_what_is_more_than_lora_is_refused(
    settings: dict[str, Any], message: str, zoo: Zoo, load: LoadModel, tmp_path: Path
) -> None:
    """By field and value, before anything is compiled."""
    make_adapter(tmp_path / "a", zoo.checkpoint(ROW), seed=1, **settings)
    with pytest.raises(OptionError, match=message):
        load(zoo.artifact(ROW), adapter=LoraAdapter(path=tmp_path / "a"))


def test_a_matrix_that_fits_no_layer_is_refused(zoo: Zoo, load: LoadModel, tmp_path: Path) -> None:
    """Or genai would skip it without a word; an adapter that is not there is named, too."""
    tensors = make_adapter(tmp_path / "a", zoo.checkpoint(ROW), seed=1)
    name = "base_model.model.model.layers.0.self_attn.x_proj.lora_A.weight"
    save_file({**tensors, name: torch.zeros(4, 128)}, tmp_path / "a" / "adapter_model.safetensors")
    with pytest.raises(OptionError, match=r"x_proj\.lora_A\.weight, which fits no layer"):
        load(zoo.artifact(ROW), adapter=LoraAdapter(path=tmp_path / "a"))
    with pytest.raises(OptionError, match="cannot be read"):
        load(zoo.artifact(ROW), adapter=LoraAdapter(path=tmp_path / "nowhere"))


@pytest.mark.parametrize("weight", [0, -1.0, True, float("nan"), "1"])
def test_a_weight_must_be_positive(weight: Any) -> None:
    """Zero is the model without an adapter."""
    with pytest.raises(OptionError, match="weight="):
        LoraAdapter(path="x", weight=weight)


def test_upstream_genai_mixes_adapters_in_its_cache(zoo: Zoo, tmp_path: Path) -> None:
    """Why an adapter is fixed: should this fail, adapters per request can be offered."""
    make_adapter(tmp_path / "a", zoo.checkpoint(ROW), seed=1)
    folder = zoo.artifact(ROW)
    adapter = openvino_genai.Adapter(str(tmp_path / "a" / "adapter_model.safetensors"))
    draw = random.Random(1)
    prompt = np.array([[draw.randrange(64, 90) for _ in range(64)]], dtype=np.int64)

    def answers(order: tuple[bool, ...]) -> list[list[int]]:
        pipeline: Any = openvino_genai.LLMPipeline(
            str(folder), "CPU", adapters=openvino_genai.AdapterConfig([adapter]),
            scheduler_config=scheduler_config(64, 512), **EXACT.to_properties(),
        )  # fmt: skip
        found = []
        for applied in order:
            config = openvino_genai.GenerationConfig(max_new_tokens=12, ignore_eos=True)
            chosen = [(adapter, 2.0)] if applied else []
            config.adapters = openvino_genai.AdapterConfig(chosen)
            found.append(list(pipeline.generate(openvino.Tensor(prompt), config).tokens[0]))
        return found

    assert answers((True, False))[1] != answers((False,))[0]


def test_upstream_genais_batch_ignores_the_adapters_of_a_request(zoo: Zoo, tmp_path: Path) -> None:
    """The second reason why an adapter is fixed (decision 55)."""
    make_adapter(tmp_path / "a", zoo.checkpoint(ROW), seed=1)
    folder = zoo.artifact(ROW)
    adapter = openvino_genai.Adapter(str(tmp_path / "a" / "adapter_model.safetensors"))
    prompt = openvino.Tensor(np.array([[*prompt_text(40).encode()]], dtype=np.int64))
    scheduler = scheduler_config(64, 512)
    scheduler.enable_prefix_caching = False
    pipeline: Any = openvino_genai.ContinuousBatchingPipeline(
        str(folder), openvino_genai.Tokenizer(folder), scheduler, "CPU",
        adapters=openvino_genai.AdapterConfig([adapter]), **EXACT.to_properties(),
    )  # fmt: skip

    def config(*, applied: bool) -> Any:
        made = openvino_genai.GenerationConfig(max_new_tokens=12, ignore_eos=True)
        made.adapters = openvino_genai.AdapterConfig([(adapter, 2.0)] if applied else [])
        return made

    def alone(*, applied: bool) -> list[int]:
        [result] = pipeline.generate([prompt], [config(applied=applied)])
        return list(result.m_generation_ids[0])

    plain, adapted = alone(applied=False), alone(applied=True)
    assert plain != adapted
    alone(applied=False)
    handle = pipeline.add_request(0, prompt, config(applied=True))
    found: list[int] = []
    while pipeline.has_non_finished_requests():
        pipeline.step()
        while handle.can_read():
            found += next(iter(handle.read().values())).generated_ids
    assert found == plain
    with pytest.raises(RuntimeError, match="LoRA adapters value must be the same for all"):
        pipeline.generate([prompt, prompt], [config(applied=True), config(applied=False)])
