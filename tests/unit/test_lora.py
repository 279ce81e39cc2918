"""What is no plain LoRA for this very model is refused before anything is compiled."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save_file

from phi3ov import GenerationOptions, LoraAdapter, OptionError
from phi3ov.runtime.fused_lora import fold_adapter
from phi3ov.runtime.lora import MOST_SCALE, read_adapter

from .fakes import make_config

MODEL = make_config(hidden_size=8, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1)
DOWN = "base_model.model.model.layers.0.mlp.down_proj.lora_"
SETTINGS = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none", "use_dora": False}
SHAPES = {f"{DOWN}A.weight": (2, 16), f"{DOWN}B.weight": (8, 2)}


def write_adapter(
    folder: Path, shapes: dict[str, tuple[int, int]] | None = None, **settings: Any
) -> Path:
    """Write an adapter of zeros for one layer."""
    folder.mkdir(exist_ok=True)
    text = json.dumps(SETTINGS | settings)
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
    entries, at = {}, 0
    for name, (rows, columns) in (SHAPES if shapes is None else shapes).items():
        end = at + rows * columns
        entries[name] = {"dtype": "I8", "shape": [rows, columns], "data_offsets": [at, end]}
        at = end
    header = json.dumps(entries).encode()
    content = len(header).to_bytes(8, "little") + header + bytes(at)
    (folder / "adapter_model.safetensors").write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({}, 2.0),
        ({"use_rslora": True, "r": 2, "lora_alpha": 3.0}, 3 / 2**0.5),
        ({"init_lora_weights": "gaussian"}, 2.0),
        ({"bias": None, "lora_bias": False, "modules_to_save": None, "rank_pattern": {}}, 2.0),
    ],
)
def test_plain_lora_is_taken(settings: dict[str, Any], scale: float, tmp_path: Path) -> None:
    """With the scale that PEFT gives it, times the caller's weight."""
    folder = write_adapter(tmp_path / "a", **settings)
    found = read_adapter(LoraAdapter(path=folder, weight=0.5), MODEL)
    assert found.scale == pytest.approx(0.5 * scale)
    assert found.weights == (folder / "adapter_model.safetensors").resolve()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'; phi3ov takes plain LoRA"),
        ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights='pissa_niter_16'"),
        ({"init_lora_weights": "olora"}, "init_lora_weights='olora'"),
        ({"lora_bias": True}, "lora_bias=True"),
        ({"alora_invocation_tokens": [1]}, "has alora_invocation_tokens"),
        ({"layer_replication": [[0, 1]]}, "has layer_replication"),
        ({"r": 0}, r"adapter_config\.json: r=0 must be a number above 0"),
        ({"r": None}, "r=None must be"),
        ({"r": "2"}, "r='2' must be"),
        ({"r": True}, "r=True must be"),
        ({"lora_alpha": None}, "lora_alpha=None must be"),
        ({"lora_alpha": float("nan")}, "lora_alpha=nan must be"),
        ({"lora_alpha": 2 * MOST_SCALE + 2}, "a scale of 1001 .*maximum is"),
    ],
    ids=str,
)
def test_what_the_settings_say_is_refused_by_field_and_value(
    settings: dict[str, Any], said: str, tmp_path: Path
) -> None:
    """PiSSA changes the weights that it begins from; a scale beyond all measure overflows."""
    with pytest.raises(OptionError, match=said):
        read_adapter(LoraAdapter(path=write_adapter(tmp_path / "a", **settings)), MODEL)


def test_the_weight_counts_in_the_limit_of_the_scale(tmp_path: Path) -> None:
    """It is what the matrices are multiplied with that must not be too large."""
    folder = write_adapter(tmp_path / "a", lora_alpha=2 * MOST_SCALE)
    assert read_adapter(LoraAdapter(path=folder), MODEL).scale == MOST_SCALE
    with pytest.raises(OptionError, match="Give a smaller weight"):
        read_adapter(LoraAdapter(path=folder, weight=1.01), MODEL)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], "holds no matrices"),
        ([f"{DOWN}A.weight"], f"{DOWN}A.weight without {DOWN}B.weight"),
        ([f"{DOWN}B.weight"], f"{DOWN}B.weight without {DOWN}A.weight"),
    ],
)
def test_an_adapter_that_would_change_nothing_is_refused(
    names: list[str], said: str, tmp_path: Path
) -> None:
    """Genai applies what has both matrices and says nothing of the rest."""
    folder = write_adapter(tmp_path / "a", {name: SHAPES[name] for name in names})
    with pytest.raises(OptionError, match=re.escape(said)):
        read_adapter(LoraAdapter(path=folder), MODEL)


def header(text: bytes) -> bytes:
    """Return a safetensors header without tensors behind it."""
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("adapter_config.json", lambda path: path.unlink()),
        ("adapter_config.json", lambda path: path.write_bytes(b"\xff")),
        ("adapter_config.json", lambda path: path.write_text("[]")),
        ("adapter_config.json", lambda path: path.write_text("[" * 100_000)),
        ("adapter_model.safetensors", lambda path: path.unlink()),
        ("adapter_model.safetensors", lambda path: path.write_bytes(b"")),
        ("adapter_model.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-1])),
        ("adapter_model.safetensors", lambda path: path.write_bytes(header(b"[]"))),
        ("adapter_model.safetensors", lambda path: path.write_bytes(header(b'{"a":[1]}'))),
    ],
)
def test_a_damaged_file_is_named(
    name: str, change: Callable[[Path], object], tmp_path: Path
) -> None:
    """Whatever stands in it, the error is the library's."""
    folder = write_adapter(tmp_path / "a")
    change(folder / name)
    with pytest.raises(OptionError, match=re.escape(name)):
        read_adapter(LoraAdapter(path=folder), MODEL)


