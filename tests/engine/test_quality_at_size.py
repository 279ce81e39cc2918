"""The benchmark of size against error: its arithmetic, its readers, and the command by itself."""

from __future__ import annotations

import json
import math
import random
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from .checkpoints import FAMILY
from .conftest import Zoo

REPOSITORY = Path(__file__).resolve().parents[2]
TIED, UNTIED = "phi-4-mini", "phi-3-mini-4k"
SHORT = ["--texts", "python", "--window-tokens", "64", "--max-tokens", "256", "--threads", "1"]


@pytest.fixture(scope="module", autouse=True)
def _benchmarks() -> Iterator[None]:
    """Let the benchmarks be imported, as `make bench-quality` does."""
    sys.path.insert(0, str(REPOSITORY / "benchmarks"))
    yield
    sys.path.remove(str(REPOSITORY / "benchmarks"))


class Fixed:
    """A model whose logits are given."""

    def __init__(self, windows: list[np.ndarray[Any, Any]]) -> None:
        self._windows = iter(windows)

    def logits(self, ids: Sequence[int]) -> np.ndarray[Any, Any]:
        """Return the next window's."""
        return next(self._windows)


def slow_softmax(row: list[float]) -> list[float]:
    """Return the softmax of a few numbers."""
    total = sum(math.exp(value) for value in row)
    return [math.exp(value) / total for value in row]


def test_the_figures_equal_the_formulae() -> None:
    """KL mean, percentile, perplexity and agreement over two windows, written out slowly."""
    from quality_at_size.measure import measure
    from quality_at_size.texts import Windows

    draw = random.Random(5)
    shape = (2, 9, 6)

    def logits() -> list[Any]:
        return [[[draw.uniform(-4, 4) for _ in range(6)] for _ in range(9)] for _ in range(2)]

    source, other = np.array(logits(), np.float32), np.array(logits(), np.float32)
    ids = tuple(tuple(draw.randrange(6) for _ in range(9)) for _ in range(2))
    kl, loss, same = [], [], 0
    for window in range(shape[0]):
        for place in range(shape[1] - 1):  # the last token's successor is in no text
            p = slow_softmax(source[window, place].tolist())
            q = slow_softmax(other[window, place].tolist())
            kl.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
            loss.append(-math.log(q[ids[window][place + 1]]))
            same += p.index(max(p)) == q.index(max(q))
    found = measure(Fixed(list(other)), source, Windows("python", ids))
    position = 0.99 * (len(kl) - 1)
    low, high = sorted(kl)[math.floor(position)], sorted(kl)[math.ceil(position)]
    assert found["predictions"] == len(kl) == 16
    assert found["mean_kl"] == pytest.approx(sum(kl) / 16, abs=1e-6)
    assert found["p99_kl"] == pytest.approx(low + (high - low) * (position % 1), abs=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(sum(loss) / 16), abs=1e-4)
    assert found["same_first_choice"] == pytest.approx(same / 16, abs=1e-5)


