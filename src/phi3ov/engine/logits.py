"""Logits of an export after each token, and the divergence of two predictions.

Engines return tokens only. Logits are needed to compare an export with its source (``quality/``)
or one setting with another (``machine/``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import openvino
from numpy.typing import NDArray

from ..artifact.folder import MODEL_XML, Artifact
from ..runtime.config import RuntimeConfig
from ..runtime.properties import device_settings
from ..runtime.settings import passed_properties
from ..runtime.tuning import TunedSettings

_PART_TOKENS = 128
"""Tokens of a prompt that are read at once where their logits are not asked for."""

Logits: TypeAlias = NDArray[np.float32]
"""Logits of shape [tokens, vocabulary]."""


class ExportedModel:
    """The export in OpenVINO on the CPU.

    Attributes:
        properties: The OpenVINO properties that it was compiled with.

    Raises:
        ArtifactError: The folder's files have changed since the export.
        OptionError: The CPU does not support a field of ``config``.
    """

    def __init__(
        self, folder: Path, config: RuntimeConfig, *, tuned: TunedSettings | None = None
    ) -> None:
        core = openvino.Core()
        # Same settings as the engines with paged attention, to measure the arithmetic of answers.
        settings = device_settings(config, core, "CPU", artifact=Artifact.open(folder), tuned=tuned)
        self.properties: dict[str, str] = passed_properties(settings)
        compiled = core.compile_model(folder / MODEL_XML, "CPU", self.properties)
        self._names = {name for port in compiled.inputs for name in port.get_names()}
        self._request = compiled.create_infer_request()

    def logits(self, ids: Sequence[int]) -> Logits:
        """Return the logits after each of ``ids``, starting from an empty context."""
        self._request.reset_state()
        return self._infer(ids, past=0)

    def answer_logits(self, prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> Logits:
        """Return the logits from which each of ``answer_ids`` is drawn, after a prompt.

        The prompt is read in parts whose logits are dropped, which bounds the memory.

        Args:
            prompt_ids: At least one token.
            answer_ids: At least one token.
        """
        self._request.reset_state()
        before = prompt_ids[:-1]
        for start in range(0, len(before), _PART_TOKENS):
            self._infer(before[start : start + _PART_TOKENS], past=start)
        return self._infer([*prompt_ids[-1:], *answer_ids[:-1]], past=len(before))

    def continuation(self, ids: Sequence[int]) -> Iterator[int]:
        """Yield greedy tokens without end."""
        self._request.reset_state()
        past, fed = 0, list(ids)
        while True:
            logits = self._infer(fed, past=past)
            past, fed = past + len(fed), [int(logits[-1].argmax())]
            yield fed[0]

    def _infer(self, ids: Sequence[int], *, past: int) -> Logits:
        total = past + len(ids)
        inputs = {
            "input_ids": np.asarray([ids], dtype=np.int64),
            "attention_mask": np.ones((1, total), dtype=np.int64),
            "position_ids": np.arange(past, total, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, dtype=np.int32),
        }
        self._request.infer({name: inputs[name] for name in inputs.keys() & self._names})
        return self._request.get_tensor("logits").data[0].copy()  # type: ignore[no-any-return]


def log_probabilities(logits: Logits) -> NDArray[np.float64]:
    """Return the log-softmax of each row, in float64."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def divergence(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return KL(p || q) of each row of log-probabilities, in nats, at least 0."""
    kl: NDArray[np.float64] = (np.exp(p) * (p - q)).sum(axis=1)
    return np.maximum(kl, 0.0)  # rounding may leave -1e-17
