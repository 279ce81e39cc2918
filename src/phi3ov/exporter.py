"""Checkpoint to artifact: `export_model` converts, compresses, verifies, and then renames.

The steps, each a phase that progress reports:

1. check the checkpoint and the recipe (nothing has been written yet);
2. convert it to OpenVINO with optimum's exporter, in the checkpoint's own precision;
3. compress the weights with NNCF;
4. collect the files that travel along;
5. read the result back: is it really what was asked for?
6. write the manifest and rename the folder into place.

All work happens in a folder beside the target. An export either is what was asked for, or it
raises and leaves nothing behind.
"""

from __future__ import annotations

import importlib
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .artifact import MANIFEST_NAME, MODEL_XML, Artifact, Manifest, record_files
from .chat_format import ChatFormat, recognize_format
from .checkpoint import Checkpoint
from .compression import (
    Compression,
    Int4Compression,
    check_compression,
    check_divisible,
    check_ignored,
    check_weights,
    describe_recipe,
    draw_samples,
)
from .compressor import compress_ir
from .errors import ExportError, MissingDependencyError, Phi3OVError
from .ir import WeightSummary, read_weights, summarize
from .progress import Phases, ProgressCallback
from .prompt import ChatTokenizer
from .quiet import quiet_tools
from .workplace import (
    check_disk,
    check_target,
    describe_free_disk,
    open_workplace,
    put_into_place,
)

_TRAVELS_ALONG = (
    "added_tokens.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
)
_TOKENIZER_PAIR = ("openvino_tokenizer.xml", "openvino_detokenizer.xml")
_TOOLS = (
    "phi3ov",
    "openvino",
    "openvino-tokenizers",
    "optimum-intel",
    "nncf",
    "transformers",
    "torch",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """What an export made.

    Attributes:
        artifact: The exported folder.
        source_bytes: Bytes of the checkpoint's weights.
        artifact_bytes: Bytes of the exported folder.
        weights: What the model really holds, by precision and group size.
        phase_seconds: How long each phase took.
    """

    artifact: Artifact
    source_bytes: int
    artifact_bytes: int
    weights: tuple[WeightSummary, ...]
    phase_seconds: Mapping[str, float]


def export_model(
    source: str | Path,
    output: str | Path,
    *,
    compression: Compression = Int4Compression(),  # noqa: B008 - immutable
    revision: str | None = None,
    trust_remote_code: bool = False,
    overwrite: bool = False,
    progress: bool | ProgressCallback = True,
) -> ExportReport:
    """Export a Phi-3 checkpoint to a folder that `phi3ov.load_model` loads.

    Args:
        source: A local checkpoint folder, or a hub id.
        output: The folder to make.
        compression: `Int4Compression`, ``"int8"`` or ``"fp16"`` (no compression).
        revision: Branch, tag or commit of a hub id.
        trust_remote_code: Run code that the checkpoint brings. No supported model needs it.
        overwrite: Replace ``output`` if it is an artifact already.
        progress: True prints a line per phase to stderr; a callable gets `ExportProgress`.

    Raises:
        ExportError: Source or target cannot be used, the disk is too small, or a tool failed.
        CompressionError: The recipe does not fit the model; names the layers.
        UnsupportedModelError: The checkpoint is no Phi-3 that phi3ov supports.
        MissingDependencyError: ``phi3ov[export]`` is not installed.

    Example:
        >>> report = export_model("microsoft/Phi-3-mini-4k-instruct", "phi3")  # doctest: +SKIP
        >>> report.artifact.bits_per_weight  # doctest: +SKIP
        5.8
    """
    _require_tools()
    target = Path(output).absolute()
    phases = Phases(progress)
    phases.begin("check")
    check_target(target, overwrite=overwrite)
    check_compression(compression)
    checkpoint = Checkpoint.resolve(source, revision=revision)
    checkpoint.check_tensors()
    if isinstance(compression, Int4Compression):
        check_ignored(checkpoint, compression)
        check_divisible(checkpoint, compression)
    chat_format = _recognize_format(checkpoint)
    tokenizer = ChatTokenizer.from_folder(checkpoint.path, chat_format)  # raises if unusable
    samples = draw_samples(checkpoint, compression, tokenizer)
    with open_workplace(target) as work:
        check_disk(checkpoint, work)
        made = work / "artifact"
        made.mkdir()
        try:
            phases.begin("convert")
            with quiet_tools():  # not around begin(): a callback may print
                _convert(checkpoint, work / "full", trust_remote_code=trust_remote_code)
            phases.begin("compress")
            with quiet_tools():
                compress_ir(work / "full", made, compression, samples)
            phases.begin("collect files")
            _collect_files(checkpoint, work / "full", made)
            shutil.rmtree(work / "full")
            phases.begin("verify")
            layers = read_weights(made / MODEL_XML)
            check_weights(layers, compression)
            weights = summarize(layers)
            recipe = describe_recipe(compression, samples)
            _write_manifest(made, checkpoint, recipe, weights, chat_format)
            put_into_place(made, target, work)
        except Phi3OVError:
            raise
        except Exception as error:
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
    )


