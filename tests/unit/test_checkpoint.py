"""A checkpoint is checked before any work, and refused by field and value."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import errors
from huggingface_hub.utils import _paths
from safetensors.numpy import save_file

from phi3ov.errors import ExportError, Phi3OVError, UnsupportedModelError
from phi3ov.exporter.checkpoint import Checkpoint
from phi3ov.family import Phi3Config

from .fakes import SMALL_CONFIG, make_config

CONFIG: dict[str, Any] = {**SMALL_CONFIG, "architectures": ["Phi3ForCausalLM"]}
VOCABULARY = 32
"""Rows of the matrices that `write_tensors` writes."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that looks like a checkpoint."""
    path = tmp_path / "checkpoint"
    path.mkdir()
    write_config(path)
    (path / "tokenizer.json").write_text("{}", encoding="utf-8")
    write_weights(path / "model.safetensors")
    return path


def write_weights(file: Path, *, values: int = 4) -> bytes:
    """Write a safetensors file with one tensor of so many bytes; return its content."""
    entry = {"dtype": "U8", "shape": [values], "data_offsets": [0, values]}
    header = json.dumps({"__metadata__": {"format": "pt"}, "weight": entry}).encode()
    content = len(header).to_bytes(8, "little") + header + bytes(values)
    file.write_bytes(content)
    return content


TENSORS = [
    "model.embed_tokens.weight",
    "model.norm.weight",
    "lm_head.weight",
    *(
        f"model.layers.{index}.{part}.weight"
        for index in range(CONFIG["num_hidden_layers"])
        for part in (
            "input_layernorm",
            "self_attn.qkv_proj",
            "self_attn.o_proj",
            "post_attention_layernorm",
            "mlp.gate_up_proj",
            "mlp.down_proj",
        )
    ),
]
"""Every tensor that `CONFIG` speaks of."""


def write_tensors(
    file: Path,
    names: list[str],
    *,
    values: Mapping[str, float] | None = None,
    dtype: str = "float32",
    **changes: tuple[int, ...],
) -> None:
    """Write a safetensors file with a tensor of ones of each name.

    Args:
        file: What to write.
        names: Its tensors, as `CONFIG` shapes them.
        values: A last value instead of 1, by the tensor's name.
        dtype: Of all.
        **changes: Other shapes, by a name whose dots are underscores.
    """
    shapes = make_config(vocab_size=VOCABULARY).tensor_shapes()
    tensors = {}
    for name in names:
        shape = changes.get(name.replace(".", "_"), shapes.get(name, (2, 2)))
        tensors[name] = np.ones(shape, dtype=dtype)
        if values and name in values:
            tensors[name].flat[-1] = values[name]
    save_file(tensors, file)


def write_config(folder: Path, **changes: Any) -> None:
    """Write config.json with some fields changed; None stays null."""
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}), encoding="utf-8")


def test_good_folder_is_taken(folder: Path) -> None:
    """Path, config and sizes come back, and no revision is made up."""
    checkpoint = Checkpoint.resolve(folder)
    assert checkpoint == Checkpoint.resolve(str(folder))
    assert (checkpoint.path, checkpoint.config) == (folder, Phi3Config.parse(CONFIG))
    assert (checkpoint.source, checkpoint.revision, checkpoint.commit) == (str(folder), None, None)
    assert checkpoint.weights_bytes == (folder / "model.safetensors").stat().st_size


@pytest.mark.parametrize("rope", ["longrope", "su", "default"])
@pytest.mark.parametrize("field", ["rope_scaling", "rope_parameters"])
def test_known_rope_types_are_taken(folder: Path, rope: str, field: str) -> None:
    """LongRoPE by both names, in both styles of config."""
    write_config(folder, **{field: {"rope_type": rope}})
    longrope = rope != "default"
    assert Checkpoint.resolve(folder).config.has_longrope == longrope


