"""Reads the headers of safetensors files without torch: names, shapes and types of tensors."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class TensorHeader(NamedTuple):
    """Header of one tensor in a safetensors file.

    Attributes:
        shape: The tensor's shape.
        dtype: The tensor's type in the format's spelling, such as ``"BF16"``.
    """

    shape: tuple[int, ...]
    dtype: str


def read_headers(file: Path) -> dict[str, TensorHeader]:
    """Return the header of every tensor of a safetensors file, by tensor name.

    The library compares the header with the file's size, so it detects a truncated file.

    Raises:
        ValueError: The file is not a complete safetensors file. The message is a sentence without
            the file's name and without a full stop.
        OSError: The file cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            return {
                name: TensorHeader(tuple(tensor.get_shape()), tensor.get_dtype())
                for name, tensor in slices.items()
            }
    except SafetensorError as error:
        raise ValueError(f"it is not a whole safetensors file ({error})") from error
