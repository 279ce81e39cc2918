"""Checkpoint to artifact: `export_model` converts, compresses, verifies, and then renames.

The steps, each a phase that progress reports:

1. check the checkpoint, the recipe, disk and memory (before anything is written);
2. measure what int4 in each layer would cost, if the recipe asks for it (`sensitivity`);
3. convert the checkpoint to an OpenVINO graph over its own, mapped weights (`convert`);
4. analyse: the recipe or NNCF chooses the precision of each weight; NNCF runs calibration text;
5. compress the weights, one by one, into a mapped file (`compress`, `mapped_weights`);
6. write the compressed model;
7. collect the checkpoint's configs and tokenizer files;
8. verify: read the result back and compare it with the recipe; write the manifest, and rename
   the folder into place.

All work happens in a hidden folder next to the target. An export matches its recipe, or it raises
and leaves only an empty lock file behind.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from ..artifact.folder import MANIFEST_NAME, MODEL_BIN, MODEL_XML, Artifact, Manifest, record_files
from ..artifact.ir import WeightLayer, WeightSummary, layer_name, read_weights, summarize
from ..errors import CompressionError, ExportError, MissingDependencyError, Phi3OVError
from ..prompt.chat_tokenizer import ChatTokenizer
from ..prompt.formats import ChatFormat
from ..thirdparty.home import home_assumed
from ..thirdparty.overrides import su_rope_accepted
from ..thirdparty.tool_output import quiet_tools, quiet_warnings
from .checkpoint import Checkpoint
from .companions import (
    convert_tokenizer_pair,
    gather_files,
    load_tokenizer,
    recognize_chat_format,
)
from .compress import GraphWeights
from .convert import convert
from .experts import traceable_experts
from .int4 import Int4Compression
from .mapped_weights import MappedConstants, free_unused
from .preparation import Bench, Prepared
from .progress import Phases, ProgressCallback
from .recipes import Compression, Recipe, read_recipe
from .sensitivity import LayerSensitivity
from .workplace import (
    check_replaceable,
    check_room,
    check_target,
    describe_free_disk,
    open_workplace,
    put_into_place,
)

_TOOLS = (
    "phi3ov",
    "openvino",
    "openvino-tokenizers",
    "optimum-intel",
    "nncf",
    "transformers",
    "torch",
)


WORST_ERROR: Mapping[str, float] = {"int4": 0.25, "int8": 0.05} | dict.fromkeys(
    ("fp16", "bf16", "fp32"), 0.01
)
"""Relative error of a layer's weights above which an export warns, by precision. Normally
distributed weights in groups of 128 have 0.12 in int4, and 0.01 in int8 rows."""

_LOGGER = logging.getLogger("phi3ov")

_ONE_AT_A_TIME = threading.RLock()
"""Held while optimum converts and NNCF compresses. Both patch the model's classes during that
time, so exports in two threads take turns. Nothing else waits for this lock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """Result of an export.

    Attributes:
        artifact: The exported folder.
        source_bytes: Bytes of the checkpoint's weights.
        artifact_bytes: Bytes of the exported folder.
        weights: The weights that the written model holds, by precision and group size.
        phase_seconds: Duration of each phase.
        notes: Files that the artifact lacks, the reason, and who needs them; usually empty.
    """

    artifact: Artifact
    source_bytes: int
    artifact_bytes: int
    weights: tuple[WeightSummary, ...]
    phase_seconds: Mapping[str, float]
    notes: tuple[str, ...] = ()