BAD_CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "phi3small"}, "model_type='phi3small': Phi-3-small is another architecture"),
    ({"model_type": "phimoe"}, "architectures=.*does not name PhiMoEForCausalLM"),
    ({"model_type": "phi3_v"}, "model_type='phi3_v': .*pictures"),
    ({"model_type": "llama"}, "model_type='llama': phi3ov runs the Phi-3 architecture only"),
    ({"model_type": None}, "model_type=None"),
    (
        {"architectures": ["Phi3ForSequenceClassification"]},
        "architectures=.*SequenceClassification",
    ),
    ({"rope_scaling": {"type": "yarn"}}, "unknown rope type 'yarn'; known: default, longrope, su"),
    ({"rope_parameters": {"rope_type": "llama3"}}, "unknown rope type 'llama3'"),
    ({"rope_scaling": "longrope"}, "unknown rope type 'longrope'; known: default, longrope, su"),
    ({"num_key_value_heads": 3}, "num_key_value_heads=3 does not divide num_attention_heads=4"),
    *(
        ({name: value}, f"{name}={value!r} must be a positive integer")
        for name in (
            "hidden_size",
            "intermediate_size",
            "max_position_embeddings",
            "num_attention_heads",
            "num_hidden_layers",
            "vocab_size",
        )
        for value in (None, 0, -1, "64", 1.5, True)
    ),
]


@pytest.mark.parametrize(("changes", "message"), BAD_CONFIGS, ids=str)
def test_unsupported_config_names_field_and_value(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    """Every config that phi3ov cannot run is refused with what stands in it."""
    write_config(folder, **changes)
    with pytest.raises(UnsupportedModelError, match=f"config.json: {message}"):
        Checkpoint.resolve(folder)


def test_config_without_architectures_is_taken(folder: Path) -> None:
    """The model type alone is enough."""
    write_config(folder, architectures=None)
    assert Checkpoint.resolve(folder).config == Phi3Config.parse(CONFIG)


@pytest.mark.export
def test_a_vocabulary_whose_size_is_left_out_is_phi_3s(folder: Path) -> None:
    """As transformers takes it, which the base install does not have."""
    import transformers

    assert Checkpoint.resolve(folder).config.vocab_size == transformers.Phi3Config().vocab_size


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("{", ExportError, "is not JSON"),
        ("", ExportError, "is not JSON"),
        ("[]", UnsupportedModelError, "holds a list, not an object"),
        ("5", UnsupportedModelError, "holds a int"),
    ],
)
def test_config_that_is_no_object_is_refused(
    folder: Path, text: str, error: type[Phi3OVError], message: str
) -> None:
    """Broken JSON and other JSON are told apart."""
    (folder / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(error, match=message):
        Checkpoint.resolve(folder)


def test_missing_files_are_named(folder: Path) -> None:
    """Each missing file is named, with the way out where there is one."""
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ExportError, match=r"has no tokenizer\.json\.$"):
        Checkpoint.resolve(folder)
    (folder / "tokenizer.model").write_bytes(b"x")
    with pytest.raises(ExportError, match=r"has no tokenizer\.json \(it has a tokenizer\.model"):
        Checkpoint.resolve(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ExportError, match=r"has no config\.json and is not a checkpoint"):
        Checkpoint.resolve(folder)


def test_weights_must_be_safetensors(folder: Path) -> None:
    """Pickled weights can run code; none at all is told apart."""
    (folder / "model.safetensors").unlink()
    with pytest.raises(ExportError, match=r"no safetensors weights \(none\)"):
        Checkpoint.resolve(folder)
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ExportError, match=r"only pytorch_model.bin, and pickled weights can run"):
        Checkpoint.resolve(folder)


def test_revision_does_not_go_with_a_folder(folder: Path) -> None:
    """A revision that could only be ignored is refused."""
    with pytest.raises(ExportError, match="revision='main' goes with a hub id"):
        Checkpoint.resolve(folder, revision="main")