@pytest.mark.parametrize("row", [TIED, UNTIED])
def test_a_gguf_in_float32_has_no_error(
    row: str, zoo: Zoo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Writer, reader, names and shapes lose nothing; also the output matrix of an untied model."""
    from phi3ov_bench.gguf_writer import write_gguf
    from quality_at_size.__main__ import main

    checkpoint = zoo.checkpoint(row)
    file = tmp_path / "f32.gguf"
    write_gguf(checkpoint, file, exact=True)
    arguments = ["--source", str(checkpoint), "--work", str(tmp_path), *SHORT]
    assert main(["measure", str(file), *arguments]) == 0
    entry = json.loads(capsys.readouterr().out)
    assert entry["bytes"] == file.stat().st_size
    assert entry["texts"]["python"]["mean_kl"] == 0
    assert entry["texts"]["python"]["same_first_choice"] == 1
    assert entry["texts"]["python"]["predictions"] == 4 * 63


def test_float32_holds_what_bfloat16_does(zoo: Zoo, tmp_path: Path) -> None:
    """A checkpoint in bfloat16 has values that float16 cannot hold; none is rounded."""
    from phi3ov_bench.gguf_writer import write_gguf
    from quality_at_size.dequantize import read_gguf

    values = torch.tensor([[1e-30, 3e30, -1.0, 0.0]], dtype=torch.bfloat16)
    save_file({"model.embed_tokens.weight": values}, tmp_path / "model.safetensors")
    shutil.copy(zoo.checkpoint(TIED) / "config.json", tmp_path)
    write_gguf(tmp_path, tmp_path / "f32.gguf", exact=True)
    found = read_gguf(tmp_path / "f32.gguf", ["model.embed_tokens.weight"])
    np.testing.assert_array_equal(found["model.embed_tokens.weight"], values.float().numpy())


def test_a_quantized_gguf_has_the_error_of_its_own_values(
    zoo: Zoo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The figure is that of a model whose weights are replaced by hand."""
    import gguf
    from phi3ov_bench.gguf_writer import gguf_name
    from quality_at_size.__main__ import main
    from quality_at_size.texts import cut_windows, open_tokenizer

    checkpoint = zoo.checkpoint(TIED)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    windows = cut_windows("python", open_tokenizer(checkpoint), window_tokens=64, most_tokens=256)
    with torch.inference_mode():
        truth = [model(torch.tensor([ids])).logits[0, :-1].double() for ids in windows.ids]
    writer = gguf.GGUFWriter(tmp_path / "q4_0.gguf", "phi3")
    kind = gguf.GGMLQuantizationType.Q4_0
    for name, parameter in model.named_parameters():
        values = parameter.detach().numpy()
        if values.ndim == 1:
            writer.add_tensor(gguf_name(name), values)
            continue
        packed = gguf.quants.quantize(values, kind)
        writer.add_tensor(gguf_name(name), packed, raw_dtype=kind)
        parameter.data = torch.from_numpy(gguf.quants.dequantize(packed, kind).copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with torch.inference_mode():
        other = [model(torch.tensor([ids])).logits[0, :-1].double() for ids in windows.ids]
    p, q = torch.cat(truth).log_softmax(-1), torch.cat(other).log_softmax(-1)
    slow = float((p.exp() * (p - q)).sum(-1).mean())
    arguments = ["--source", str(checkpoint), "--work", str(tmp_path), *SHORT]
    assert main(["measure", str(tmp_path / "q4_0.gguf"), *arguments]) == 0
    found = json.loads(capsys.readouterr().out)["texts"]["python"]["mean_kl"]
    assert slow > 0.001
    assert found == pytest.approx(slow, rel=1e-3)


def test_weights_that_were_misread_are_refused(zoo: Zoo, tmp_path: Path) -> None:
    """A row of gate in place of up is nearer to no source than noise is."""
    from quality_at_size.dequantize import tensor_names, write_checkpoint

    checkpoint = zoo.checkpoint(UNTIED)
    weights = dict(_state(checkpoint))
    assert set(weights) == set(tensor_names(checkpoint))
    name = "model.layers.0.mlp.gate_up_proj.weight"
    gate, up = np.split(weights[name], 2)
    weights[name] = np.concatenate([up, gate])
    with pytest.raises(ValueError, match=name):
        write_checkpoint(weights, checkpoint, tmp_path / "swapped")


def test_an_onnx_model_is_read_under_the_checkpoints_names(zoo: Zoo, tmp_path: Path) -> None:
    """Every tensor of a model as the builder names and packs them, against plain rounding."""
    from quality_at_size.dequantize import read_onnx, tensor_names

    checkpoint = zoo.checkpoint(TIED)
    truth, tensors = {}, {}
    for name, values in _state(checkpoint).items():
        if values.ndim == 1:
            layers = FAMILY[TIED].config.get("num_hidden_layers", 2)
            norm = f"model.layers.{layers}.final_norm_layernorm.weight"
            tensors[norm if name == "model.norm.weight" else name] = truth[name] = values
            continue
        stems = {name.removesuffix(".weight").replace("self_attn", "attn"): values}
        if "gate_up_proj" in name:
            stem = name.removesuffix(".gate_up_proj.weight")
            gate, up = np.split(values, 2)
            stems = {f"{stem}.gate_proj": gate, f"{stem}.up_proj": up}
        elif name == "model.embed_tokens.weight":
            stems = {"lm_head": values}
        rounded = []
        for stem, matrix in stems.items():
            blocks = matrix.reshape(len(matrix), -1, 32)
            scales = np.abs(blocks).max(-1) / 7
            whole = np.clip(np.rint(blocks / scales[..., None]), -8, 7)
            nibbles = (whole + 8).astype(np.uint8)
            tensors[f"{stem}.MatMul.weight_Q4"] = nibbles[..., ::2] | nibbles[..., 1::2] << 4
            tensors[f"{stem}.MatMul.weight_scales"] = scales
            rounded.append((whole * scales[..., None]).reshape(matrix.shape))
        truth[name] = np.concatenate(rounded)
    np.savez(tmp_path / "model.npz", **tensors)
    found = read_onnx(tmp_path / "model.npz", tensor_names(checkpoint))
    assert set(found) == set(truth)
    for name, values in truth.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-6, err_msg=name)


def test_importance_is_the_mean_square_of_what_enters_a_matrix(zoo: Zoo) -> None:
    """For the first matrix, whose inputs are the normalized embeddings, computed by hand."""
    from phi3ov_bench.gguf_writer import gguf_name
    from quality_at_size.importance import measure_importance

    checkpoint = zoo.checkpoint(UNTIED)
    samples = [[1, 2, 3, 4], [5, 6], [7]]
    found = measure_importance(checkpoint, samples)
    state = _state(checkpoint)
    embedded = state["model.embed_tokens.weight"][[1, 2, 3, 4, 5, 6, 7]].astype(np.float64)
    epsilon = json.loads((checkpoint / "config.json").read_text())["rms_norm_eps"]
    size = np.sqrt(np.square(embedded).mean(1, keepdims=True) + epsilon)
    entering = embedded / size * state["model.layers.0.input_layernorm.weight"]
    np.testing.assert_allclose(found["blk.0.attn_qkv.weight"], (entering**2).mean(0), rtol=1e-5)
    matrices = {name for name, values in state.items() if values.ndim > 1 and ".layers." in name}
    assert set(found) == {gguf_name(name) for name in matrices}


def test_dithering_moves_weights_by_half_a_step_at_most(zoo: Zoo, tmp_path: Path) -> None:
    """No value leaves its step, the mean stays, and vectors and embeddings are untouched."""
    from quality_at_size.dither import write_dithered

    checkpoint, target = zoo.checkpoint(UNTIED), tmp_path / "dithered"
    write_dithered(checkpoint, target)
    before, after = _state(checkpoint), _state(target)
    assert set(before) == set(after)
    for name, values in before.items():
        if ".layers." not in name or values.ndim == 1:
            np.testing.assert_array_equal(after[name], values)
            continue
        blocks = values.reshape(len(values), -1, 32)
        step = (blocks.max(-1) - blocks.min(-1))[..., None] / 15
        moved = (after[name] - values).reshape(blocks.shape) / step
        assert np.abs(moved).max() <= 0.5 + 0.05  # bfloat16 rounds the result
        assert abs(moved.mean()) < 0.01
        assert moved.std() == pytest.approx(12**-0.5, rel=0.02)
    kept = (target / "model.safetensors").stat().st_mtime_ns
    write_dithered(checkpoint, target)
    assert (target / "model.safetensors").stat().st_mtime_ns == kept


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=12))
def test_the_front_holds_what_nothing_beats(sizes: list[tuple[int, int]]) -> None:
    """Every point that is left out is met or beaten in both; no point of the front is."""
    from phi3ov_bench.plot import SizedError, best_at_each_size

    points = [SizedError(str(index), "", *size) for index, size in enumerate(sizes)]
    front = best_at_each_size(points)
    for point in points:
        beaten = [
            other
            for other in front
            if other.megabytes <= point.megabytes and other.divergence <= point.divergence
        ]
        assert beaten == [point] if point in front else beaten


