"""Constants of a graph kept in a file instead of in memory.

Compressing a model makes its new weights one by one, 2.8 GB of them for Phi-3-mini, and the
graph holds them all until it is written. A constant that lives in a mapped file costs no memory
that the kernel cannot take back.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

_ALIGNMENT = 4096
"""Bytes; a page, so that one weight's pages are its own."""

_WORTH_MOVING = 64 * 1024
"""Bytes; below, a constant stays where it is."""


class MappedConstants:
    """A file that takes constants over from memory.

    The mappings must outlive every graph that uses them: OpenVINO does not hold them itself.
    So close this after the graph is gone.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb")
        self._maps: list[Any] = []
        self.size_bytes: int = 0

    def take(self, constant: Any) -> None:
        """Put a mapped constant of the same content into the place of ``constant``."""
        import openvino.opset13 as ops

        if constant.get_byte_size() < _WORTH_MOVING:
            return
        mapped = ops.constant(
            self._store(constant.data, constant.get_output_shape(0), constant.get_element_type()),
            name=constant.get_friendly_name(),
            shared_memory=True,
        )
        for user in constant.output(0).get_target_inputs():
            user.replace_source_output(mapped.output(0))

    def constant(self, values: Any, name: str) -> Any:
        """Return a mapped constant of the array ``values``."""
        import openvino
        import openvino.opset13 as ops

        tensor = self._store(values, values.shape, openvino.Type(values.dtype))
        return ops.constant(tensor, name=name, shared_memory=True)

    def _store(self, values: Any, shape: Any, element_type: Any) -> Any:
        """Write the array ``values``, packed as OpenVINO packs it, and map it as a tensor."""
        import numpy as np
        import openvino

        start = -(-self.size_bytes // _ALIGNMENT) * _ALIGNMENT
        self._file.seek(start)
        self._file.write(np.ascontiguousarray(values).data.cast("B"))
        self._file.flush()
        self.size_bytes = start + int(values.nbytes)
        # Copy on write, because OpenVINO takes writable memory only. It never writes.
        mapped = np.memmap(
            self._path, dtype=values.dtype, mode="c", offset=start, shape=values.shape
        )
        self._maps.append(mapped)
        return openvino.Tensor(mapped, shape, element_type)

    def close(self) -> None:
        """Unmap and remove the file."""
        self._maps.clear()
        self._file.close()
        self._path.unlink()