@pytest.mark.parametrize(
    "source",
    [
        "a/b/c",
        "../x",
        "./x",
        "x/..",
        "C:\\x",
        "C:/x",
        "name",
        "/no/such",
        "a/",
        "/a",
        "",
        Path("a/b"),
    ],
)
def test_neither_folder_nor_hub_id(source: str | Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be a hub id never reaches the hub."""
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_a, **_k: pytest.fail("hub"))
    monkeypatch.chdir(Path(__file__).parent)
    if source in ("", "./x"):
        source = "no-such-folder" if source == "" else source
    with pytest.raises(ExportError, match="is neither a folder nor a hub id"):
        Checkpoint.resolve(source)


def http_error(kind: type[errors.HfHubHTTPError]) -> errors.HfHubHTTPError:
    """Return one of the hub's errors as the hub would make it."""
    response: Any = SimpleNamespace(status_code=404, headers={}, request=None)
    return kind("it failed", response=response)  # the same with every HTTP client that it uses


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (http_error(errors.GatedRepoError), "owner/name is gated: accept its terms"),
        (http_error(errors.RevisionNotFoundError), "owner/name has no revision='v9'"),
        (http_error(errors.RepositoryNotFoundError), "no such local folder, and no such model"),
        (http_error(errors.HfHubHTTPError), r"could not be downloaded \(HfHubHTTPError: "),
        (errors.LocalEntryNotFoundError("offline"), "could not be downloaded.*HF_HUB_OFFLINE"),
        (errors.OfflineModeIsEnabled("offline"), "could not be downloaded"),
        (ConnectionResetError("cut off"), "interrupted download resumes"),
        (errors.HFValidationError("bad id"), "is neither a folder nor a hub id"),
        (
            httpx.ProxyError("no proxy"),
            r"\(ProxyError: no proxy\)\. Check the connection",
        ),
        (httpx.ReadError("reset"), r"\(ReadError: reset\).*interrupted download resumes"),
        (httpx.InvalidURL("odd"), "give a local folder"),
        (RuntimeError("xet: no route"), r"\(RuntimeError: xet: no route\)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_hub_errors_become_ours(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each way in which the hub fails has its own sentence, and the cause is kept."""

    def fail(*_args: object, **_options: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ExportError, match=message) as caught:
        Checkpoint.resolve("owner/name", revision="v9")
    assert caught.value.__cause__ is error


def test_downloaded_checkpoint_records_revision_and_commit(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The snapshot's folder is named by its commit; code and pickles are never fetched."""
    asked: dict[str, Any] = {}

    def download(
        repo_id: str,
        *,
        revision: str | None,
        allow_patterns: list[str],
        ignore_patterns: list[str],
    ) -> str:
        asked.update(repo_id=repo_id, revision=revision, patterns=allow_patterns)
        asked["ignored"] = ignore_patterns
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    checkpoint = Checkpoint.resolve("owner/name")
    assert (checkpoint.source, checkpoint.revision) == ("owner/name", "main")
    assert checkpoint.commit == folder.name
    assert (asked["repo_id"], asked["revision"]) == ("owner/name", None)
    assert not [one for one in asked["patterns"] if one.endswith((".py", ".bin", ".pt", "*"))]
    names = ["config.json", "a.safetensors", "original/b.safetensors", "a/b/config.json", "x.py"]
    wanted = _paths.filter_repo_objects(
        names, allow_patterns=asked["patterns"], ignore_patterns=asked["ignored"]
    )
    assert list(wanted) == ["config.json", "a.safetensors"], "sub-folders are never fetched"
    assert Checkpoint.resolve("owner/name", revision="v1").revision == "v1"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "header too small"),
        (b"\xff" * 8, "header too large"),
        ((2**40).to_bytes(8, "little") + b"{}", "header too large"),
        ((2).to_bytes(8, "little") + b"[]", "invalid JSON in header"),
        ((9).to_bytes(8, "little") + b'{"a":[1]}', "invalid JSON in header"),
        ((2).to_bytes(8, "little") + b"{}extra", "file not fully covered"),
    ],
)
def test_absurd_safetensors_are_refused(folder: Path, content: bytes, said: str) -> None:
    """A header that lies about sizes is found before anything allocates by it."""
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ExportError, match=re.escape(said)):
        Checkpoint.resolve(folder)


def test_a_cut_off_weight_file_is_refused(folder: Path) -> None:
    """A download that was cut off by hand is found by its size."""
    content = write_weights(folder / "model.safetensors", values=100)
    (folder / "model.safetensors").write_bytes(content[:-1])
    with pytest.raises(ExportError, match="it is not a whole safetensors file"):
        Checkpoint.resolve(folder)


def shard(folder: Path, *names: str) -> None:
    """Make the weights' single file the first of several that an index names."""
    (folder / "model.safetensors").rename(folder / names[0])
    index = {"weight_map": {f"weight {number}": name for number, name in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "missing.safetensors"])
def test_an_index_cannot_lead_out_of_the_folder(folder: Path, name: str) -> None:
    """Shard names are files of this folder, or the checkpoint is refused."""
    shard(folder, "model-1.safetensors", name)
    with pytest.raises(ExportError, match=re.escape(repr(name))):
        Checkpoint.resolve(folder)


