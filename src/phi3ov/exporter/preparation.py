"""What a recipe may run before the conversion, and what that shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .gptq import FittedWeight
from .sensitivity import LayerSensitivity


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What a recipe may use to run the checkpoint in torch.

    Attributes:
        folder: The checkpoint, with the layers that the graph will have.
        measured_samples: Token ids of `Recipe.measured_text`.
        samples: Token ids of `Recipe.calibration`.
        work: An existing folder for files that the export needs until it is done.
        follow: Reports the progress over a sequence under a name.
    """

    folder: Path
    measured_samples: Sequence[Sequence[int]]
    samples: Sequence[Sequence[int]]
    work: Path
    follow: Callable[[Sequence[Any], str], Iterator[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What running the checkpoint has shown; empty for recipes that need none of it.

    Attributes:
        measured: What was measured of each layer, by layer name.
        int4_layers: The layers that become int4; None lets NNCF choose.
        rounded: Weights that GPTQ has rounded, by layer name.
    """

    measured: Mapping[str, LayerSensitivity] = field(default_factory=dict)
    int4_layers: frozenset[str] | None = None
    rounded: Mapping[str, FittedWeight] = field(default_factory=dict)
