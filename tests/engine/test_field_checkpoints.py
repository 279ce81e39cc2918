"""Checkpoints as people bring them: the export answers as transformers does, or is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from phi3ov import export_model
from phi3ov.quality.logits import SourceModel

from .checkpoints import HEAD, HEADS, INTERMEDIATE, LONGEST
from .conftest import LoadModel, Zoo, left_in
from .truth import greedy, prompt_text


def changed_copy(
    source: Path, folder: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]
) -> Path:
    """Copy a checkpoint, with its config.json and its tensors changed in place."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "model.safetensors")
    change(config, tensors)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def answer(load: LoadModel, artifact: Path, tokens: int = 24, **options: Any) -> tuple[int, ...]:
    """Return the greedy answer of an export to a fixed prompt."""
    return load(artifact, **options).complete(prompt_text(40), max_new_tokens=tokens).token_ids


def truth(source: Path, load: LoadModel, artifact: Path, tokens: int = 24) -> tuple[int, ...]:
    """Return transformers' greedy answer of a checkpoint, in whichever layout it is."""
    return greedy(source, load(artifact).tokenizer.encode_raw(prompt_text(40)), tokens)


def test_a_tied_matrix_stored_as_the_output_layer_is_read(
    zoo: Zoo, tmp_path: Path, load: LoadModel
) -> None:
    """The same model as with the usual name, and so are its answers."""

    def rename(_config: dict[str, Any], tensors: dict[str, Any]) -> None:
        tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")

    source = changed_copy(zoo.checkpoint("phi-4-mini"), tmp_path / "source", rename)
    report = export_model(source, tmp_path / "made", compression="fp16", progress=False)
    assert answer(load, tmp_path / "made") == answer(load, zoo.artifact("phi-4-mini"))
    assert report.artifact.config.tie_word_embeddings
    export_model(source, tmp_path / "int8", compression="int8", progress=False)


def test_two_different_matrices_are_both_kept(
    zoo: Zoo, tmp_path: Path, load: LoadModel, caplog: pytest.LogCaptureFixture
) -> None:
    """Where config.json ties them, transformers does not, and says so; neither does phi3ov."""

    def add_head(_config: dict[str, Any], tensors: dict[str, Any]) -> None:
        head = tensors["model.embed_tokens.weight"].clone()
        tensors["lm_head.weight"] = torch.roll(head, 1, dims=1)

    source = changed_copy(zoo.checkpoint("phi-4-mini"), tmp_path / "source", add_head)
    export_model(source, tmp_path / "made", compression="fp16", progress=False)
    assert "lm_head.weight, and they differ" in caplog.text
    said = answer(load, tmp_path / "made")
    assert said == truth(source, load, tmp_path / "made")
    assert said != answer(load, zoo.artifact("phi-4-mini"))


def as_llama(model_type: str) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    """Return what puts a Phi-3 into Llama's layout, as fine-tuning tools do."""
    architecture = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}[model_type]

    def split(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        config.update(model_type=model_type, architectures=[architecture])
        del config["auto_map"]
        kv_rows = config["num_key_value_heads"] * HEAD
        for layer in range(config["num_hidden_layers"]):
            name = f"model.layers.{layer}."
            stacked = tensors.pop(name + "self_attn.qkv_proj.weight")
            parts = stacked.split([HEADS * HEAD, kv_rows, kv_rows])
            for part, rows in zip("qkv", parts, strict=True):
                tensors[f"{name}self_attn.{part}_proj.weight"] = rows.clone()
            stacked = tensors.pop(name + "mlp.gate_up_proj.weight")
            for part, rows in zip(("gate", "up"), stacked.split(INTERMEDIATE), strict=True):
                tensors[f"{name}mlp.{part}_proj.weight"] = rows.clone()

    return split


@pytest.mark.trap(
    "A Phi in the layout of Llama or Mistral (q, k, v and gate, up apart) is recognized, and its "
    "rows are stacked again without any change: its answers are those of the original layout.",
    about="Checkpoints",
)
@pytest.mark.parametrize(
    ("row", "model_type"),
    [
        ("phi-4", "llama"),
        ("phi-3-medium-4k", "mistral"),
        ("phi-3.5-mini", "llama"),
    ],
)
def test_a_phi_in_llamas_layout_is_exported(
    row: str, model_type: str, zoo: Zoo, tmp_path: Path, load: LoadModel
) -> None:
    """Also with grouped heads, a sliding window, and LongRoPE, whose long factors it has, too."""
    source = changed_copy(zoo.checkpoint(row), tmp_path / "source", as_llama(model_type))
    report = export_model(source, tmp_path / "made", compression="fp16", progress=False)
    assert answer(load, tmp_path / "made") == answer(load, zoo.artifact(row))
    assert answer(load, tmp_path / "made") == truth(source, load, tmp_path / "made")
    if row == "phi-3.5-mini":
        options = {"context_tokens": LONGEST}
        long = [answer(load, path, **options) for path in (tmp_path / "made", zoo.artifact(row))]
        assert long[0] == long[1] != answer(load, zoo.artifact(row))
    assert json.loads((tmp_path / "made" / "config.json").read_text())["model_type"] == "phi3"
    assert report.source_bytes == (source / "model.safetensors").stat().st_size
    assert left_in(tmp_path) == ["made", "source"]
    logits = [SourceModel(path).logits(range(60)) for path in (source, zoo.checkpoint(row))]
    assert np.abs(logits[0] - logits[1]).max() < 1e-4, "as transformers computes it, too"
