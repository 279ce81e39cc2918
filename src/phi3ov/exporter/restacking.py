"""Writes a checkpoint's weights under other names, with several matrices joined to one.

`llama` and `experts` say which tensors are joined. Whole tensors are read and written one by one,
so the memory needed is that of a shard of 1 GB.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .tensors import CheckpointTensors

_SHARD_BYTES = 10**9


def write_config(values: Mapping[str, Any], folder: Path) -> None:
    """Write a ``config.json``."""
    text = json.dumps(values, indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8", newline="\n")


def write_joined(
    tensors: CheckpointTensors,
    parts: Mapping[str, Sequence[str]],
    folder: Path,
    *,
    join: Callable[[list[Any]], Any],
    follow: Callable[[Iterable[str]], Iterable[str]],
) -> None:
    """Write the weights as safetensors files with an index.

    Args:
        tensors: The weights as they are stored.
        parts: Names of the stored tensors that make up each new one, in order, by the new name.
            A new tensor of which no part is stored is left out.
        folder: An existing, empty folder.
        join: Makes one torch tensor of two or more.
        follow: Reports progress: takes the new names, and yields them.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    index: dict[str, str] = {}
    shard: dict[str, Any] = {}

    def flush() -> None:
        name = f"model-{len(set(index.values())) + 1:05}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        index.update(dict.fromkeys(shard, name))
        shard.clear()

    def load(name: str) -> Any:
        with safe_open(tensors.files[name], framework="pt") as opened:
            return opened.get_tensor(name)

    for name in follow(parts):
        stored = [part for part in parts[name] if part in tensors.files]
        if not stored:
            continue
        shard[name] = join([load(part) for part in stored]) if stored[1:] else load(stored[0])
        if sum(tensor.nbytes for tensor in shard.values()) >= _SHARD_BYTES:
            flush()
    if shard:
        flush()
    text = json.dumps({"metadata": {}, "weight_map": index}, indent=2) + "\n"
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8", newline="\n")