def test_a_run_measures_what_is_missing_and_nothing_else(
    zoo: Zoo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second run keeps the entry; a changed recipe or ``--again`` makes it anew."""
    from quality_at_size.__main__ import main

    file, work = tmp_path / "results.json", tmp_path / "work"
    source = ["--source", str(zoo.checkpoint(UNTIED)), "--work", str(work), "--json", str(file)]
    command = ["run", *source, *SHORT, "--only", "int8"]
    assert main(command) == 0
    first = json.loads(file.read_text(encoding="utf-8"))
    entry = first["rows"]["int8"]
    assert 0 < entry["texts"]["python"]["mean_kl"] < 0.1
    assert entry["bytes"] == (work / "int8" / "openvino_model.bin").stat().st_size
    assert entry["matrices"] == {"int8 asym": 10}
    assert first["texts"]["python"]["predictions"] == entry["texts"]["python"]["predictions"] == 252

    marked = entry | {"date": "kept", "title": "an older table's"}
    file.write_text(json.dumps(first | {"rows": {"int8": marked}}), encoding="utf-8")
    assert main(command) == 0
    kept = json.loads(file.read_text(encoding="utf-8"))["rows"]
    assert kept == {"int8": marked | {"title": "phi3ov int8"}}
    assert main([*command, "--again", "ours"]) == 0
    again = json.loads(file.read_text(encoding="utf-8"))["rows"]["int8"]
    assert again["date"] != "kept"
    assert again["texts"] == entry["texts"]

    changed = marked | {"settings": {"mode": "another"}}
    file.write_text(json.dumps(first | {"rows": {"int8": changed}}), encoding="utf-8")
    assert main(command) == 0
    assert json.loads(file.read_text(encoding="utf-8"))["rows"]["int8"]["date"] != "kept"


def test_rows_on_another_text_are_not_mixed(
    zoo: Zoo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other windows are other predictions, so the run stops and says so."""
    from quality_at_size.__main__ import main

    file = tmp_path / "results.json"
    old = {"texts": {"python": {"sha256": "0" * 64}}, "rows": {}}
    file.write_text(json.dumps(old), encoding="utf-8")
    source = ["--source", str(zoo.checkpoint(UNTIED)), "--work", str(tmp_path), "--json", str(file)]
    assert main(["run", *source, *SHORT, "--only", "int8"]) == 1
    assert "another text 'python'" in capsys.readouterr().err
    assert json.loads(file.read_text(encoding="utf-8")) == old


def _state(checkpoint: Path) -> dict[str, Any]:
    """Return a checkpoint's tensors as float32."""
    tensors = load_file(checkpoint / "model.safetensors")
    return {name: tensor.float().numpy() for name, tensor in tensors.items()}
