"""Weights of a graph in a memory-mapped file instead of process memory.

Compression creates new weights one by one, 2.8 GB for Phi-3-mini, and the graph holds all of them
until it is written. The kernel can reclaim the pages of a mapped file at any time. `give_back`
tells it which pages will not be read again.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import mmap
import re
import sys
from pathlib import Path
from typing import Any

_ALIGNMENT = 4096
"""Bytes of a memory page. Aligned to it, two weights never share a page."""

_WORTH_MOVING = 64 * 1024
"""Smallest constant in bytes that is moved to the file."""


class MappedConstants:
    """A file to which constants of a graph are moved.

    OpenVINO does not keep the mappings alive. Close this only when every graph that uses them is
    gone.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb")
        self._maps: list[Any] = []
        self.size_bytes: int = 0

    def take(self, constant: Any) -> None:
        """Replace ``constant`` in its graph by a mapped constant with the same content."""
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
        """Write the array ``values`` in OpenVINO's packed form, and map it as a tensor."""
        import numpy as np
        import openvino

        start = -(-self.size_bytes // _ALIGNMENT) * _ALIGNMENT
        self._file.seek(start)
        self._file.write(np.ascontiguousarray(values).data.cast("B"))
        self._file.flush()
        self.size_bytes = start + int(values.nbytes)
        # Copy on write, because OpenVINO accepts writable memory only. It never writes to it.
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


def give_back(address: int, size_bytes: int) -> None:
    """Tell the kernel that these bytes of a mapped file will not be read again.

    Their pages leave the process's resident memory; a later read loads them from the file again.
    This works on Linux, which lists a process's mappings, and does nothing elsewhere: memory that
    is not backed by a file would lose its content.
    """
    first = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (address + size_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if sys.platform == "linux" and first < end and _is_in_a_file(first, end):
        ctypes.CDLL(None).madvise(
            ctypes.c_void_p(first), ctypes.c_size_t(end - first), mmap.MADV_DONTNEED
        )


def free_unused() -> None:
    """Collect garbage, and have the allocator return what it keeps of freed memory to the system.

    Modules whose forward pass was replaced refer to themselves, so they wait for the collector.
    """
    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another allocator than glibc's
            ctypes.CDLL(None).malloc_trim(0)


def _is_in_a_file(first: int, end: int) -> bool:
    """Whether a single file mapping covers these addresses."""
    mappings = Path("/proc/self/maps")
    if not mappings.exists():
        return False
    for line in mappings.read_text(encoding="utf-8", errors="replace").splitlines():
        mapping = re.match(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ [1-9]\d* +/", line)  # inode, path
        if mapping and int(mapping[1], 16) <= first and end <= int(mapping[2], 16):
            return True
    return False
