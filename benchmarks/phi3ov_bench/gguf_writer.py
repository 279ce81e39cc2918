"""A Phi-3 checkpoint as GGUF, with the ``gguf`` package; llama.cpp quantizes it.

Names and metadata are those that llama.cpp's ``phi3`` architecture reads. There is no tokenizer in
it: the benchmark gives token ids.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np

_LAYER_NAMES = {
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_OUTER_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def write_gguf(checkpoint: Path, target: Path, *, exact: bool = False) -> None:
    """Write the checkpoint's tensors and metadata to ``target``.

    Args:
        checkpoint: A folder with ``config.json`` and safetensors files.
        target: The file.
        exact: Store matrices as float32, which holds bfloat16 without loss, instead of float16.
    """
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(target, "phi3", use_temp_file=False)
    _add_metadata(writer, config)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32 if exact else gguf.LlamaFileType.MOSTLY_F16)
    for name, values in _tensors(checkpoint):
        narrow = values.ndim > 1 and not exact
        writer.add_tensor(gguf_name(name), values.astype(np.float16 if narrow else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_metadata(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    head = config["hidden_size"] // config["num_attention_heads"]
    writer.add_name("phi3ov benchmark")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_rope_scaling_orig_ctx_len(config["original_max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_sliding_window(config["sliding_window"] or 0)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")


def _tensors(checkpoint: Path) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """Yield each tensor, mapped, and bfloat16 widened to float32."""
    for file in sorted(checkpoint.glob("*.safetensors")):
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
        data = np.memmap(file, dtype=np.uint8, mode="r", offset=8 + length)
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            start, end = entry["data_offsets"]
            raw = data[start:end]
            if entry["dtype"] == "BF16":
                values = (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
            else:
                values = raw.view({"F16": np.float16, "F32": np.float32}[entry["dtype"]])
            yield name, values.reshape(entry["shape"])


def gguf_name(name: str) -> str:
    """Return what llama.cpp calls a tensor of the checkpoint.

    Example:
        >>> gguf_name("model.layers.3.self_attn.qkv_proj.weight")
        'blk.3.attn_qkv.weight'
    """
    if name in _OUTER_NAMES:
        return _OUTER_NAMES[name]
    _, _, number, rest = name.split(".", 3)
    return f"blk.{number}.{_LAYER_NAMES[rest.removesuffix('.weight')]}.weight"


def bytes_per_token(file: Path) -> int:
    """Return how many bytes of a GGUF's weights one token reads.

    That is all but the table of embeddings, of which it reads one row, unless the table is the
    output matrix as well.
    """
    sizes = {str(tensor.name): int(tensor.n_bytes) for tensor in gguf.GGUFReader(file).tensors}
    if "output.weight" in sizes:
        del sizes["token_embd.weight"]
    return sum(sizes.values())
