"""The tensors of a checkpoint, checked before any work: their names, shapes, types and values.

transformers initializes missing tensors at random, drops unknown ones, and computes with NaN and
infinite values. In each case the export would succeed and the model would answer nonsense.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ExportError, UnsupportedModelError
from ..weight_files import TensorHeader, read_headers

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

_LAST_FINITE = {"F16": (16, 0x7BFF), "BF16": (16, 0x7F7F), "F32": (32, 0x7F7FFFFF)}
"""Accepted weight types: bits per value, and the bit pattern of the largest finite value."""

_DERIVED = (".rotary_emb.inv_freq",)
"""Name suffixes of tensors that some checkpoints store although the model recomputes them."""


@dataclass(frozen=True, slots=True)
class CheckpointTensors:
    """The tensors that a checkpoint's weight files hold.

    Attributes:
        folder: The checkpoint's folder, named in error messages.
        headers: Shape and type of each tensor, by tensor name.
        files: The file that holds each tensor, by tensor name.
    """

    folder: Path
    headers: Mapping[str, TensorHeader]
    files: Mapping[str, Path]

    @classmethod
    def read(cls, folder: Path, files: tuple[Path, ...]) -> CheckpointTensors:
        """Read the headers of a checkpoint's weight files.

        Raises:
            ExportError: A file is damaged.
        """
        headers: dict[str, TensorHeader] = {}
        places: dict[str, Path] = {}
        for file in files:
            try:
                found = read_headers(file)
            except (OSError, ValueError) as error:
                raise ExportError(f"{file}: {error}.") from error
            headers |= found
            places |= dict.fromkeys(found, file)
        return cls(folder, headers, places)

    def check(self, expected: Mapping[str, tuple[int, ...]]) -> None:
        """Compare names, shapes and types with those that the architecture needs.

        A model with tied embeddings may store the shared matrix under either name, or under both.

        Args:
            expected: The shape of every tensor, by its name; without `HEAD` for tied embeddings.

        Raises:
            ExportError: Tensors are missing, unexpected, or of another shape; names them.
            UnsupportedModelError: A tensor is not float16, bfloat16 or float32.
        """
        tied = HEAD not in expected
        stored = set(self.headers)
        needed = set(expected)
        if tied and HEAD in stored:
            needed = needed - {EMBEDDING} if EMBEDDING not in stored else needed
            stored.discard(HEAD)
        self._refuse(needed - stored, "has no tensors {}")
        self._refuse(
            {name for name in stored - set(expected) if not name.endswith(_DERIVED)},
            "holds tensors that a Phi-3 has no place for, such as {}, so its answers would be "
            "those of another model",
        )
        for name, header in self.headers.items():
            if name.endswith(_DERIVED):
                continue
            shape = expected[EMBEDDING if name == HEAD and tied else name]
            if header.shape != shape:
                raise ExportError(
                    f"{self.folder}: {name} has the shape {list(header.shape)}, config.json asks "
                    f"for {list(shape)}."
                )
            if header.dtype not in _LAST_FINITE:
                raise UnsupportedModelError(
                    f"{self.folder}: {name} is stored as {header.dtype}. phi3ov compresses "
                    f"checkpoints in {', '.join(_LAST_FINITE)}; export the original one."
                )

    def _refuse(self, names: set[str], sentence: str) -> None:
        if names:
            found = sorted(names)
            more = f" and {len(found) - 4} more" if len(found) > 4 else ""
            raise ExportError(f"{self.folder} {sentence.format(', '.join(found[:4]) + more)}.")

    def check_values(self) -> None:
        """Check that all values are finite. Reads every weight file once.

        Raises:
            ExportError: Tensors hold NaN or infinite values; names the tensors.
        """
        wrong = [
            name
            for name, tensor in self.values()
            if not _is_finite(tensor, self.headers[name].dtype)
        ]
        if wrong:
            more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
            raise ExportError(
                f"{self.folder}: {', '.join(wrong[:4])}{more} holds values that are NaN or "
                "infinite, so every answer would be garbage. Download the checkpoint again, or "
                "repair it."
            )

    def values(self) -> Iterator[tuple[str, Any]]:
        """Yield each stored tensor by name, memory-mapped as a torch tensor; skips derived ones."""
        from safetensors import safe_open

        for file in dict.fromkeys(self.files.values()):
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - not a mapping
                    if self.files[name] == file and not name.endswith(_DERIVED):
                        yield name, opened.get_tensor(name)

    def has_own_head(self) -> bool:
        """Whether the files store both an embedding and an output layer, and the two differ."""
        import torch
        from safetensors import safe_open

        if not {EMBEDDING, HEAD} <= self.headers.keys():
            return False
        with (
            safe_open(self.files[EMBEDDING], framework="pt") as first,
            safe_open(self.files[HEAD], framework="pt") as second,
        ):
            return not torch.equal(first.get_tensor(EMBEDDING), second.get_tensor(HEAD))


def _is_finite(tensor: Any, dtype: str) -> bool:
    """Whether all values are finite, checked on their bit patterns in two passes without a copy.

    The exponent bits of infinities and NaN are all ones. As an integer, such a pattern is larger
    than that of the largest finite value: read as signed for positive values, as unsigned for
    negative ones.
    """
    import numpy as np
    import torch

    bits, last = _LAST_FINITE[dtype]
    if not tensor.numel():
        return True
    signed = tensor.reshape(-1).view(torch.int16 if bits == 16 else torch.int32).numpy()
    unsigned = signed.view(np.uint16 if bits == 16 else np.uint32)
    return bool(signed.max() <= last and unsigned.max() <= last + (1 << (bits - 1)))
