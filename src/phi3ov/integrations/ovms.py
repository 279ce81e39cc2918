"""Writes an exported folder as a model of OpenVINO Model Server (OVMS): `write_ovms_model`.

OVMS reads one folder per model with a ``graph.pbtxt``, and a ``config.json`` that lists the
models. The weights are linked, not copied. The graph of a LongRoPE model is written with pinned
factors: OVMS reads prompts in chunks and caches prefixes, so the exported graph would mix both
sets of factors within a conversation.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..artifact.folder import MODEL_BIN, MODEL_XML, Artifact
from ..atomic_file import replace_file
from ..errors import ArtifactError, OptionError
from ..loading import find_artifact
from ..prompt.chat_tokenizer import ChatTokenizer
from ..runtime.config import require_effect
from ..runtime.rope import ContextChoice, choose_context, pin_factors

GRAPH = "graph.pbtxt"
REPOSITORY_CONFIG = "config.json"
"""File name of the server's list of models; each model's own config.json is in its folder."""

_NEEDED = (
    MODEL_XML,
    MODEL_BIN,
    "openvino_tokenizer.xml",
    "openvino_tokenizer.bin",
    "openvino_detokenizer.xml",
    "openvino_detokenizer.bin",
    "tokenizer_config.json",
    "config.json",
)
_READ_IF_THERE = ("chat_template.jinja", "generation_config.json", "special_tokens_map.json")
_LINKED = ".bin"
"""Suffix of linked files. Other files are copied, so that edits in the server's folder do not
change the export, whose checksums would then fail."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_CALL_MARKER = "functools"
"""Text after which OVMS's parser ``phi4`` reads calls; the template must request it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OvmsModel:
    """Result of `write_ovms_model`.

    Attributes:
        name: The model's name for clients.
        folder: The model's folder.
        repository_config: The server's list of models.
        context: Context length and pinned LongRoPE factors.
        linked: Files that are hard links to the export.
        copied: Files that are copies, including weights if the system cannot create links.
        notes: Notes about serving this model; a sentence each.
        command: The command line that starts the server.
    """

    name: str
    folder: Path
    repository_config: Path
    context: ContextChoice
    linked: tuple[str, ...]
    copied: tuple[str, ...]
    notes: tuple[str, ...]
    command: str


def write_ovms_model(
    model: str | Path,
    target: str | Path,
    *,
    revision: str | None = None,
    name: str | None = None,
    context_tokens: int | None = None,
    device: str = "CPU",
    properties: Mapping[str, str | int | bool] | None = None,
    cache_gigabytes: int = 0,
    tool_template: str | Path | None = None,
) -> OvmsModel:
    """Write a model's folder, and add it to the list of models that OVMS serves.

    Args:
        model: An exported folder, or the hub id of one.
        target: The server's folder of models; created if needed. Other models in it stay.
        revision: Branch, tag or commit of a hub id.
        name: The model's name for clients; None for the folder's name.
        context_tokens: Context length that prompt and answer share; None for the original context.
            A larger number pins the long factors of a LongRoPE model.
        device: OpenVINO device that the server loads the model on.
        properties: OpenVINO properties for OVMS's ``plugin_config``. One that OpenVINO ignores
            is refused, as in `phi3ov.RuntimeConfig`.
        cache_gigabytes: Size of the KV cache; 0 lets it grow.
        tool_template: A chat template that requests calls after the word ``functools``, the only
            form of Phi-4-mini's calls that OVMS reads. It replaces the checkpoint's template.

    Raises:
        ArtifactError: The folder is not a complete export, or lacks files that OVMS reads.
        OptionError: An argument is not allowed, or the target already has a model of this name.
        UnsupportedModelError: The export does not hold long factors.
        OSError: The target cannot be written.

    Example:
        >>> made = write_ovms_model("models/phi3-int4", "served")  # doctest: +SKIP
        >>> print(made.command)  # doctest: +SKIP
        ovms --config_path served/config.json --rest_port 8000 --rest_bind_address 127.0.0.1
    """
    artifact = find_artifact(model, revision=revision)
    name = artifact.path.resolve().name if name is None else name
    if not _NAME.fullmatch(name):
        raise OptionError(
            f"name={name!r} must consist of letters, digits, '.', '_' and '-', because it is the "
            "name of a folder and part of an address. Give another name.",
            option="name",
        )
    if not isinstance(cache_gigabytes, int) or not 0 <= cache_gigabytes <= 10_000:
        raise OptionError(
            f"cache_gigabytes={cache_gigabytes!r} must be a whole number from 0 to 10000, as OVMS "
            "reads it.",
            option="cache_gigabytes",
        )
    for property_name, value in (properties or {}).items():
        require_effect(property_name, value)
    missing = [file for file in _NEEDED if not (artifact.path / file).is_file()]
    if missing:
        raise ArtifactError(
            f"{artifact.path} lacks {', '.join(missing)}, which OpenVINO Model Server reads. "
            "Export the checkpoint again with phi3ov.export_model(), and read its warnings."
        )
    context = choose_context(artifact.config, context_tokens)
    tokenizer = ChatTokenizer.from_folder(artifact.path, artifact.chat_format)
    template = _read_tool_template(tool_template, tokenizer)
    graph = graph_text(
        device=device,
        properties=properties or {},
        cache_gigabytes=cache_gigabytes,
        tool_parser=None if template is None else "phi4",
        reasoning_parser=None if tokenizer.thought_tags is None else "qwen3",
    )
    written = {GRAPH: graph, "config.json": _model_config(artifact, context)}
    if template is not None:
        written["chat_template.jinja"] = template
    if context.factors != "none":
        written[MODEL_XML] = pin_factors(
            (artifact.path / MODEL_XML).read_text(encoding="utf-8"),
            context,
            original_tokens=artifact.config.original_max_position_embeddings,
        )
    repository = Path(target)
    config = _repository_config(repository, name)
    linked, copied = _write_folder(artifact, repository / name, written)
    with replace_file(repository / REPOSITORY_CONFIG) as file:
        file.write(config.encode())
    (repository / REPOSITORY_CONFIG).chmod(0o644)  # the server may run as another user
    return OvmsModel(
        name=name,
        folder=repository / name,
        repository_config=repository / REPOSITORY_CONFIG,
        context=context,
        linked=linked,
        copied=copied,
        notes=_notes(artifact, context, tokenizer, templated=template is not None, copied=copied),
        command=(
            f"ovms --config_path {(repository / REPOSITORY_CONFIG).as_posix()} --rest_port 8000 "
            "--rest_bind_address 127.0.0.1"
        ),
    )


def graph_text(
    *,
    device: str = "CPU",
    properties: Mapping[str, str | int | bool] | None = None,
    cache_gigabytes: int = 0,
    tool_parser: str | None = None,
    reasoning_parser: str | None = None,
) -> str:
    r"""Return the text of ``graph.pbtxt``: OVMS's own graph for text generation (2026.3 or later).

    Args:
        device: OpenVINO device.
        properties: OpenVINO properties.
        cache_gigabytes: Size of the KV cache; 0 lets it grow.
        tool_parser: OVMS's parser of tool calls; None lets OVMS choose by the template.
        reasoning_parser: OVMS's parser of thoughts; None lets OVMS choose by the template.

    Example:
        >>> "models_path: \"./\"" in graph_text()
        True
    """
    options = [
        'models_path: "./"',
        f"device: {_quoted(device)}",
        f"plugin_config: {_quoted(json.dumps(dict(properties or {})))}",
        "enable_prefix_caching: true",
        f"cache_size: {cache_gigabytes}",
        "max_num_seqs: 256",
        "max_num_batched_tokens: 256",
    ]
    if tool_parser is not None:
        options += [f"tool_parser: {_quoted(tool_parser)}", "enable_tool_guided_generation: true"]
    if reasoning_parser is not None:
        options.append(f"reasoning_parser: {_quoted(reasoning_parser)}")
    return _GRAPH.replace("OPTIONS", "\n      ".join(options))


_GRAPH = """\
input_stream: "HTTP_REQUEST_PAYLOAD:input"
output_stream: "HTTP_RESPONSE_PAYLOAD:output"
node: {
  name: "LLMExecutor"
  calculator: "HttpLLMCalculator"
  input_stream: "LOOPBACK:loopback"
  input_stream: "HTTP_REQUEST_PAYLOAD:input"
  input_side_packet: "LLM_NODE_RESOURCES:llm"
  input_side_packet: "LLM_NODE_EXECUTION_CONTEXTS:llm_ctx"
  output_stream: "LOOPBACK:loopback"
  output_stream: "HTTP_RESPONSE_PAYLOAD:output"
  input_stream_info: {
    tag_index: "LOOPBACK:0"
    back_edge: true
  }
  node_options: {
    [type.googleapis.com/mediapipe.LLMCalculatorOptions]: {
      OPTIONS
    }
  }
  input_stream_handler: {
    input_stream_handler: "SyncSetInputStreamHandler"
    options: {
      [mediapipe.SyncSetInputStreamHandlerOptions.ext]: {
        sync_set: {
          tag_index: "LOOPBACK:0"
        }
      }
    }
  }
}
"""
"""Graph for text generation, as OVMS's src/graph_export/graph_export.cpp writes it."""


