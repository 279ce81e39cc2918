"""What OpenVINO makes of a mixture of experts (`phimoe`), which phi3ov refuses (decision 54).

Should the first test fail, the decision's reason to come back to these models is gone.
"""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import openvino
import pytest
import torch
from optimum.exporters.openvino import main_export
from transformers import PhimoeConfig, PhimoeForCausalLM

from phi3ov import UnsupportedModelError
from phi3ov.family import Phi3Config

from ..conftest import MadeOnce
from .conftest import EXACT

LAYERS, EXPERTS, VOCABULARY = 2, 16, 272


@pytest.fixture(scope="module")
def checkpoint(made_once: MadeOnce) -> Path:
    """A random Phi-3.5-MoE of two layers, without LongRoPE."""

    def build(folder: Path) -> None:
        torch.manual_seed(0)
        config = PhimoeConfig(
            vocab_size=VOCABULARY,
            hidden_size=128,
            intermediate_size=128,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_local_experts=EXPERTS,
            num_experts_per_tok=2,
            max_position_embeddings=1024,
            original_max_position_embeddings=1024,
            sliding_window=None,
            attention_bias=True,
            lm_head_bias=True,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
        model = PhimoeForCausalLM(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=0.15)
        model.save_pretrained(folder)

    return made_once("phimoe", build)


@pytest.fixture(scope="module")
def exported(checkpoint: Path, made_once: MadeOnce) -> Path:
    """Export it with optimum-intel."""

    def export(folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # those of torch's tracer
            main_export(
                str(checkpoint),
                folder,
                task="text-generation-with-past",
                library_name="transformers",
                convert_tokenizer=False,
            )

    return made_once("phimoe-fp32", export)


def kinds(compiled: Any) -> Counter[str]:
    """Count the kernels of the execution graph by their kind and the type of their weights."""
    found: Counter[str] = Counter()
    for node in compiled.get_runtime_model().get_ops():
        kind = node.get_rt_info()["layerType"]
        name = kind if isinstance(kind, str) else str(kind.value)
        weights = node.get_input_element_type(1).get_type_name() if name == "GatherMatmul" else ""
        found[f"{name} {weights}".strip()] += 1
    return found


def test_upstream_a_mixture_of_experts_compiles_to_sparse_kernels(
    checkpoint: Path, exported: Path
) -> None:
    """Three kernels per layer read the chosen experts alone, and logits equal transformers'."""
    compiled = openvino.Core().compile_model(
        exported / "openvino_model.xml", "CPU", EXACT.to_properties()
    )
    assert kinds(compiled)["GatherMatmul f32"] == 3 * LAYERS
    model = PhimoeForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    ids = np.random.default_rng(0).integers(3, VOCABULARY, (1, 40))
    request, past, logits = compiled.create_infer_request(), 0, []
    for chunk in (ids[:, :30], ids[:, 30:31], ids[:, 31:]):  # with and without a cache
        count = chunk.shape[1]
        request.infer(
            {
                "input_ids": chunk,
                "attention_mask": np.ones((1, past + count), np.int64),
                "position_ids": np.arange(past, past + count)[None],
                "beam_idx": np.zeros(1, np.int32),
            }
        )
        logits.append(request.get_tensor("logits").data.copy())
        past += count
    with torch.inference_mode():
        truth = model(torch.tensor(ids), use_cache=False).logits.numpy()
    np.testing.assert_allclose(np.concatenate(logits, axis=1), truth, atol=1e-4)


def test_upstream_experts_stay_sparse_with_four_bits(exported: Path) -> None:
    """NNCF compresses the experts, and the kernels take their weights as they are."""
    model = openvino.Core().read_model(exported / "openvino_model.xml")
    mode = nncf.CompressWeightsMode.INT4_SYM
    compressed = nncf.compress_weights(model, mode=mode, group_size=64, ratio=1.0)
    compiled = openvino.Core().compile_model(compressed, "CPU", EXACT.to_properties())
    assert kinds(compiled)["GatherMatmul i4"] == 3 * LAYERS


def test_a_mixture_of_experts_is_refused_by_name(checkpoint: Path) -> None:
    """By the ``config.json`` that transformers writes."""
    with pytest.raises(UnsupportedModelError, match=r"phimoe.*mixture of experts.*decision 54"):
        Phi3Config.read(checkpoint / "config.json")
