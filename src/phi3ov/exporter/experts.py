"""Mixtures of experts (``phimoe``): their stored tensors, and modules that optimum can trace.

A checkpoint stores each expert of each block on its own (``block_sparse_moe.experts.7.w1``).
transformers stacks the experts of a block in memory, and optimum's own patch then widens them to
float32: four bytes per parameter before compression has begun. Here the stacked matrices are
written to a file first, and `StackedExperts` takes the place of transformers' module while optimum
loads and traces the model. Its matrices stay mapped files in 16 bits, and the traced graph is the
one that OpenVINO compiles to kernels which read the chosen experts alone.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..family import Phi3Config
from ..thirdparty.overrides import replaced
from .restacking import write_config, write_joined
from .tensors import HEAD, CheckpointTensors

_STORED = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
"""Names of an expert's matrices in checkpoints, by the names of the stacked ones."""


def stored_parts(config: Phi3Config) -> dict[str, tuple[str, ...]]:
    """Return the names of the stored tensors that make up each tensor of the model, by its name."""
    names = [*config.tensor_shapes()]
    names += {HEAD} - {*names}  # a tied matrix may be stored under either name
    return {name: _parts_of(name, config.num_local_experts) for name in names}


def stored_shapes(config: Phi3Config) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor that a checkpoint stores, by its name."""
    return {
        part: shape[1:] if ".experts." in name else shape
        for name, shape in config.tensor_shapes().items()
        for part in _parts_of(name, config.num_local_experts)
    }


def write_stacked(
    tensors: CheckpointTensors,
    values: Mapping[str, Any],
    config: Phi3Config,
    folder: Path,
    follow: Callable[[Iterable[str], str], Iterable[str]],
) -> None:
    """Write the checkpoint with stacked experts: weights and config.json.

    Args:
        tensors: The weights as they are stored.
        values: The content of config.json.
        config: Its dimensions.
        folder: An existing, empty folder.
        follow: Reports progress: takes the items and a name of the pass, and yields the items.
    """
    import torch

    write_config(values, folder)
    write_joined(
        tensors,
        stored_parts(config),
        folder,
        join=torch.stack,
        follow=lambda new: follow(new, "Stacking experts"),
    )


def _parts_of(name: str, experts: int) -> tuple[str, ...]:
    """Return the names of the stored tensors that make up the tensor ``name`` of the model."""
    block, _, part = name.partition(".mlp.")
    if part == "router.weight":
        return (f"{block}.block_sparse_moe.gate.weight",)
    if part.startswith("experts."):
        matrix = _STORED[part.split(".")[1]]
        return tuple(
            f"{block}.block_sparse_moe.experts.{expert}.{matrix}.weight"
            for expert in range(experts)
        )
    return (name,)


@contextlib.contextmanager
def traceable_experts() -> Iterator[None]:
    """Let transformers build `StackedExperts` instead of its own experts, in this thread."""
    modeling = importlib.import_module("transformers.models.phimoe.modeling_phimoe")
    with replaced(modeling, "PhimoeExperts", _build_experts):
        yield


def _build_experts(config: Any) -> Any:
    """Return a module with the experts of one block, for tracing by OpenVINO.

    Every token is multiplied with every expert, and the routing weights of experts that were not
    chosen are 0. OpenVINO finds this pattern and compiles it to kernels that leave those out.
    """
    import torch
    from transformers.activations import ACT2FN

    class StackedExperts(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.experts = config.num_local_experts
            self.act_fn = ACT2FN[config.hidden_act]
            hidden, inner = config.hidden_size, config.intermediate_size
            self.gate_proj = _stacked_linear(self.experts, inner, hidden)
            self.up_proj = _stacked_linear(self.experts, inner, hidden)
            self.down_proj = _stacked_linear(self.experts, hidden, inner)

        def forward(self, hidden_states: Any, chosen: Any, weights: Any) -> Any:
            tokens, width = hidden_states.shape
            routing = torch.zeros(tokens, self.experts, dtype=hidden_states.dtype)
            routing.scatter_(dim=1, index=chosen, src=weights.to(hidden_states.dtype))
            repeated = hidden_states.repeat(self.experts, 1).view(self.experts, -1, width)
            inner = self.act_fn(self.gate_proj(repeated)) * self.up_proj(repeated)
            outputs = self.down_proj(inner).view(self.experts, tokens, width)
            return (outputs * routing.transpose(0, 1).view(self.experts, tokens)[..., None]).sum(0)

    return StackedExperts()


def _stacked_linear(experts: int, outputs: int, inputs: int) -> Any:
    """Return a Linear whose weight has the shape [experts, outputs, inputs].

    It is a plain Linear because OpenVINO traces those in 16 bits, and other modules in 32.
    """
    import torch

    linear = torch.nn.Linear(inputs, outputs, bias=False, device="meta")
    linear.weight = torch.nn.Parameter(torch.empty(experts, outputs, inputs))
    linear.forward = lambda values: torch.matmul(values, linear.weight.transpose(1, 2))
    return linear