def _quoted(text: str) -> str:
    """Return a string literal of protobuf's text format, whose escapes equal those of JSON."""
    return json.dumps(text)


def _read_tool_template(path: str | Path | None, tokenizer: ChatTokenizer) -> str | None:
    if path is None:
        return None
    if tokenizer.tool_call_ids is None:
        raise OptionError(
            f"tool_template={str(path)!r} was given, but the chat format "
            f"{tokenizer.format.name!r} has no tools: of the family only Phi-4-mini was trained to "
            "call tools. Leave it out.",
            option="tool_template",
        )
    template = Path(path).read_text(encoding="utf-8")
    if _CALL_MARKER not in template:
        raise OptionError(
            f"tool_template={str(path)!r} does not contain the word {_CALL_MARKER!r}, after which "
            "OVMS's parser 'phi4' looks for calls. Use OVMS's "
            "extras/chat_template_examples/chat_template_phi4_mini.jinja.",
            option="tool_template",
        )
    return template


def _model_config(artifact: Artifact, context: ContextChoice) -> str:
    """Return config.json with the context as the maximum length, which OVMS enforces."""
    fields = json.loads((artifact.path / "config.json").read_text(encoding="utf-8"))
    fields["max_position_embeddings"] = context.tokens
    return json.dumps(fields, indent=2, ensure_ascii=False) + "\n"


