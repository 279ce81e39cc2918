"""Weight compression recipes: values that check, apply, verify and describe themselves.

Each kind of compression is a class that implements `Recipe`: int4, int8 and fp16. A new kind is
one more class and a line in `_NAMED`; a named int4 recipe is a line in `PRESETS`. `compress`
rewrites the weights; ``docs/recipes.md`` says when to use which recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ..artifact.ir import WeightLayer, is_router
from ..errors import CompressionError, OptionError
from .calibration import Calibration
from .checkpoint import Checkpoint
from .compress import GraphWeights
from .int4 import FLOATS, Int4Compression
from .preparation import Bench, Prepared

if TYPE_CHECKING:
    pass


class Recipe(Protocol):
    """Interface of every kind of compression."""

    @property
    def calibration(self) -> Calibration | None:
        """The calibration text; None if the recipe is not data-aware."""
        ...

    @property
    def measured_text(self) -> Calibration | None:
        """The text on which `sensitivity` measures the layers; None if the recipe does not ask."""
        ...

    @property
    def rounds_by_gptq(self) -> bool:
        """Whether phi3ov's own GPTQ runs on the calibration text."""
        ...

    def bits(self, checkpoint: Checkpoint) -> float:
        """Return an upper bound of the resulting bits per weight, scales included."""
        ...

    def check(self, checkpoint: Checkpoint) -> None:
        """Check, before any work, that the recipe fits the model's layers.

        Raises:
            CompressionError: The recipe does not fit; names the layers.
        """
        ...

    def prepare(self, checkpoint: Checkpoint, bench: Bench) -> Prepared:
        """Run the checkpoint on text, as far as the recipe needs that, before it is converted."""
        ...

    def apply(self, weights: GraphWeights, prepared: Prepared) -> None:
        """Rewrite a graph's weights.

        Args:
            weights: The graph's weights.
            prepared: What `prepare` returned.

        Raises:
            CompressionError: The recipe does not fit the model.
        """
        ...

    def verify(self, layers: Sequence[WeightLayer]) -> None:
        """Check that the weights of an exported IR match the recipe.

        Raises:
            CompressionError: They differ; names the layers.
        """
        ...

    def describe(self, samples: Sequence[Sequence[int]] = ()) -> dict[str, Any]:
        """Return the recipe as the manifest records it: everything but the text itself."""
        ...


@dataclass(frozen=True, slots=True)
class Int8Compression:
    """Every weight matrix in 8 bits with zero points, one scale per row."""

    calibration: None = None
    measured_text: None = None
    rounds_by_gptq: bool = False

    def prepare(self, checkpoint: Checkpoint, bench: Bench) -> Prepared:  # noqa: ARG002
        """Return nothing: this recipe does not run the checkpoint."""
        return Prepared()

    def bits(self, checkpoint: Checkpoint) -> float:  # noqa: ARG002
        """Return the bits per weight with scales."""
        return 8.5

    def check(self, checkpoint: Checkpoint) -> None:
        """Accept every model: a row of any width has one scale."""

    def apply(self, weights: GraphWeights, prepared: Prepared) -> None:  # noqa: ARG002
        """Rewrite a graph's weights by NNCF."""
        weights.compress_to_int8(ignores=is_router)

    def verify(self, layers: Sequence[WeightLayer]) -> None:
        """Check that every layer is int8.

        Raises:
            CompressionError: A layer has another precision; names the layers.
        """
        _require_precision(layers, "int8")

    def describe(self, samples: Sequence[Sequence[int]] = ()) -> dict[str, Any]:  # noqa: ARG002
        """Return the recipe as the manifest records it."""
        return {"mode": "int8"}


@dataclass(frozen=True, slots=True)
class Fp16Compression:
    """Every weight matrix as float16: no compression of a 16-bit checkpoint."""

    calibration: None = None
    measured_text: None = None
    rounds_by_gptq: bool = False

    def prepare(self, checkpoint: Checkpoint, bench: Bench) -> Prepared:  # noqa: ARG002
        """Return nothing: this recipe does not run the checkpoint."""
        return Prepared()

    def bits(self, checkpoint: Checkpoint) -> float:  # noqa: ARG002
        """Return the bits per weight."""
        return 16.0

    def check(self, checkpoint: Checkpoint) -> None:
        """Accept every model; values that fp16 cannot hold are found while rewriting."""

    def apply(self, weights: GraphWeights, prepared: Prepared) -> None:  # noqa: ARG002
        """Store the weights as fp16.

        Raises:
            CompressionError: A weight holds values that fp16 cannot.
        """
        weights.store_as_fp16()

    def verify(self, layers: Sequence[WeightLayer]) -> None:
        """Check that every layer is fp16.

        Raises:
            CompressionError: A layer has another precision; names the layers.
        """
        _require_precision(layers, "fp16")

    def describe(self, samples: Sequence[Sequence[int]] = ()) -> dict[str, Any]:  # noqa: ARG002
        """Return the recipe as the manifest records it."""
        return {"mode": "fp16"}


PRESETS: dict[str, Callable[[], Int4Compression]] = {
    "accurate": Int4Compression.accurate,
    "small": Int4Compression.small,
    "npu": Int4Compression.npu,
    "optimum-intel": Int4Compression.optimum_intel,
}
"""Named recipes that the command line offers. Add a new one here."""

Compression = Int4Compression | Literal["int4", "int8", "fp16"]
"""A recipe as `export_model` accepts it; ``"int4"`` is ``Int4Compression()``."""

_NAMED: Mapping[str, Callable[[], Recipe]] = {
    "int4": Int4Compression,
    "int8": Int8Compression,
    "fp16": Fp16Compression,
}


def read_recipe(compression: Compression) -> Recipe:
    """Return the recipe for a caller's ``compression``.

    Raises:
        OptionError: ``compression`` is not a known recipe; says what to pass instead.

    Example:
        >>> read_recipe("int4") == Int4Compression()
        True
    """
    if isinstance(compression, Int4Compression):
        return compression
    if isinstance(compression, str) and compression in _NAMED:
        return _NAMED[compression]()
    hint = "Pass 'int4' for the default recipe."
    if isinstance(compression, str) and compression in PRESETS:
        hint = f"Pass Int4Compression.{compression}()."
    raise OptionError(
        f"compression={compression!r} is not 'int4', 'int8', 'fp16' or an Int4Compression. {hint}",
        option="compression",
    )


def _require_precision(layers: Sequence[WeightLayer], precision: str) -> None:
    wrong = tuple(
        layer.name
        for layer in layers
        if layer.precision not in (FLOATS if is_router(layer.name) else (precision,))
    )
    if wrong or not layers:
        raise CompressionError(
            f"{len(wrong)} of {len(layers)} layers are not {precision} as asked.", layers=wrong
        )
