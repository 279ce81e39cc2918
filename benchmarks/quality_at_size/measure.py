"""Divergence of a model from the source checkpoint, whose logits are computed once and kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from phi3ov import RuntimeConfig
from phi3ov.engine.logits import ExportedModel, Logits
from phi3ov.quality.logits import SourceModel
from phi3ov.quality.report import Tally

from .texts import Windows


class Model(Protocol):
    """What is compared."""

    def logits(self, ids: Sequence[int]) -> Logits:
        """Return the logits after each of ``ids``, starting from an empty context."""
        ...


def open_export(folder: Path, *, threads: int) -> Model:
    """Open an OpenVINO export, computed in float32 with no activation rounded."""
    return ExportedModel(folder, replace(RuntimeConfig.exact(), threads=threads))


def open_checkpoint(folder: Path) -> Model:
    """Open a checkpoint in transformers, computed in float32."""
    return SourceModel(folder)


class SourceLogits:
    """Logits of the source, computed when a text is first read and mapped from disk later."""

    def __init__(self, checkpoint: Path, folder: Path) -> None:
        """Keep files in ``folder``: 2 KB per value of the vocabulary and window of 512 tokens."""
        self._checkpoint = checkpoint
        self._folder = folder
        self._model: Model | None = None

    def read(self, windows: Windows) -> NDArray[np.float32]:
        """Return logits of shape [windows, tokens, vocabulary]."""
        file = self._folder / f"source-{windows.name}-{windows.sha256[:16]}.npy"
        if not file.exists():
            self._write(windows, file)
        return np.load(file, mmap_mode="r")  # type: ignore[no-any-return]

    def _write(self, windows: Windows, file: Path) -> None:
        model = self._model = self._model or open_checkpoint(self._checkpoint)
        unfinished = file.with_name(f"unfinished-{file.name}")
        kept = None
        for number, ids in enumerate(windows.ids):
            logits = model.logits(ids)
            if kept is None:
                shape = (len(windows.ids), *logits.shape)
                kept = open_memmap(unfinished, mode="w+", dtype=np.float32, shape=shape)
            kept[number] = logits
        del kept
        unfinished.replace(file)


def measure(model: Model, source: NDArray[np.float32], windows: Windows) -> dict[str, Any]:
    """Return the divergence of a model on one text.

    Args:
        model: What is compared.
        source: Of `SourceLogits.read`.
        windows: The same windows.
    """
    tally = Tally()
    for truth, ids in zip(source, windows.ids, strict=True):
        tally.add(truth, model.logits(ids), ids)
    found = tally.result()
    return {
        "mean_kl": round(found["mean_kl"], 6),
        "p99_kl": round(found["p99_kl"], 5),
        "perplexity": round(found["artifact_perplexity"], 4),
        "source_perplexity": round(found["source_perplexity"], 4),
        "same_first_choice": round(found["top1_agreement"], 5),
        "predictions": found["tokens"],
    }