UNFUSED = make_config(
    hidden_size=8,
    intermediate_size=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    num_hidden_layers=2,
)
PREFIX = "base_model.model."
PARTS = {
    "self_attn.qkv_proj": {"self_attn.q_proj": 8, "self_attn.k_proj": 4, "self_attn.v_proj": 4},
    "mlp.gate_up_proj": {"mlp.gate_proj": 3, "mlp.up_proj": 3},
}


@given(
    parts=st.sets(
        st.sampled_from([part for layer in PARTS.values() for part in layer]), min_size=1
    ),
    dtype=st.sampled_from([np.float32, np.float16]),
    seed=st.integers(0, 99),
)
def test_folding_is_the_products_row_by_row(
    parts: set[str], dtype: type[np.floating[Any]], seed: int, tmp_path_factory: Any
) -> None:
    """B times A of the fused layer holds the parts' products bit for bit, and zeros elsewhere."""
    draw = np.random.default_rng(seed)
    written = {}
    for layer in range(2):
        for part in parts:
            outputs = next(rows[part] for rows in PARTS.values() if part in rows)
            for side, shape in (("A", (2, 8)), ("B", (outputs, 2))):
                name = f"{PREFIX}model.layers.{layer}.{part}.lora_{side}.weight"
                written[name] = draw.integers(-8, 8, shape).astype(dtype)
        for side, shape in (("A", (2, 3)), ("B", (8, 2))):
            name = f"{PREFIX}model.layers.{layer}.mlp.down_proj.lora_{side}.weight"
            written[name] = draw.integers(-8, 8, shape).astype(dtype)
    file = tmp_path_factory.mktemp("fold") / "a.safetensors"
    save_file(written, file)
    content = fold_adapter(file, UNFUSED, prefix=PREFIX)
    assert content is not None
    folded = load(content)
    for layer in range(2):
        block = f"{PREFIX}model.layers.{layer}."
        for fused, rows in PARTS.items():
            if not parts & rows.keys():
                assert f"{block}{fused}.lora_A.weight" not in folded
                continue
            first = folded.pop(f"{block}{fused}.lora_A.weight")
            second = folded.pop(f"{block}{fused}.lora_B.weight")
            assert first.dtype == second.dtype == dtype
            expected = [
                written[f"{block}{part}.lora_B.weight"] @ written[f"{block}{part}.lora_A.weight"]
                if part in parts
                else np.zeros((outputs, 8), dtype)
                for part, outputs in rows.items()
            ]
            np.testing.assert_array_equal(second @ first, np.concatenate(expected))
    assert {name: tensor.tobytes() for name, tensor in folded.items()} == {
        name: tensor.tobytes() for name, tensor in written.items() if "down_proj" in name
    }


def test_an_adapter_for_fused_layers_is_taken_as_it_is(tmp_path: Path) -> None:
    """Nothing is folded, and the file is not read a second time."""
    folder = write_adapter(tmp_path / "a")
    assert read_adapter(LoraAdapter(path=folder), MODEL).folded(MODEL) is None


def test_a_part_beside_its_whole_is_refused(tmp_path: Path) -> None:
    """An adapter of neither a fused nor an unfused model."""
    layer = "base_model.model.model.layers.0.self_attn."
    shapes = {
        f"{layer}qkv_proj.lora_A.weight": (2, 8),
        f"{layer}qkv_proj.lora_B.weight": (24, 2),
        f"{layer}q_proj.lora_A.weight": (2, 8),
        f"{layer}q_proj.lora_B.weight": (8, 2),
    }
    folder = write_adapter(tmp_path / "a", shapes)
    with pytest.raises(OptionError, match=r"q_proj.* of which it is a part"):
        read_adapter(LoraAdapter(path=folder), MODEL)


def test_an_adapter_for_one_answer_is_refused_with_the_way_out() -> None:
    """Openvino-genai's prefix cache would mix adapters."""
    with pytest.raises(OptionError, match=r"Did you mean load_model\(adapter=\.\.\.\)"):
        GenerationOptions().changed({"adapter": "poet"})  # type: ignore[typeddict-unknown-key]


def test_a_fingerprint_tells_adapters_and_weights_apart(tmp_path: Path) -> None:
    """Equal files and weights give the same one, wherever they lie."""
    for folder, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "adapter_config.json").write_bytes(b"{}")
        (tmp_path / folder / "adapter_model.safetensors").write_bytes(content)
    first, same, other = (LoraAdapter(path=tmp_path / name).fingerprint() for name in "abc")
    half = LoraAdapter(path=tmp_path / "a", weight=0.5).fingerprint()
    assert first == same
    assert len({first, other, half}) == 3
