"""The headers of safetensors files: names, shapes and types of tensors, read without torch."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class TensorHeader(NamedTuple):
    """What a safetensors file says of one tensor.

    Attributes:
        shape: Its shape.
        dtype: Its type as the format spells it, such as ``"BF16"``.
    """

    shape: tuple[int, ...]
    dtype: str


def read_headers(file: Path) -> dict[str, TensorHeader]:
    """Return the header of every tensor of a safetensors file, by the tensor's name.

    The library compares the header with the file's size, so a file that was cut off is found.

    Raises:
        ValueError: It is not a whole safetensors file. The message is a sentence without the
            file's name and without a full stop.
        OSError: It cannot be read.
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
