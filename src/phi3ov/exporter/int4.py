"""The int4 recipe: which layers become int4, in which groups, and how they are rounded.

`sensitivity` and `layer_choice` choose the layers, `rounding` and `gptq` the scales, and
`compress` has NNCF rewrite the graph. ``docs/recipes.md`` says when to use which option.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

from ..artifact.ir import WeightLayer, is_router, layer_name
from ..errors import CompressionError, OptionError
from ..validation import is_integer, is_number, require_choice
from .calibration import Calibration, default_texts, hash_texts
from .checkpoint import Checkpoint
from .compress import GraphWeights
from .gptq import FittedWeight, fit_layers
from .layer_choice import Candidate, choose_by_bytes, choose_by_share
from .preparation import Bench, Prepared
from .rounding import Rounding, dequantize, fit_groups, round_by_extremes
from .sensitivity import (
    SAMPLE_TOKENS,
    SAMPLES,
    LayerSensitivity,
    measure_sensitivity,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ..family import Phi3Config

_ENDS = ("model.embed_tokens", "lm_head")
"""Embedding and output layer."""

_SMALLEST_ADJUSTED = 32
"""Smallest group size that NNCF adjusts to; it keeps narrower layers in the backup precision."""

_DEFAULT_RATIO = 0.6

_BITS_TOLERANCE = 1.01
"""The target in bits counts all parameters, what is read back the matrices alone."""

_LEAST_GROUP = 16
"""Smallest group size that an error message recommends; scales of smaller ones cost a bit each."""

FLOATS = ("fp16", "bf16", "fp32")


NPU_GROUPED_PARAMETERS = 5_000_000_000
"""OpenVINO's NPU guide recommends group size 128 up to about this size, and whole rows above."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Int4Compression:
    """Four-bit weights: most layers int4, the most sensitive ones in a backup precision.

    The data-aware options run the model on calibration text and fit the int4 values to the
    activations of each layer. They make the export slower, but not the exported model.

    Attributes:
        group_size: Number of values in a row that share one scale; -1 for a whole row.
        ratio: Share of the parameters that become int4, in (0, 1]; embeddings and output layer
            count only with ``embeddings="int4"``.
        target_bytes: Size of all weight matrices in bytes, scales and zero points included,
            instead of ``ratio``. As many layers become int4 as this size needs.
        target_bits: The same as an average in bits per weight.
        symmetric: Without zero points (faster); asymmetric is a little more accurate.
        on_indivisible: Treatment of layers whose width is not a multiple of ``group_size``:
            ``"error"``, or ``"adjust"`` to the largest power of two that divides the width.
        backup: Precision of the remaining layers, the embeddings and the output layer: ``"int8"``
            with zero points, ``"int8_sym"`` without, or ``"none"`` to keep the checkpoint's.
        embeddings: ``"backup"`` keeps embedding and output layer in the backup precision;
            ``"int4"`` lets the layer choice decide about them as about every other layer, which
            pays in small models with a large vocabulary.
        layer_choice: Which layers become int4. ``"effect"``: those where int4 changes the
            model's predictions least, measured on a short text. ``"nncf"``: those that NNCF
            takes for the least sensitive by their weights.
        rounding: Scales of the int4 groups. ``"weighted"``: the scale with the least error,
            weighted by the inputs that the layer had while ``layer_choice`` was measured, or by
            the weights' size where it was not. ``"nncf"``: from the group's extreme values.
        ignored_layers: Layers to keep in the checkpoint's precision: names such as
            ``"model.layers.0.mlp.down_proj"``, or shell patterns such as ``"*.down_proj"``.
        awq: Data-aware: scale the most important columns before rounding (AWQ), by NNCF.
            ``"data-free"`` takes them from the weights alone. It adds a multiplication to some
            layers of the model.
        scale_estimation: Data-aware: choose each scale by the error in the layer's output, by
            NNCF.
        gptq: Data-aware: round column by column and compensate each error in the next (GPTQ),
            by phi3ov in one pass over the text; by NNCF with ``rounding="nncf"``.
        texts: Calibration text, also for the layer choice; None for `calibration.default_texts`.
        num_samples: Maximum number of calibration samples.
        sample_tokens: Length of each sample in tokens.

    Raises:
        OptionError: A value is out of range, or contradicts another.

    Example:
        >>> Int4Compression(ratio=1.0).group_size
        128
        >>> Int4Compression.npu().group_size, Int4Compression.npu(14_000_000_000).group_size
        (128, -1)
    """

    group_size: int = 128
    ratio: float = _DEFAULT_RATIO
    symmetric: bool = True
    on_indivisible: Literal["error", "adjust"] = "error"
    backup: Literal["int8", "int8_sym", "none"] = "int8"
    target_bytes: int | None = None
    target_bits: float | None = None
    embeddings: Literal["backup", "int4"] = "backup"
    layer_choice: Literal["effect", "nncf"] = "effect"
    rounding: Literal["weighted", "nncf"] = "weighted"
    ignored_layers: Sequence[str] = ()
    awq: bool | Literal["data-free"] = False
    scale_estimation: bool = False
    gptq: bool = False
    texts: Sequence[str] | None = field(default=None, repr=False)
    num_samples: int = 128
    sample_tokens: int = 256

    def __post_init__(self) -> None:
        size = self.group_size
        if not is_integer(size) or (size < 2 and size != -1):
            raise OptionError(
                f"group_size={size!r} must be at least 2, or -1 for a whole row.",
                option="group_size",
            )
        if not is_number(self.ratio) or not 0 < self.ratio <= 1:
            raise OptionError(
                f"ratio={self.ratio!r} must be above 0 and at most 1.", option="ratio"
            )
        require_choice("on_indivisible", self.on_indivisible, ("error", "adjust"))
        require_choice("backup", self.backup, ("int8", "int8_sym", "none"))
        require_choice("embeddings", self.embeddings, ("backup", "int4"))
        require_choice("layer_choice", self.layer_choice, ("effect", "nncf"))
        require_choice("rounding", self.rounding, ("weighted", "nncf"))
        for name in ("symmetric", "awq", "scale_estimation", "gptq"):
            if name == "awq" and self.awq == "data-free":
                continue
            if not isinstance(getattr(self, name), bool):
                raise OptionError(
                    f"{name}={getattr(self, name)!r} is not True or False.", option=name
                )
        self._keep_strings("ignored_layers")
        if size == -1 and self.on_indivisible == "adjust":
            raise OptionError(
                "on_indivisible='adjust' contradicts group_size=-1: a whole row always divides. "
                "Leave on_indivisible out.",
                option="on_indivisible",
            )
        self._check_target()
        self._check_calibration()

    def _check_target(self) -> None:
        if self.target_bytes is not None and (
            not is_integer(self.target_bytes) or self.target_bytes < 1
        ):
            raise OptionError(
                f"target_bytes={self.target_bytes!r} must be a positive integer.",
                option="target_bytes",
            )
        if self.target_bits is not None and (
            not is_number(self.target_bits) or not 4 < self.target_bits < 16
        ):
            raise OptionError(
                f"target_bits={self.target_bits!r} must be above 4 and below 16.",
                option="target_bits",
            )
        if self.target_bytes is not None and self.target_bits is not None:
            raise OptionError(
                f"target_bytes={self.target_bytes} and target_bits={self.target_bits} both say "
                "how large the model becomes. Leave one of them out.",
                option="target_bytes",
            )
        if self._has_target and self.ratio != _DEFAULT_RATIO:
            target = (
                f"target_bits={self.target_bits}"
                if self.target_bytes is None
                else f"target_bytes={self.target_bytes}"
            )
            raise OptionError(
                f"ratio={self.ratio} contradicts {target}, from which the share of int4 follows. "
                "Leave one of them out.",
                option="ratio",
            )
        if self.rounding == "weighted" and self.gptq and (self.awq or self.scale_estimation):
            other = "awq" if self.awq else "scale_estimation"
            raise OptionError(
                f"gptq=True and {other}=True with rounding='weighted': phi3ov's GPTQ fits the "
                f"scales itself. Leave {other} out, or take NNCF's GPTQ by rounding='nncf'.",
                option="gptq",
            )
        if self.rounding == "weighted" and self.gptq and self.layer_choice == "nncf":
            raise OptionError(
                "gptq=True with layer_choice='nncf' needs rounding='nncf', NNCF's own GPTQ: "
                "phi3ov's rounds the layers that it has chosen itself.",
                option="gptq",
            )
        if self.layer_choice == "nncf":
            for name, default in (
                ("target_bytes", None), ("target_bits", None), ("embeddings", "backup")
            ):  # fmt: skip
                if getattr(self, name) != default:
                    raise OptionError(
                        f"{name}={getattr(self, name)!r} needs layer_choice='effect': NNCF chooses "
                        "by a ratio, and among the layers of the blocks alone.",
                        option=name,
                    )

    @property
    def _has_target(self) -> bool:
        return self.target_bytes is not None or self.target_bits is not None

    def _keep_strings(self, name: str) -> None:
        """Store a sequence of strings as a tuple, so that recipes can be compared and hashed."""
        values = getattr(self, name)
        if (
            isinstance(values, str)
            or not isinstance(values, Sequence)
            or not all(isinstance(text, str) and text for text in values)
        ):
            raise OptionError(
                f"{name}={values!r:.80} must be a list or tuple of strings, none of them empty.",
                option=name,
            )
        object.__setattr__(self, name, tuple(values))

    def _check_calibration(self) -> None:
        defaults = {"texts": None, "num_samples": 128, "sample_tokens": 256}
        for name in ("num_samples", "sample_tokens"):
            value = getattr(self, name)
            if not is_integer(value) or value < 1:
                raise OptionError(f"{name}={value!r} must be a positive integer.", option=name)
        if self.texts is not None:
            self._keep_strings("texts")
            if not self.texts:
                raise OptionError(
                    "texts=() is empty. Give calibration text, or None.", option="texts"
                )
        for name, default in defaults.items():
            if self.data_aware or getattr(self, name) == default:
                continue
            if name != "texts":
                raise OptionError(
                    f"{name}={getattr(self, name)} goes with awq, scale_estimation or gptq, and "
                    "none is on.",
                    option=name,
                )
            if self.layer_choice == "nncf":
                raise OptionError(
                    "texts=(...) goes with layer_choice='effect', awq, scale_estimation or gptq, "
                    "and none is on.",
                    option="texts",
                )

    @property
    def data_aware(self) -> bool:
        """Whether the recipe needs calibration text."""
        return self.awq is True or self.scale_estimation or self.gptq

    @property
    def calibration(self) -> Calibration | None:
        """The calibration text of the data-aware options; None if all are off."""
        if not self.data_aware:
            return None
        return Calibration(
            texts=None if self.texts is None else tuple(self.texts),
            num_samples=self.num_samples,
            sample_tokens=self.sample_tokens,
        )

    @property
    def measured_text(self) -> Calibration | None:
        """The text on which the layers are measured; None with ``layer_choice="nncf"``."""
        if self.layer_choice == "nncf":
            return None
        return Calibration(
            texts=None if self.texts is None else tuple(self.texts),
            num_samples=SAMPLES,
            sample_tokens=SAMPLE_TOKENS,
        )

    def bits(self, checkpoint: Checkpoint) -> float:
        """Return an upper bound of the resulting bits per weight, scales included."""
        if self._has_target:
            return 8 * self._target(checkpoint) / checkpoint.parameters
        ignored = sum(
            math.prod(shape)
            for name, shape in checkpoint.config.tensor_shapes().items()
            if self.ignores(name)
        )
        share = ignored / checkpoint.parameters
        backup = checkpoint.source_bits if self.backup == "none" else 8.5
        rest = self.ratio * 5 + (1 - self.ratio) * backup + 0.1 * backup
        return share * checkpoint.source_bits + (1 - share) * rest

    def ignores(self, name: str) -> bool:
        """Whether the recipe keeps the layer or weight ``name`` uncompressed."""
        return is_router(name) or any(
            fnmatchcase(layer_name(name), layer_name(pattern)) for pattern in self.ignored_layers
        )

    def check(self, checkpoint: Checkpoint) -> None:
        """Check that every ignored layer exists, and that the group size divides the others.

        Raises:
            CompressionError: A pattern matches no layer, all layers are ignored, or the group
                size does not divide the width of a layer; names the layers.
        """
        self._check_ignored(checkpoint.config)
        if self.group_size != -1 and self.on_indivisible == "error":
            self._check_divisible(checkpoint.config)
        if self._has_target:
            self._check_reachable(checkpoint)

    def _check_reachable(self, checkpoint: Checkpoint) -> None:
        target = self._target(checkpoint)
        fixed, candidates = self._candidates(checkpoint, {})
        smallest = fixed + sum(candidate.int4_bytes for candidate in candidates)
        largest = fixed + sum(candidate.backup_bytes for candidate in candidates)
        given = (
            f"target_bytes={self.target_bytes}"
            if self.target_bits is None
            else f"target_bits={self.target_bits}, which are {target:.0f} bytes"
        )
        if target < smallest:
            raise CompressionError(
                f"{given}, cannot be reached: with int4 in every layer that may have it, the "
                f"weights need {smallest} bytes. Ask for more, or for larger groups"
                + ("." if self.embeddings == "int4" else ", or for embeddings='int4'.")
            )
        if target >= largest:
            raise CompressionError(
                f"{given}, leaves nothing for int4: the weights need {largest} bytes in the "
                f"backup precision {self.backup!r}. Ask for less, or for compression='int8'."
            )

    def _target(self, checkpoint: Checkpoint) -> float:
        """Return the size of all weight matrices that is asked for, in bytes."""
        if self.target_bytes is not None:
            return self.target_bytes
        assert self.target_bits is not None
        return self.target_bits * checkpoint.parameters / 8

    def _candidates(
        self, checkpoint: Checkpoint, measured: Mapping[str, LayerSensitivity]
    ) -> tuple[int, list[Candidate]]:
        """Return the bytes of the layers that stay as they are, and all layers that may be int4."""
        config = checkpoint.config
        blocks = config.linear_shapes()
        fixed, candidates = 0, []
        for tensor, shape in config.tensor_shapes().items():
            name = layer_name(tensor)
            if is_router(tensor):
                fixed += 4 * math.prod(shape)  # float32
            if name not in blocks and name not in _ENDS:
                continue
            parameters, columns = math.prod(shape), shape[-1]
            rows = parameters // columns
            backup = {
                "int8": parameters + 3 * rows,
                "int8_sym": parameters + 2 * rows,
                "none": int(parameters * checkpoint.source_bits / 8),
            }[self.backup]
            size = self._group_size_of(columns)
            if self.ignores(name):
                fixed += int(parameters * checkpoint.source_bits / 8)
            elif not size or (name in _ENDS and self.embeddings == "backup"):
                fixed += backup
            else:
                groups = parameters // size
                zero_points = 0 if self.symmetric else groups // 2
                candidates.append(
                    Candidate(
                        name=name,
                        parameters=parameters,
                        effect=measured[name].effect if measured else 0.0,
                        int4_bytes=parameters // 2 + 2 * groups + zero_points,
                        backup_bytes=backup,
                    )
                )
        return fixed, candidates

    def _group_size_of(self, columns: int) -> int:
        """Return the group size of rows of this width; 0 if NNCF keeps them out of int4."""
        if self.group_size == -1:
            return columns
        if columns % self.group_size == 0:
            return self.group_size
        power = columns & -columns
        return power if power >= _SMALLEST_ADJUSTED else 0

    @property
    def rounds_by_gptq(self) -> bool:
        """Whether phi3ov's own GPTQ rounds the int4 layers; NNCF's does with rounding="nncf"."""
        return self.gptq and self.rounding == "weighted"

    def prepare(self, checkpoint: Checkpoint, bench: Bench) -> Prepared:
        """Measure the layers, choose those that become int4, and round them by GPTQ."""
        if not bench.measured_samples:
            return Prepared()
        measured = measure_sensitivity(
            bench.folder, bench.measured_samples, self._round_rows, bench.follow
        )
        chosen = self._choose(checkpoint, measured)
        rounded: Mapping[str, FittedWeight] = {}
        if self.rounds_by_gptq:
            shapes = checkpoint.config.tensor_shapes()
            rounded = fit_layers(
                bench.folder,
                bench.samples,
                {name: self._group_size_of(shapes[f"{name}.weight"][-1]) for name in chosen},
                symmetric=self.symmetric,
                folder=bench.work,
                follow=bench.follow,
            )
        return Prepared(measured=measured, int4_layers=chosen, rounded=rounded)

    def _round_rows(self, rows: Tensor, moments: Any) -> Tensor:
        """Round rows of a weight as the export will, unless NNCF or GPTQ has better scales."""
        size = self._group_size_of(rows.shape[-1])
        if not size:
            return rows
        if self.rounding == "nncf":
            return round_by_extremes(rows, size, symmetric=self.symmetric)
        scales, zeros = fit_groups(rows, size, symmetric=self.symmetric, moments=moments)
        return dequantize(rows, size, scales, zeros, symmetric=self.symmetric)

    def _choose(
        self, checkpoint: Checkpoint, measured: Mapping[str, LayerSensitivity]
    ) -> frozenset[str]:
        """Return the layers that become int4, by what was measured of them."""
        fixed, candidates = self._candidates(checkpoint, measured)
        if not self._has_target:
            return choose_by_share(candidates, self.ratio)
        chosen = choose_by_bytes(candidates, self._target(checkpoint) - fixed)
        assert chosen is not None  # check() has refused such a target
        return chosen

    def _check_ignored(self, config: Phi3Config) -> None:
        blocks = set(config.linear_shapes())
        ends = {"model.embed_tokens"} | (set() if config.tie_word_embeddings else {"lm_head"})
        for pattern in self.ignored_layers:
            if not any(fnmatchcase(name, layer_name(pattern)) for name in blocks | ends):
                raise CompressionError(
                    f"ignored_layers={pattern!r} matches no layer. Layers are called such as "
                    f"{min(blocks)!r} and {', '.join(sorted(ends))}.",
                    layers=(pattern,),
                )
        if all(self.ignores(name) for name in blocks):
            raise CompressionError(
                f"ignored_layers={self.ignored_layers!r} leaves no layer to compress. "
                "compression='fp16' does that."
            )

    def _check_divisible(self, config: Phi3Config) -> None:
        misfits = {
            name: shape[-1]
            for name, shape in config.linear_shapes().items()
            if shape[-1] % self.group_size and not self.ignores(name)
        }
        if misfits:
            shown = ", ".join(f"{name} ({width})" for name, width in list(misfits.items())[:4])
            more = f" and {len(misfits) - 4} more" if len(misfits) > 4 else ""
            common = math.gcd(self.group_size, *misfits.values())
            fitting = (
                f"group_size={common} does" if common >= _LEAST_GROUP else "none fits them all"
            )
            raise CompressionError(
                f"group_size={self.group_size} does not divide the width of {shown}{more}. "
                f"Choose a group size that does ({fitting}), or on_indivisible='adjust'.",
                layers=tuple(misfits),
            )

    def apply(self, weights: GraphWeights, prepared: Prepared) -> None:
        """Rewrite a graph's weights by NNCF.

        Raises:
            CompressionError: NNCF refuses the group size.
        """
        measured = {} if self.awq else prepared.measured  # AWQ rescales weights and inputs
        rounding = Rounding(measured, prepared.rounded) if self.rounding == "weighted" else None
        by_nncf = {
            "awq": bool(self.awq),
            "scale_estimation": self.scale_estimation,
            "gptq": self.gptq and not self.rounds_by_gptq,
        }
        weights.compress_to_int4(
            int4_layers=prepared.int4_layers,
            rounding=rounding,
            symmetric=self.symmetric,
            ratio=self.ratio,
            group_size=self.group_size,
            on_indivisible=self.on_indivisible,
            backup=self.backup,
            ignores=self.ignores,
            by_nncf=by_nncf if any(by_nncf.values()) else {},
        )

    def verify(self, layers: Sequence[WeightLayer]) -> None:
        """Check that precisions, group sizes and the share of int4 parameters match the recipe.

        Raises:
            CompressionError: They differ; names the layers.
        """
        countable = [
            layer
            for layer in layers
            if not self.ignores(layer.name)
            and (self.embeddings == "int4" or layer_name(layer.name) not in _ENDS)
        ]
        int4 = [layer for layer in countable if layer.precision == "int4"]
        wrong = tuple(layer.name for layer in layers if not self._is_as_asked(layer))
        if wrong or not int4:
            raise CompressionError(
                f"{len(wrong)} of {len(layers)} layers are not as {self.describe()} asks; "
                f"{len(int4)} layers are int4.",
                layers=wrong,
            )
        if self._has_target:
            self._verify_size(layers)
            return
        total = sum(layer.parameters for layer in countable)
        share = sum(layer.parameters for layer in int4) / total
        one_layer = max(layer.parameters for layer in countable) / total
        if abs(share - self.ratio) > one_layer:
            raise CompressionError(
                f"{share:.1%} of the parameters are int4 where ratio={self.ratio} was asked."
            )

    def _verify_size(self, layers: Sequence[WeightLayer]) -> None:
        size = sum(layer.size_bytes for layer in layers)
        bits = 8 * size / sum(layer.parameters for layer in layers)
        too_large = (
            size > self.target_bytes
            if self.target_bytes is not None
            else bits > _BITS_TOLERANCE * (self.target_bits or 0)
        )
        if too_large:
            raise CompressionError(
                f"The weights have {size} bytes, {bits:.2f} bits per weight, where "
                f"target_bytes={self.target_bytes}, target_bits={self.target_bits} was asked."
            )

    def _is_as_asked(self, layer: WeightLayer) -> bool:
        if self.ignores(layer.name):
            return layer.precision in FLOATS
        if layer.precision != "int4":
            if self.backup == "none":
                return layer.precision in FLOATS
            return layer.precision == "int8" and layer.symmetric == (self.backup == "int8_sym")
        wanted = max(self.group_size, 0)
        fits = layer.group_size == wanted or (
            self.on_indivisible == "adjust" and 0 < layer.group_size < wanted
        )
        return fits and layer.symmetric == self.symmetric

    def describe(self, samples: Sequence[Sequence[int]] = ()) -> dict[str, Any]:
        """Return the recipe as the manifest records it: everything but the text itself."""
        record = {"mode": "int4", **asdict(self)}
        texts = record.pop("texts")
        if self.data_aware:
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

    @classmethod
    def accurate(cls, texts: Sequence[str] | None = None) -> Int4Compression:
        """Return an int4 recipe of the default's size and speed with half of its error (measured).

        Args:
            texts: Text like the model's later input; None for `calibration.default_texts`.
        """
        return cls(group_size=64, symmetric=False, gptq=True, num_samples=32, texts=texts)

    @classmethod
    def small(cls) -> Int4Compression:
        """Return a recipe of 4.5 bits per weight, for the fewest bytes per token.

        It has groups of 64 with zero points. Embedding and output layer become int4 where that
        costs less than int4 elsewhere.
        """
        return cls(group_size=64, symmetric=False, target_bits=4.5, embeddings="int4")

    @classmethod
    def optimum_intel(cls, model: str = "microsoft/Phi-3-mini-4k-instruct") -> Int4Compression:
        """Return the recipe that optimum-intel 2.2 takes for a model when it is given none.

        Args:
            model: The hub id. optimum-intel has recipes of their own for Phi-3-mini-4k,
                Phi-3.5-mini, Phi-4-mini and Phi-4-reasoning, and one for all other models.

        Example:
            >>> Int4Compression.optimum_intel("microsoft/Phi-4-mini-instruct").awq
            'data-free'
        """
        by_nncf = cls(
            group_size=64, ratio=1.0, symmetric=False, layer_choice="nncf", rounding="nncf"
        )
        own: dict[str, dict[str, Any]] = {
            "microsoft/Phi-3-mini-4k-instruct": {"scale_estimation": True},
            "microsoft/Phi-3.5-mini-instruct": {"awq": "data-free"},
            "microsoft/Phi-4-mini-instruct": {"awq": "data-free"},
            "microsoft/Phi-4-reasoning": {},
        }
        return replace(by_nncf, **own.get(model, {"group_size": 128}))

    @classmethod
    def npu(cls, parameters: int = 3_800_000_000) -> Int4Compression:
        """Return the recipe that OpenVINO's guide recommends for NPUs: symmetric, all int4.

        Args:
            parameters: Size of the model, Phi-3-mini's by default. Groups of 128 up to 5 billion
                parameters, one scale per row above.

        Raises:
            OptionError: The size is not a positive integer.
        """
        if not is_integer(parameters) or parameters < 1:
            raise OptionError(
                f"parameters={parameters!r} must be a positive integer.", option="parameters"
            )
        grouped = parameters <= NPU_GROUPED_PARAMETERS
        return cls(group_size=128 if grouped else -1, ratio=1.0)
