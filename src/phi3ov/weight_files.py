"""Safetensors files without torch: a header read, and checked before anything believes it.

The format: https://huggingface.co/docs/safetensors. Eight bytes of length, so many bytes of JSON,
then the tensors.
"""

from __future__ import annotations

import json
from pathlib import Path

_MOST_HEADER_BYTES = 100_000_000
"""The format's own limit."""


def read_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a safetensors file, by its name.

    Raises:
        ValueError: It is no whole safetensors file: a header that lies about sizes, or a file
            that was cut off. The message is a sentence without the file's name.
        OSError: It cannot be read.
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if size < 8 or length > min(size - 8, _MOST_HEADER_BYTES):
            raise ValueError(f"a header of {length} bytes in a file of {size} bytes")
        text = opened.read(length)
    try:
        tensors = {name: one for name, one in json.loads(text).items() if name != "__metadata__"}
        last = max((int(one["data_offsets"][1]) for one in tensors.values()), default=0)
        shapes = {name: tuple(map(int, one["shape"])) for name, one in tensors.items()}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ValueError(f"its safetensors header cannot be read: {error!r}") from error
    if 8 + length + last != size:
        raise ValueError(
            f"{size} bytes instead of the {8 + length + last} that its header announces"
        )
    return shapes
