"""Measures how much int4 in each layer changes the model's predictions.

The change is the divergence KL(checkpoint || compressed), in nats per token. To second order, the
divergence that an error ``e`` in a layer's output causes is half the mean of ``(g * e) ** 2``,
where ``g`` is the gradient of the log-probability of a token that is drawn from the model's own
prediction (the Fisher information). `measure_sensitivity` reads a short text once, forward and
backward, and gets that number for all layers together. Errors of different outputs and tokens are
taken as independent.

The weights stay in the checkpoint's mapped files and are widened to float32 some rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .widened import linear_layers, load_mapped, row_parts, widened_product

if TYPE_CHECKING:
    from torch import Tensor

SAMPLES = 4
"""Number of pieces of text that are read, evenly spread over the text."""

SAMPLE_TOKENS = 32
"""Tokens of each piece. 128 tokens give the error that 2 048 do (decision 90)."""

_ROW_STEP, _MANY_ROWS = 4, 512
"""Every fourth row of a matrix is rounded, if it has this many: rounding takes most of the time."""

_SEED = 0
"""Seed of the drawn tokens, so that two exports choose alike."""

_EMBEDDING, _HEAD = "model.embed_tokens", "lm_head"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSensitivity:
    """What was measured of one layer.

    Attributes:
        effect: Divergence that int4 in this layer alone causes, in nats per token.
        moments: Mean square of each column's input, float32 of shape [columns]; None for an
            embedding whose input is a token id alone.
    """

    effect: float
    moments: Any


def measure_sensitivity(
    checkpoint: Path,
    samples: Sequence[Sequence[int]],
    rounded: Callable[[Tensor, Any], Tensor],
    follow: Callable[[Sequence[Any], str], Iterator[Any]],
) -> dict[str, LayerSensitivity]:
    """Measure every linear layer and the embedding of a checkpoint in Phi-3's layout.

    Args:
        checkpoint: The folder of the checkpoint.
        samples: Token ids, all of one length of at least 2.
        rounded: Rounds rows of a weight, float32 of shape [rows, columns], given the mean square
            of each column's input (None if there is no such input).
        follow: Reports the progress over a sequence under a name.

    Returns:
        The measurement of each layer by its name in the checkpoint, without ``.weight``. Tied
        embeddings appear once, as ``model.embed_tokens``, with the effects of both uses.
    """
    import torch

    model = load_mapped(checkpoint)
    embedding = model.get_input_embeddings()
    tied = model.get_output_embeddings().weight is embedding.weight
    meters = {_EMBEDDING: _Meter(embedding.weight, rounded)}
    for name, module in linear_layers(model).items():
        meter = _Meter(module.weight, rounded)
        meter = meters.setdefault(_EMBEDDING if tied and name == _HEAD else name, meter)
        module.forward = _measured_linear(module, meter)
    embedding.forward = _measured_lookup(meters[_EMBEDDING])

    ids = torch.tensor([list(sample) for sample in samples])
    for passes in follow(("forward", "backward"), "Measuring the layers"):
        if passes == "forward":
            with (
                torch.enable_grad(),
                torch.autograd.graph.saved_tensors_hooks(_narrowed, _widened),
            ):
                likelihood = _likelihood_of_drawn_tokens(model(ids, use_cache=False).logits)
        else:
            likelihood.backward()
    return {name: meter.result(ids.numel()) for name, meter in meters.items()}


def _likelihood_of_drawn_tokens(logits: Tensor) -> Tensor:
    """Draw a token from each prediction and return the sum of their log-probabilities."""
    import torch

    likely = logits.flatten(0, -2).float().log_softmax(-1)
    drawn = torch.multinomial(
        likely.detach().exp(), 1, generator=torch.Generator().manual_seed(_SEED)
    )
    return likely.gather(1, drawn).sum()


class _Meter:
    """Sums the squared effects of one weight matrix, and the squares of its inputs."""

    def __init__(self, weight: Tensor, rounded: Callable[[Tensor, Any], Tensor]) -> None:
        self.weight = weight
        self._rounded = rounded
        self._squares = 0.0
        self._moments: Any = None
        self._inputs = 0

    def add_inputs(self, inputs: Tensor) -> None:
        """Add inputs of shape [tokens, columns]."""
        moments = inputs.square().sum(0)
        self._moments = moments if self._moments is None else self._moments + moments
        self._inputs += len(inputs)

    def add_error(self, error: Tensor, gradient: Tensor, *, share: float = 1.0) -> None:
        """Add an error in a share of the outputs, with the gradient there."""
        self._squares += float((error * gradient).square().sum()) / share

    def error_of(self, rows: Tensor) -> Tensor:
        """Return the error of int4 in rows of the weight."""
        return self._rounded(rows, self.moments) - rows

    @property
    def moments(self) -> Any:
        """Mean square of each column's input; None if there was none."""
        return None if self._moments is None else self._moments / self._inputs

    def result(self, tokens: int) -> LayerSensitivity:
        """Return the measurement over so many tokens."""
        moments = None if self.moments is None else self.moments.numpy()
        return LayerSensitivity(effect=0.5 * self._squares / tokens, moments=moments)