def _repository_config(repository: Path, name: str) -> str:
    """Return the server's list of models, including this one."""
    path = repository / REPOSITORY_CONFIG
    listed: dict[str, Any] = {}
    if path.exists():
        try:
            listed = json.loads(path.read_text(encoding="utf-8"))
            models = listed.setdefault("model_config_list", [])
            names = [entry["config"]["name"] for entry in models]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise OptionError(
                f"target={str(repository)!r} holds a {REPOSITORY_CONFIG} that is not OVMS's list "
                f"of models: {error!r}. Choose another folder.",
                option="target",
            ) from error
    else:
        models = listed.setdefault("model_config_list", [])
        names = []
    if name in names or (repository / name).exists():
        raise OptionError(
            f"target={str(repository)!r} has a model {name!r}. Delete it, or give another name.",
            option="target",
        )
    models.append({"config": {"name": name, "base_path": name}})
    return json.dumps(listed, indent=2, ensure_ascii=False) + "\n"


def _write_folder(
    artifact: Artifact, folder: Path, written: Mapping[str, str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Create the model's folder atomically; return the linked and the copied files."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    linked, copied = [], []
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        work = Path(temporary, folder.name)
        work.mkdir(mode=0o755)
        for name, text in written.items():
            (work / name).write_text(text, encoding="utf-8")
        for name in (*_NEEDED, *_READ_IF_THERE):
            source = artifact.path / name
            if name in written or not source.is_file():
                continue
            if name.endswith(_LINKED) and _link(source, work / name):
                linked.append(name)
            else:
                shutil.copyfile(source, work / name)
                copied.append(name)
        os.replace(work, folder)
    return tuple(linked), tuple(copied)


def _link(source: Path, link: Path) -> bool:
    """Create a hard link; return False if the system cannot, for example to another volume."""
    try:
        link.hardlink_to(source.resolve())  # the hub cache's file, not its symbolic link
    except OSError:
        return False
    return True


def _notes(
    artifact: Artifact,
    context: ContextChoice,
    tokenizer: ChatTokenizer,
    *,
    templated: bool,
    copied: tuple[str, ...],
) -> tuple[str, ...]:
    notes = []
    if context.factors != "none":
        notes.append(
            f"LongRoPE's {context.factors} factors are pinned, for up to {context.tokens} tokens. "
            "For another context write the model again with context_tokens."
        )
    if tokenizer.tool_call_ids is not None and not templated:
        notes.append(
            "This model can call tools, but OVMS does not read the calls that its own template "
            "asks for, nor does it put tools where the template expects them. Give tool_template, "
            "or serve it with phi3ov serve."
        )
    if tokenizer.thought_tags is not None:
        notes.append("OVMS's parser 'qwen3' reads this model's thoughts, which have the same tags.")
    if tokenizer.format.extension.opens_thoughts:
        notes.append(
            "The checkpoint's template opens the thoughts in the prompt, so answers hold only the "
            "closing tag. Check with a request that OVMS tells thoughts and answer apart; phi3ov "
            "has not tried it."
        )
    if artifact.chat_format.system_messages not in ("kept", "kept unless empty"):
        notes.append(
            "The checkpoint's template does not write system messages; OVMS does not say so."
        )
    if MODEL_BIN in copied:
        notes.append("The weights are a copy: no link can be made from the target to the export.")
    return tuple(notes)