@pytest.mark.export
def test_only_the_files_that_the_index_names_count(folder: Path) -> None:
    """Transformers reads no other, so another library's copy beside them gives no tensor."""
    shard(folder, "model-1.safetensors", "model-2.safetensors")
    write_config(folder, vocab_size=VOCABULARY)
    write_tensors(folder / "model-2.safetensors", TENSORS[1:])
    write_tensors(folder / "consolidated.safetensors", TENSORS)
    sizes = [(folder / f"model-{number}.safetensors").stat().st_size for number in (1, 2)]
    checkpoint = Checkpoint.resolve(folder)
    assert checkpoint.weights_bytes == sum(sizes)
    with pytest.raises(ExportError, match=f"has no tensors {re.escape(TENSORS[0])}\\."):
        checkpoint.check_tensors()
    write_tensors(folder / "model-1.safetensors", TENSORS[:1])
    checkpoint.check_tensors()


def test_a_single_file_goes_before_an_index(folder: Path) -> None:
    """As in transformers, which then does not look at the index."""
    shard(folder, "model-1.safetensors")
    write_tensors(folder / "model-1.safetensors", TENSORS)
    write_weights(folder / "model.safetensors")
    with pytest.raises(ExportError, match="has no tensors"):
        Checkpoint.resolve(folder).check_tensors()


def test_weights_by_another_name_are_refused(folder: Path) -> None:
    """Transformers would not find them."""
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    with pytest.raises(ExportError, match=r"only weights.safetensors\): neither model.safetensors"):
        Checkpoint.resolve(folder)


@pytest.mark.parametrize("text", ["[]", "{}", "not json", '{"weight_map": 3}'])
def test_a_broken_index_is_refused(folder: Path, text: str) -> None:
    """An index that is none is named."""
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    with pytest.raises(ExportError, match="not an index of weights"):
        Checkpoint.resolve(folder)


def whole(folder: Path, *, drop: str = "", add: str = "", **options: Any) -> Checkpoint:
    """Give the checkpoint its weights, with one tensor less or more; return it."""
    config = options.pop("config", {})
    write_config(folder, vocab_size=VOCABULARY, **config)
    names = [name for name in TENSORS if name != drop] + ([add] if add else [])
    write_tensors(folder / "model.safetensors", names, **options)
    return Checkpoint.resolve(folder)