def export_model(
    source: str | Path,
    output: str | Path,
    *,
    compression: Compression = Int4Compression(),  # noqa: B008 - immutable
    revision: str | None = None,
    overwrite: bool = False,
    progress: bool | ProgressCallback = True,
    log: str | Path | None = None,
) -> ExportReport:
    """Export a Phi-3 checkpoint to a folder that `phi3ov.load_model` loads.

    Args:
        source: A local checkpoint folder, or a hub id.
        output: The folder to create.
        compression: An `Int4Compression`, or ``"int4"`` for the default one, ``"int8"``, or
            ``"fp16"`` (no compression).
        revision: Branch, tag or commit of a hub id.
        overwrite: Replace ``output`` if it already holds an artifact.
        progress: True shows one bar per phase on stderr, or one line per phase if stderr is not
            a terminal. A callable receives `ExportProgress`; an exception that it raises ends
            the export and reaches the caller.
        log: A file to which log lines and warnings of optimum, NNCF and transformers are
            appended. None drops all but errors.

    Raises:
        ExportError: Source or target cannot be used, disk or memory is too small (checked
            before the work starts), or a tool failed.
        CompressionError: The recipe does not fit the model; names the layers.
        UnsupportedModelError: The checkpoint is not a Phi-3 that phi3ov supports.
        MissingDependencyError: ``phi3ov[export]`` is not installed.

    Example:
        >>> report = export_model("microsoft/Phi-3-mini-4k-instruct", "phi3")  # doctest: +SKIP
        >>> report.artifact.bits_per_weight  # doctest: +SKIP
        5.8
    """
    target = _absolute(output)
    with contextlib.closing(Phases(progress)) as phases:
        phases.begin("check")
        _require_tools()
        check_target(target, overwrite=overwrite)
        check_replaceable(target)
        recipe = read_recipe(compression)
        checkpoint = Checkpoint.resolve(source, revision=revision)
        with open_workplace(target) as work:
            check_room(checkpoint, recipe, work)
            try:
                with _ONE_AT_A_TIME, quiet_tools(log), su_rope_accepted():
                    job = _Export.plan(checkpoint, recipe, work, phases)
                    figures = job.convert()
                job.collect_files()
                weights = job.verify(figures)
                put_into_place(job.made, target, work, overwrite=overwrite)
            except Phi3OVError:
                raise
            except Exception as error:
                phases.raise_callers()
                raise ExportError(
                    f"Exporting {source} failed in the phase {phases.current!r}: "
                    f"{type(error).__name__}: {error}. Nothing was left at {target}. "
                    f"{describe_free_disk(target)}"
                ) from error
        artifact = Artifact.open(target)
        return ExportReport(
            artifact=artifact,
            source_bytes=checkpoint.weights_bytes,
            artifact_bytes=artifact.size_bytes,
            weights=weights,
            phase_seconds=phases.finish(),
            notes=artifact.manifest.notes,
        )


def _absolute(output: str | Path) -> Path:
    try:
        return Path(output).absolute()
    except OSError as error:  # a relative path in a current folder that was deleted
        raise ExportError(f"output={str(output)!r}: the current folder is gone.") from error