def _require_tools() -> None:
    for module, package in (("optimum.intel", "optimum-intel"), ("nncf", "nncf")):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the tools' own imports
                importlib.import_module(module)
        except ImportError as error:
            raise MissingDependencyError(
                package, purpose="export_model()", command='pip install "phi3ov[export]"'
            ) from error


def _recognize_format(checkpoint: Checkpoint) -> ChatFormat:
    from transformers import AutoTokenizer

    try:
        with quiet_tools():
            tokenizer = AutoTokenizer.from_pretrained(checkpoint.path, local_files_only=True)
    except Exception as error:
        raise ExportError(
            f"transformers cannot read the tokenizer of {checkpoint.path}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not tokenizer.chat_template:
        raise ExportError(f"{checkpoint.path} has no chat template, so no chat format is known.")
    return recognize_format(
        lambda messages: str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        )
    )


def _convert(checkpoint: Checkpoint, output: Path, *, trust_remote_code: bool) -> None:
    """Write the model and its tokenizer pair as OpenVINO IR, weights in their own precision.

    optimum's exporter takes a quantization config too, but compresses nothing with it and says
    nothing; so compression is a step of its own.
    """
    from optimum.exporters.openvino import main_export
    from optimum.intel import OVConfig

    main_export(
        str(checkpoint.path),
        output=output,
        task="text-generation-with-past",
        trust_remote_code=trust_remote_code,
        local_files_only=True,
        ov_config=OVConfig(dtype="auto"),
        stateful=True,
        convert_tokenizer=True,
        library_name="transformers",
    )


def _collect_files(checkpoint: Checkpoint, full: Path, made: Path) -> None:
    """Copy what travels along: the checkpoint's own files as they are, and the tokenizer pair.

    The config is the checkpoint's, because the exporter writes a changed context length.
    """
    for name in _TRAVELS_ALONG:
        if (checkpoint.path / name).is_file():
            shutil.copyfile(checkpoint.path / name, made / name)
    for name in _TOKENIZER_PAIR:
        if not (full / name).is_file():
            raise ExportError(
                f"openvino-tokenizers could not convert the tokenizer of {checkpoint.path}: "
                f"it wrote no {name}."
            )
        for part in (name, name.replace(".xml", ".bin")):
            shutil.copyfile(full / part, made / part)


def _write_manifest(
    made: Path,
    checkpoint: Checkpoint,
    recipe: Mapping[str, Any],
    weights: tuple[WeightSummary, ...],
    chat_format: ChatFormat,
) -> None:
    from importlib import metadata

    manifest = Manifest(
        source=checkpoint.source,
        revision=checkpoint.revision,
        commit=checkpoint.commit,
        source_bytes=checkpoint.weights_bytes,
        recipe=recipe,
        weights=weights,
        chat_format=chat_format.name,
        system_messages=chat_format.system_messages,
        versions={tool: metadata.version(tool) for tool in _TOOLS},
        files=record_files(made),
    )
    (made / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8", newline="\n")