@pytest.mark.trap(
    "A weight that is NaN or infinite, in any tensor and for every recipe, is refused by the "
    "tensor's name before any work.",
    about="Checkpoints",
)
@pytest.mark.export
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("value", [float("nan"), -float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(folder: Path, value: float, dtype: str) -> None:
    """One is enough, in a norm or in a matrix; the largest finite ones are fine."""
    for name in ("model.norm.weight", "model.layers.1.mlp.down_proj.weight"):
        checkpoint = whole(folder, values={name: value}, dtype=dtype)
        with pytest.raises(ExportError, match=f": {re.escape(name)} holds values that are NaN"):
            checkpoint.check_tensors()
    largest = float(np.finfo(dtype).max)
    names = {"model.norm.weight": largest, "lm_head.weight": -largest}
    checkpoint = whole(folder, values=names, dtype=dtype)
    assert checkpoint.check_tensors() == checkpoint


@pytest.mark.export
def test_bfloat16_values_are_looked_at_bit_by_bit(folder: Path) -> None:
    """Every finite bfloat16 is taken, and every other one refused."""
    import torch
    from safetensors.torch import save_file as save_torch_file

    write_config(folder, vocab_size=VOCABULARY)
    shapes = make_config(vocab_size=VOCABULARY).tensor_shapes()
    tensors = {name: torch.ones(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
    every = torch.arange(2**16).to(torch.uint16).view(torch.bfloat16)
    finite = every[torch.isfinite(every)]
    tensors["model.layers.0.mlp.gate_up_proj.weight"].view(-1)[:] = finite[: 256 * 64]
    for start in range(0, len(finite), 16384):
        part = finite[start : start + 16384]
        tensors["model.layers.0.mlp.gate_up_proj.weight"].view(-1)[: len(part)] = part
        save_torch_file(tensors, folder / "model.safetensors")
        Checkpoint.resolve(folder).check_tensors()
    bad = every[~torch.isfinite(every)]
    assert len(bad) == 2 * 128
    for value in bad[[0, 1, 127, 128, 129, 255]]:
        tensors["model.norm.weight"][7] = value
        save_torch_file(tensors, folder / "model.safetensors")
        with pytest.raises(ExportError, match=r"model\.norm\.weight holds"):
            Checkpoint.resolve(folder).check_tensors()


@pytest.mark.trap(
    "A model with tied embeddings may store the matrix under either name, or under both; where "
    "both differ, both are kept and a warning says so.",
    about="Checkpoints",
)
@pytest.mark.export
def test_a_tied_matrix_may_have_either_name(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As transformers reads it."""
    tied = {"tie_word_embeddings": True}
    for name in ("lm_head.weight", "model.embed_tokens.weight", ""):
        checkpoint = whole(folder, drop=name, config=tied)
        assert checkpoint.check_tensors() == checkpoint
        assert checkpoint.config.tie_word_embeddings
    assert caplog.text == ""
    checkpoint = whole(folder, config=tied, values={"lm_head.weight": 2.0})
    assert not checkpoint.check_tensors().config.tie_word_embeddings
    assert "model.embed_tokens.weight and lm_head.weight, and they differ" in caplog.text
    with pytest.raises(ExportError, match=r"has no tensors lm_head\.weight"):
        whole(folder, drop="lm_head.weight").check_tensors()


@pytest.mark.trap(
    "A tensor of another shape, or one that the architecture has no place for, such as a bias, is "
    "refused by name.",
    about="Checkpoints",
)
@pytest.mark.export
def test_tensors_that_do_not_fit_are_refused(folder: Path) -> None:
    """Transformers would drop a stranger and only warn; rotary frequencies are derived."""
    name = "model.layers.0.mlp.down_proj.weight"
    with pytest.raises(
        ExportError, match=r"down_proj\.weight has the shape \[64, 64\].*\[64, 128\]"
    ):
        whole(folder, model_layers_0_mlp_down_proj_weight=(64, 64)).check_tensors()
    bias = "model.layers.0.self_attn.qkv_proj.bias"
    with pytest.raises(ExportError, match=f"no place for, such as {re.escape(bias)}"):
        whole(folder, add=bias).check_tensors()
    whole(folder, add="model.layers.0.self_attn.rotary_emb.inv_freq").check_tensors()
    with pytest.raises(UnsupportedModelError, match=r"is stored as I8\. phi3ov compresses"):
        whole(folder, dtype="int8").check_tensors()
    assert name in TENSORS


QUANTIZED = [
    ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"by gptq \(4 bits\)"),
    ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "by awq"),
    (
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        r"by bitsandbytes \(4 bits\)",
    ),
    ({"quantization_config": {"quant_method": "compressed-tensors"}}, "by compressed-tensors"),
    ({"quantization": {"group_size": 64, "bits": 4}}, r"quantization: .* by MLX \(4 bits\)"),
    ({"compression_config": {"format": "pack-quantized"}}, "by an unnamed method"),
]


@pytest.mark.trap(
    "A checkpoint that is quantized already (GPTQ, AWQ, bitsandbytes, compressed-tensors, MLX) is "
    "refused by the method's name, before its weights are looked at.",
    about="Checkpoints",
)
@pytest.mark.parametrize(("changes", "said"), QUANTIZED, ids=str)
def test_quantized_checkpoints_are_refused(
    folder: Path, changes: dict[str, Any], said: str
) -> None:
    """With the way out."""
    write_config(folder, **changes)
    with pytest.raises(UnsupportedModelError, match=f"{said}.*Export the original 16-bit"):
        Checkpoint.resolve(folder)
    write_config(folder, quantization_config=None)
    Checkpoint.resolve(folder)


@pytest.mark.trap(
    "A LoRA adapter or a GGUF file in the place of a checkpoint is told as such, with the way out.",
    about="Checkpoints",
)
def test_what_is_no_checkpoint_is_named(folder: Path) -> None:
    """Not only that a file is missing."""
    (folder / "model.safetensors").rename(folder / "phi3-q4.gguf")
    with pytest.raises(ExportError, match=r"only phi3-q4\.gguf, which llama\.cpp has quantized"):
        Checkpoint.resolve(folder)
    (folder / "config.json").rename(folder / "adapter_config.json")
    with pytest.raises(ExportError, match=r"It is a LoRA adapter: export its base model"):
        Checkpoint.resolve(folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"attention_bias": True}, "attention_bias=True is not a Phi-3"),
        ({"mlp_bias": True}, "mlp_bias=True is not a Phi-3"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not a Phi-3"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "unknown rope type 'llama3'"),
    ],
)
def test_a_llama_that_is_no_phi_3_is_refused(
    folder: Path, changes: dict[str, Any], said: str
) -> None:
    """It computes something else; its weights in Phi-3's layout would answer nonsense."""
    llama = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    write_config(folder, **llama)
    assert Checkpoint.resolve(folder).llama
    write_config(folder, **llama | changes)
    with pytest.raises(UnsupportedModelError, match=said):
        Checkpoint.resolve(folder)