def _require_tools() -> None:
    for module, package in (("optimum.intel", "optimum-intel"), ("nncf", "nncf")):
        if sys.modules.get(module) is not None:
            continue
        try:
            with quiet_warnings(), home_assumed():  # importing the tools warns, and asks for a home
                importlib.import_module(module)
        except ImportError as error:
            raise MissingDependencyError(
                package, purpose="export_model()", command='pip install "phi3ov[export]"'
            ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Figures:
    """What an export has measured of the layers, by layer name."""

    errors: Mapping[str, float]
    measured: Mapping[str, LayerSensitivity]
    int4_layers: frozenset[str] | None

    def check_choice(self, layers: Sequence[WeightLayer]) -> None:
        """Check that the chosen layers are int4 and no others.

        Raises:
            CompressionError: NNCF compressed other layers; names them.
        """
        found = {layer_name(layer.name) for layer in layers if layer.precision == "int4"}
        if self.int4_layers is not None and found != self.int4_layers:
            wrong = tuple(sorted(found ^ self.int4_layers))
            raise CompressionError(
                f"{len(wrong)} layers are int4 where another precision was chosen, or the other "
                f"way round, such as {wrong[0]}. nncf {metadata.version('nncf')} may be newer than "
                "this phi3ov: install nncf 3.4.",
                layers=wrong,
            )

    def add_to(self, layer: WeightLayer) -> WeightLayer:
        """Return the layer with its figures, to three digits."""
        name = layer_name(layer.name)
        error, measured = self.errors.get(name), self.measured.get(name)
        return replace(
            layer,
            error=None if error is None else float(f"{error:.3g}"),
            int4_effect=None if measured is None else float(f"{measured.effect:.3g}"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Export:
    """State and steps of one export; the steps stand in the order in which they are called."""

    checkpoint: Checkpoint
    recipe: Recipe
    samples: Sequence[Sequence[int]]
    measured_samples: Sequence[Sequence[int]]
    chat_format: ChatFormat
    notes: tuple[str, ...]
    work: Path
    phases: Phases

    @classmethod
    def plan(cls, checkpoint: Checkpoint, recipe: Recipe, work: Path, phases: Phases) -> _Export:
        """Run every check that does not need a converted model."""
        made = work / "made"
        made.mkdir()
        gather_files(checkpoint, made)
        converted = load_tokenizer(made, str(checkpoint.path))
        chat_format = recognize_chat_format(converted)
        tokenizer = ChatTokenizer.from_folder(made, chat_format)
        tokenizer.require_rows(checkpoint.config.vocab_size)
        checkpoint = checkpoint.check_tensors()
        recipe.check(checkpoint)
        note = convert_tokenizer_pair(converted, made)
        longest = checkpoint.config.max_position_embeddings
        samples, measured_samples = (
            text.draw_samples(tokenizer, context_tokens=longest) if text is not None else ()
            for text in (recipe.calibration, recipe.measured_text)
        )
        return cls(
            checkpoint=checkpoint,
            recipe=recipe,
            samples=samples,
            measured_samples=measured_samples,
            chat_format=chat_format,
            notes=() if note is None else (note,),
            work=work,
            phases=phases,
        )

    @property
    def checkpoint_folder(self) -> Path:
        """The checkpoint in the layout that is converted."""
        return self.work / "phi3" if self.checkpoint.is_restacked else self.checkpoint.path

    @property
    def converted(self) -> Path:
        """The folder that optimum writes to."""
        return self.work / "converted"

    @property
    def made(self) -> Path:
        """The folder that becomes the artifact."""
        return self.work / "made"

    def convert(self) -> _Figures:
        """Write the compressed model, and return what was measured of its layers."""
        self.phases.begin("measure")
        folder = self.checkpoint_folder
        if self.checkpoint.is_restacked:
            folder.mkdir()
            self.checkpoint.write_restacked(folder, self.phases.follow)
        experts = (
            traceable_experts if self.checkpoint.config.has_experts else contextlib.nullcontext
        )
        errors: dict[str, float] = {}
        with contextlib.closing(MappedConstants(self.work / "compressed.bin")) as mapped, experts():
            prepared = self._prepare(folder)
            rewrite = functools.partial(self._rewrite, mapped, prepared, errors)
            self.phases.begin("convert")
            convert(folder, self.converted, rewrite)
        return _Figures(errors=errors, measured=prepared.measured, int4_layers=prepared.int4_layers)

    def _prepare(self, folder: Path) -> Prepared:
        """Run the checkpoint on text, if the recipe needs that."""
        if not self.measured_samples:
            return Prepared()
        rounded = self.work / "rounded"
        rounded.mkdir()
        bench = Bench(
            folder=folder,
            measured_samples=self.measured_samples,
            samples=self.samples,
            work=rounded,
            follow=self.phases.follow,
        )
        prepared = self.recipe.prepare(self.checkpoint, bench)
        free_unused()
        return prepared

    def _rewrite(
        self, mapped: MappedConstants, prepared: Prepared, errors: dict[str, float], model: Any
    ) -> None:
        """Compress the graph; optimum writes it afterwards."""
        self.phases.begin("analyse")
        weights = GraphWeights(model, self.samples, mapped, self.phases)
        self.recipe.apply(weights, prepared)
        errors.update(weights.errors)
        self.phases.begin("write")

    def collect_files(self) -> None:
        """Move the model beside the files that were gathered at the start.

        The artifact keeps the checkpoint's config: optimum's has another context length.
        """
        self.phases.begin("collect files")
        for name in (MODEL_XML, MODEL_BIN):
            os.replace(self.converted / name, self.made / name)

    def verify(self, figures: _Figures) -> tuple[WeightSummary, ...]:
        """Check that the model matches the recipe, and write its manifest."""
        self.phases.begin("verify")
        layers = tuple(map(figures.add_to, read_weights(self.made / MODEL_XML)))
        self.recipe.verify(layers)
        figures.check_choice(layers)
        _warn_of_errors(layers)
        weights = summarize(layers)
        manifest = Manifest(
            source=self.checkpoint.public_source,
            revision=self.checkpoint.revision,
            commit=self.checkpoint.commit,
            source_bytes=self.checkpoint.weights_bytes,
            recipe=self.recipe.describe(self.samples),
            weights=weights,
            layers=layers,
            chat_format=self.chat_format.name,
            system_messages=self.chat_format.system_messages,
            chat_extension=self.chat_format.extension.to_values(),
            versions={tool: metadata.version(tool) for tool in _TOOLS},
            files=record_files(self.made),
            notes=self.notes,
        )
        path = self.made / MANIFEST_NAME
        path.write_text(manifest.to_json(), encoding="utf-8", newline="\n")
        return weights


def _warn_of_errors(layers: Sequence[WeightLayer]) -> None:
    """Log the layers whose weights lost more than they do in every known model."""
    wrong = [layer for layer in layers if (layer.error or 0) > WORST_ERROR[layer.precision]]
    if wrong:
        worst = max(wrong, key=lambda layer: layer.error or 0)
        _LOGGER.warning(
            "%d of %d layers lost more than usual by rounding, the most %s: its error is %.0f %% "
            "of its weights. Compare the answers (phi3ov quality), and leave it out "
            "(ignored_layers=...) or take smaller groups.",
            len(wrong), len(layers), worst.name, 100 * (worst.error or 0),
        )  # fmt: skip
