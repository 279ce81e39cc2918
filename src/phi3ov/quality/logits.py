"""Logits of the source checkpoint; ``engine/logits.py`` computes those of the export.

Both compute in float32 by default, so a difference between them comes from the weights alone.
``report.py`` measures the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..engine.logits import Logits
from ..exporter.checkpoint import weight_files
from ..exporter.widened import widened_product

_SMALL_BYTES = 2**30
"""Checkpoints up to this size are widened to float32 once, larger ones layer by layer."""


class SourceModel:
    """The checkpoint in transformers, computed in float32 for any precision of its weights."""

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
                experts_implementation="eager",  # one expert at a time
                local_files_only=True,
            ).eval()
        for module in () if small else self._model.modules():
            if type(module) in (torch.nn.Linear, torch.nn.Embedding):
                module.forward = _widened(module)
            elif type(module).__name__ == "PhimoeExperts":
                _widen_experts(module)
            else:  # norms and routers, which are small
                for parameter in module.parameters(recurse=False):
                    parameter.data = parameter.data.float()

    def logits(self, ids: Sequence[int]) -> Logits:
        """Return the logits after each of ``ids``, starting from an empty context."""
        import torch

        with torch.inference_mode():
            output = self._model(torch.tensor([list(ids)]), use_cache=False)
        return output.logits[0].numpy()  # type: ignore[no-any-return]

    def continuation(self, ids: Sequence[int]) -> Iterator[int]:
        """Yield greedy tokens without end."""
        import torch

        cache, fed = None, list(ids)
        while True:
            with torch.inference_mode():
                output = self._model(torch.tensor([fed]), past_key_values=cache, use_cache=True)
            cache, fed = output.past_key_values, [int(output.logits[0, -1].argmax())]
            yield fed[0]


def _widened(module: Any) -> Callable[[Any], Any]:
    """Return a float32 forward pass of a linear or embedding layer that widens weights on use.

    It widens a few rows at a time, so that the float32 copy stays in the processor's cache.
    """
    import torch

    functions, weight = torch.nn.functional, module.weight
    if isinstance(module, torch.nn.Embedding):
        return lambda ids: functions.embedding(ids, weight).float()

    def linear(values: Any) -> Any:
        output = widened_product(values, weight)
        return output if module.bias is None else output + module.bias.float()

    return linear


class _WidenedExperts:
    """Stacked weights of experts, each of which is widened to float32 when it is read."""

    def __init__(self, stacked: Any) -> None:
        self._stacked = stacked

    def __getitem__(self, expert: Any) -> Any:
        return self._stacked[expert].float()


def _widen_experts(module: Any) -> None:
    """Let transformers' experts read their weights in float32, one expert at a time."""
    for name in ("gate_up_proj", "down_proj"):
        stacked = getattr(module, name).data
        delattr(module, name)
        setattr(module, name, _WidenedExperts(stacked))