def _measured_linear(module: Any, meter: _Meter) -> Callable[[Tensor], Tensor]:
    """Return a forward pass of a linear layer that measures itself in the backward pass.

    The weight has the shape [outputs, inputs]; that of stacked experts has one dimension before.
    """
    import torch

    weight, bias = meter.weight, module.bias
    stacked = weight.dim() == 3
    step = _ROW_STEP if len(weight.flatten(0, -2)) >= _MANY_ROWS else 1

    def per_matrix(values: Tensor) -> Tensor:
        return values if stacked else values.reshape(1, -1, values.shape[-1])

    class Measured(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(context: Any, inputs: Tensor) -> Tensor:
            context.save_for_backward(inputs)
            meter.add_inputs(inputs.flatten(0, -2))
            product = widened_product(inputs, weight)
            return product if bias is None else product + bias.float()

        @staticmethod
        def backward(context: Any, gradients: Tensor) -> Tensor:
            (inputs,) = context.saved_tensors
            back = torch.zeros_like(per_matrix(inputs))
            stack = zip(
                per_matrix(inputs), per_matrix(gradients), weight if stacked else (weight,),
                strict=True,
            )  # fmt: skip
            for number, (values, gradient, matrix) in enumerate(stack):
                start = 0
                for part in row_parts(matrix):
                    rows, slopes = part.float(), gradient[:, start : start + len(part)]
                    start += len(part)
                    some = slice(None, None, step)
                    error = values @ meter.error_of(rows[some]).T
                    meter.add_error(error, slopes[:, some], share=1 / step)
                    back[number] += slopes @ rows
            return back.reshape(inputs.shape)

    return lambda inputs: Measured.apply(inputs.float())


def _measured_lookup(meter: _Meter) -> Callable[[Tensor], Tensor]:
    """Return a forward pass of the embedding that measures itself in the backward pass."""
    import torch

    def forward(ids: Tensor) -> Tensor:
        rows = meter.weight[ids].float()
        rows.requires_grad_()

        def measure(gradient: Tensor) -> None:
            with torch.no_grad():
                error = meter.error_of(rows.flatten(0, -2))
                meter.add_error(error, gradient.flatten(0, -2))

        rows.register_hook(measure)
        return rows

    return forward


def _narrowed(tensor: Tensor) -> tuple[Any, Tensor]:
    """Keep activations for the backward pass in 16 bits: half the memory."""
    import torch

    return tensor.dtype, tensor.bfloat16() if tensor.dtype == torch.float32 else tensor


def _widened(kept: tuple[Any, Tensor]) -> Tensor:
    dtype, tensor = kept
    return tensor.to(dtype)
