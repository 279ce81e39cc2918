"""Token ids to logits, for a checkpoint and for its export.

Both sides do float32 arithmetic unless told otherwise, so a difference between them comes from
the weights alone. Measuring the difference is ``quality.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ..artifact.folder import MODEL_XML, Artifact
from ..exporter.checkpoint import weight_files
from ..runtime.config import RuntimeConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Logits: TypeAlias = "NDArray[np.float32]"
"""Of shape [tokens, vocabulary]."""

EXACT = RuntimeConfig.exact()
"""Otherwise the CPU plugin rounds activations to 8 bits, and the cache to 16 or 8."""

_SMALL_BYTES = 2**30
"""Checkpoints up to this size are widened to float32 once, larger ones layer by layer."""

_WIDENED_VALUES = 2**20
"""Values of a weight matrix that are widened at once: 4 MB."""


class SourceModel:
    """The checkpoint in transformers, with arithmetic in float32 whatever its weights are in."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        from ..thirdparty.overrides import su_rope_accepted
        from ..thirdparty.tool_output import quiet_tools

        small = sum(file.stat().st_size for file in weight_files(folder)) <= _SMALL_BYTES
        with quiet_tools(), su_rope_accepted():
            self._model = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=torch.float32 if small else "auto",
                attn_implementation="sdpa",
                local_files_only=True,
            ).eval()
        for module in () if small else self._model.modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
                module.forward = _widened(module)

    def logits(self, ids: Sequence[int]) -> Logits:
        """Return the logits after each of ``ids``, read from an empty context."""
        import torch

        with torch.inference_mode():
            output = self._model(torch.tensor([list(ids)]), use_cache=False)
        return output.logits[0].numpy()  # type: ignore[no-any-return]

    def continuation(self, ids: Sequence[int]) -> Iterator[int]:
        """Yield greedy tokens for ever."""
        import torch

        cache, fed = None, list(ids)
        while True:
            with torch.inference_mode():
                output = self._model(torch.tensor([fed]), past_key_values=cache, use_cache=True)
            cache, fed = output.past_key_values, [int(output.logits[0, -1].argmax())]
            yield fed[0]


def _widened(module: Any) -> Callable[[Any], Any]:
    """Return the forward pass of a linear or embedding layer in float32, widened when used.

    Some rows at a time, so that the wide copy stays in the processor's cache.
    """
    import torch

    functions, weight = torch.nn.functional, module.weight
    if isinstance(module, torch.nn.Embedding):
        return lambda ids: functions.embedding(ids, weight).float()

    step = max(1, _WIDENED_VALUES // weight.shape[1])

    def linear(values: Any) -> Any:
        output = torch.empty(*values.shape[:-1], weight.shape[0])
        for start in range(0, weight.shape[0], step):
            rows = slice(start, start + step)
            output[..., rows] = functions.linear(values, weight[rows].float())
        return output if module.bias is None else output + module.bias.float()

    return linear


class ExportedModel:
    """The export in OpenVINO on the CPU.

    Attributes:
        properties: The OpenVINO properties that it was compiled with.
    """

    def __init__(self, folder: Path, config: RuntimeConfig = EXACT) -> None:
        import openvino

        from ..runtime.properties import device_settings
        from ..runtime.settings import passed_properties

        core = openvino.Core()
        # As the engines with paged attention: the answers' arithmetic is measured here.
        settings = device_settings(config, core, "CPU", artifact=Artifact.open(folder))
        self.properties: dict[str, str] = passed_properties(settings)
        compiled = core.compile_model(folder / MODEL_XML, "CPU", self.properties)
        self._names = {name for port in compiled.inputs for name in port.get_names()}
        self._request = compiled.create_infer_request()

    def logits(self, ids: Sequence[int]) -> Logits:
        """Return the logits after each of ``ids``, read from an empty context."""
        self._request.reset_state()
        return self._infer(ids, past=0)

    def continuation(self, ids: Sequence[int]) -> Iterator[int]:
        """Yield greedy tokens for ever."""
        self._request.reset_state()
        past, fed = 0, list(ids)
        while True:
            logits = self._infer(fed, past=past)
            past, fed = past + len(fed), [int(logits[-1].argmax())]
            yield fed[0]

    def _infer(self, ids: Sequence[int], *, past: int) -> Logits:
        import numpy as np

        total = past + len(ids)
        inputs = {
            "input_ids": np.asarray([ids], dtype=np.int64),
            "attention_mask": np.ones((1, total), dtype=np.int64),
            "position_ids": np.arange(past, total, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, dtype=np.int32),
        }
        self._request.infer({name: inputs[name] for name in inputs.keys() & self._names})
        return self._request.get_tensor("logits").data[0].copy()  # type: ignore[no-any-return]
