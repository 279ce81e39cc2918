"""Weight compression recipes: as values, checked before the work, and in what came out.

A named recipe is a line in `PRESETS`. A new kind of compression is fields of `Int4Compression` or
a value of its own, applied in ``compressor.py``, and in `check_weights` what must then stand in
the IR. Text for
data-aware recipes is ``calibration.py``; which recipe to use when is ``docs/recipes.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

from ..artifact.ir import WeightLayer, layer_name
from ..errors import CompressionError, OptionError
from ..prompt.chat_tokenizer import ChatTokenizer
from ..validation import is_integer, is_number, require_choice
from .calibration import cut_samples, default_texts, hash_texts
from .checkpoint import Checkpoint

_NEVER_INT4 = ("embed_tokens", "lm_head")
"""NNCF keeps embeddings and the output layer in the backup precision."""

_FLOATS = ("fp16", "bf16", "fp32")


@dataclass(frozen=True, slots=True, kw_only=True)
class Int4Compression:
    """Four-bit weights: most layers int4, the sensitive rest in a backup precision.

    The data-aware options run the model on calibration text and fit the int4 values to what
    the layers saw. They cost time in the export and nothing afterwards.

    Attributes:
        group_size: How many values of a row share one scale; -1 for a whole row.
        ratio: Share of the parameters, embeddings and output layer left out, that become int4,
            in (0, 1]. NNCF gives the rest, the most sensitive layers, the backup precision.
        symmetric: Without zero points (faster); asymmetric is a little more accurate.
        on_indivisible: What to do with layers whose width ``group_size`` does not divide:
            ``"error"``, or ``"adjust"`` to the largest power of two that does.
        backup: Precision of the rest, of embeddings and of the output layer: ``"int8"`` with
            zero points, ``"int8_sym"`` without, or ``"none"``: as the checkpoint stores them.
        ignored_layers: Layers to leave as the checkpoint stores them: names such as
            ``"model.layers.0.mlp.down_proj"``, or shell patterns such as ``"*.down_proj"``.
        awq: Data-aware: scale the columns that matter most before rounding (AWQ).
        scale_estimation: Data-aware: choose each scale by the error in the layer's output.
        gptq: Data-aware: round column by column, making up for each one in the next (GPTQ).
        texts: Calibration text; None takes `calibration.default_texts` where it is needed.
        num_samples: Runs of text to calibrate on, at most.
        sample_tokens: Length of each run.

    Raises:
        OptionError: A value is out of its range, or contradicts another.

    Example:
        >>> Int4Compression(ratio=1.0).group_size
        128
        >>> Int4Compression.npu().group_size
        -1
    """

    group_size: int = 128
    ratio: float = 0.6
    symmetric: bool = True
    on_indivisible: Literal["error", "adjust"] = "error"
    backup: Literal["int8", "int8_sym", "none"] = "int8"
    ignored_layers: tuple[str, ...] = ()
    awq: bool = False
    scale_estimation: bool = False
    gptq: bool = False
    texts: tuple[str, ...] | None = field(default=None, repr=False)
    num_samples: int = 128
    sample_tokens: int = 256

    def __post_init__(self) -> None:
        size = self.group_size
        if not is_integer(size) or (size < 2 and size != -1):
            raise OptionError(f"group_size={size!r} must be at least 2, or -1 for a whole row.")
        if not is_number(self.ratio) or not 0 < self.ratio <= 1:
            raise OptionError(f"ratio={self.ratio!r} must be above 0 and at most 1.")
        require_choice("on_indivisible", self.on_indivisible, ("error", "adjust"))
        require_choice("backup", self.backup, ("int8", "int8_sym", "none"))
        for name in ("symmetric", "awq", "scale_estimation", "gptq"):
            if not isinstance(getattr(self, name), bool):
                raise OptionError(f"{name}={getattr(self, name)!r} is not True or False.")
        _check_strings("ignored_layers", self.ignored_layers)
        if size == -1 and self.on_indivisible == "adjust":
            raise OptionError(
                "on_indivisible='adjust' contradicts group_size=-1: a whole row always divides. "
                "Leave on_indivisible out."
            )
        self._check_calibration()

    def _check_calibration(self) -> None:
        defaults = {"texts": None, "num_samples": 128, "sample_tokens": 256}
        for name in ("num_samples", "sample_tokens"):
            value = getattr(self, name)
            if not is_integer(value) or value < 1:
                raise OptionError(f"{name}={value!r} must be a positive integer.")
        if self.texts is not None:
            _check_strings("texts", self.texts)
            if not self.texts:
                raise OptionError("texts=() is empty. Give calibration text, or None.")
        for name, default in defaults.items():
            if not self.data_aware and getattr(self, name) != default:
                given = "(...)" if name == "texts" else getattr(self, name)
                raise OptionError(
                    f"{name}={given} goes with awq, scale_estimation or gptq, and none is on."
                )

    @property
    def data_aware(self) -> bool:
        """Whether the recipe needs calibration text."""
        return self.awq or self.scale_estimation or self.gptq

    @classmethod
    def accurate(cls, texts: tuple[str, ...] | None = None) -> Int4Compression:
        """Return an int4 recipe of the default's size with a quarter of its error (measured).

        Args:
            texts: Text like what the model will read; None takes `calibration.default_texts`.
        """
        return cls(group_size=64, symmetric=False, awq=True, scale_estimation=True, texts=texts)

    @classmethod
    def small(cls) -> Int4Compression:
        """Return the recipe with the fewest bytes per token: every block layer int4."""
        return cls(ratio=1.0)

    @classmethod
    def npu(cls) -> Int4Compression:
        """Return what Intel NPUs run fastest: symmetric, all int4, one scale per row."""
        return cls(group_size=-1, ratio=1.0)


PRESETS: dict[str, Callable[[], Int4Compression]] = {
    "accurate": Int4Compression.accurate,
    "small": Int4Compression.small,
    "npu": Int4Compression.npu,
}
"""The named recipes, as the command offers them; a new one is a line here."""


def _check_strings(name: str, values: object) -> None:
    if not isinstance(values, tuple) or not all(isinstance(one, str) and one for one in values):
        raise OptionError(f"{name}={values!r:.80} is not a tuple of strings with something in it.")


Compression = Int4Compression | Literal["int8", "fp16"]
"""What `export_model` takes as a recipe."""


def check_compression(compression: Compression) -> None:
    """Check that ``compression`` is a recipe.

    Raises:
        OptionError: It is something else.
    """
    if not isinstance(compression, Int4Compression) and compression not in ("int8", "fp16"):
        raise OptionError(
            f"compression={compression!r} is not an Int4Compression, 'int8' or 'fp16'."
        )


def check_divisible(checkpoint: Checkpoint, compression: Int4Compression) -> None:
    """Check, before any work, that the group size divides the width of every layer.

    Raises:
        CompressionError: It does not; names the layers.
    """
    if compression.group_size == -1 or compression.on_indivisible == "adjust":
        return
    misfits = {
        name: width
        for name, (_, width) in checkpoint.config.linear_shapes().items()
        if width % compression.group_size and not is_ignored(name, compression)
    }
    if misfits:
        shown = ", ".join(f"{name} ({width})" for name, width in list(misfits.items())[:4])
        more = f" and {len(misfits) - 4} more" if len(misfits) > 4 else ""
        raise CompressionError(
            f"group_size={compression.group_size} does not divide the width of {shown}{more}. "
            "Choose a group size that does, or on_indivisible='adjust'.",
            layers=tuple(misfits),
        )


def check_ignored(checkpoint: Checkpoint, compression: Int4Compression) -> None:
    """Check, before any work, that every ignored layer exists and that others remain.

    Raises:
        CompressionError: A pattern matches no layer, or all layers are ignored.
    """
    blocks = set(checkpoint.config.linear_shapes())
    ends = {"model.embed_tokens"}
    if not checkpoint.config.tie_word_embeddings:
        ends.add("lm_head")
    for pattern in compression.ignored_layers:
        if not any(fnmatchcase(name, layer_name(pattern)) for name in blocks | ends):
            raise CompressionError(
                f"ignored_layers={pattern!r} matches no layer. Layers are called such as "
                f"{min(blocks)!r} and {', '.join(sorted(ends))}.",
                layers=(pattern,),
            )
    if all(is_ignored(name, compression) for name in blocks):
        raise CompressionError(
            f"ignored_layers={compression.ignored_layers!r} leaves no layer to compress. "
            "compression='fp16' does that."
        )


def is_ignored(name: str, compression: Int4Compression) -> bool:
    """Whether the recipe leaves the layer or weight ``name`` alone."""
    return any(
        fnmatchcase(layer_name(name), layer_name(pattern)) for pattern in compression.ignored_layers
    )


def draw_samples(
    checkpoint: Checkpoint, compression: Compression, tokenizer: ChatTokenizer
) -> list[list[int]]:
    """Return the calibration samples of a recipe as token ids; none if it needs none.

    Raises:
        CompressionError: The texts are shorter than one sample, or a sample is longer than
            the model's context.
    """
    if not isinstance(compression, Int4Compression) or not compression.data_aware:
        return []
    context = checkpoint.config.max_position_embeddings
    if compression.sample_tokens > context:
        raise CompressionError(
            f"sample_tokens={compression.sample_tokens} exceeds the model's context of {context}."
        )
    return cut_samples(
        tokenizer,
        default_texts() if compression.texts is None else compression.texts,
        num_samples=compression.num_samples,
        sample_tokens=compression.sample_tokens,
    )


def describe_recipe(
    compression: Compression, samples: Sequence[Sequence[int]] = ()
) -> dict[str, Any]:
    """Return a recipe as the manifest records it: everything but the text itself."""
    if not isinstance(compression, Int4Compression):
        return {"mode": compression}
    record = {"mode": "int4", **asdict(compression)}
    texts = record.pop("texts")
    if compression.data_aware:
        used = default_texts() if texts is None else texts
        record["calibration"] = {
            "origin": "pydoc_data.topics" if texts is None else "given",
            "texts": len(used),
            "sha256": hash_texts(used),
            "samples": len(samples),
        }
    else:
        del record["num_samples"], record["sample_tokens"]
    return record


def check_weights(layers: tuple[WeightLayer, ...], compression: Compression) -> None:
    """Compare what an IR holds with what was asked for.

    Raises:
        CompressionError: It is something else; names the layers.
    """
    if isinstance(compression, Int4Compression):
        _check_int4(layers, compression)
        return
    wrong = tuple(layer.name for layer in layers if layer.precision != compression)
    if wrong or not layers:
        raise CompressionError(
            f"{len(wrong)} of {len(layers)} layers are not {compression} as asked.", layers=wrong
        )


def _check_int4(layers: tuple[WeightLayer, ...], compression: Int4Compression) -> None:
    countable = [
        layer
        for layer in layers
        if not any(part in layer.name for part in _NEVER_INT4)
        and not is_ignored(layer.name, compression)
    ]
    int4 = [layer for layer in countable if layer.precision == "int4"]
    wrong = tuple(layer.name for layer in layers if not _is_as_asked(layer, compression))
    if wrong or not int4:
        raise CompressionError(
            f"{len(wrong)} of {len(layers)} layers are not as "
            f"{describe_recipe(compression)} asks; {len(int4)} layers are int4.",
            layers=wrong,
        )
    total = sum(layer.parameters for layer in countable)
    share = sum(layer.parameters for layer in int4) / total
    one_layer = max(layer.parameters for layer in countable) / total
    if abs(share - compression.ratio) > one_layer:
        raise CompressionError(
            f"{share:.1%} of the parameters are int4 where ratio={compression.ratio} was asked."
        )


def _is_as_asked(layer: WeightLayer, compression: Int4Compression) -> bool:
    if is_ignored(layer.name, compression):
        return layer.precision in _FLOATS
    if layer.precision != "int4":
        if compression.backup == "none":
            return layer.precision in _FLOATS
        return layer.precision == "int8" and layer.symmetric == (compression.backup == "int8_sym")
    wanted = max(compression.group_size, 0)
    fits = layer.group_size == wanted or (
        compression.on_indivisible == "adjust" and 0 < layer.group_size < wanted
    )
    return fits and layer.symmetric == compression.symmetric
