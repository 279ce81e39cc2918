"""Microsoft Phi-3 to a fast, correct, local chat on Intel hardware through OpenVINO.

    checkpoint ──export_model()──▶ artifact folder ──load_model()──▶ Phi3Model ──Phi3Chat──▶ text

The names in ``__all__`` are the public API. Each is imported from its module on first use (PEP
562), so that ``import phi3ov`` takes almost no time. torch, transformers, nncf, optimum, openvino,
openvino_genai and numpy are imported only when a call needs them.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING

from . import moved as _moved

import_module(".thirdparty.home", __name__).leave_out_telemetry_without_home()

if TYPE_CHECKING:
    from . import quality as quality
    from . import reference as reference
    from .answer.options import GenerationOptions, Options
    from .answer.reply import LoadTimings, Reply, Timings, TokenScores, Usage
    from .answer.stream import ReplyStream
    from .artifact.folder import Artifact
    from .artifact.publish import fetch_artifact, push_to_hub
    from .batch.runner import BatchProgress, BatchRequest, BatchResult
    from .chat import Phi3Chat
    from .errors import (
        ArtifactError,
        CompressionError,
        ContextLengthError,
        DeviceError,
        EngineCrashedError,
        ExportError,
        GenerationError,
        MissingDependencyError,
        OptionError,
        Phi3OVError,
        PromptError,
        QueueFullError,
        RestoreError,
        StateError,
        UnsupportedModelError,
    )
    from .exporter.export import ExportReport, export_model
    from .exporter.int4 import Int4Compression
    from .exporter.progress import ExportProgress
    from .loading import load_model
    from .machine.doctor import Diagnosis, diagnose
    from .machine.tuner import TuningReport, tune
    from .model import Phi3Model
    from .prompt.dictionaries import ChatMessage
    from .prompt.messages import Message
    from .prompt.tools import Tool, ToolCall
    from .runtime.config import RuntimeConfig
    from .runtime.devices import (
        DeviceChoice,
        DeviceInfo,
        DeviceRefusal,
        describe_devices,
        list_devices,
    )
    from .runtime.limits import RequestLimits
    from .runtime.lora import LoraAdapter
    from .runtime.settings import Setting
    from .runtime.speculation import DraftModel, PromptLookup

__version__ = "0.2.0"

__all__ = [
    "Artifact",
    "ArtifactError",
    "BatchProgress",
    "BatchRequest",
    "BatchResult",
    "ChatMessage",
    "CompressionError",
    "ContextLengthError",
    "DeviceChoice",
    "DeviceError",
    "DeviceInfo",
    "DeviceRefusal",
    "Diagnosis",
    "DraftModel",
    "EngineCrashedError",
    "ExportError",
    "ExportProgress",
    "ExportReport",
    "GenerationError",
    "GenerationOptions",
    "Int4Compression",
    "LoadTimings",
    "LoraAdapter",
    "Message",
    "MissingDependencyError",
    "OptionError",
    "Options",
    "Phi3Chat",
    "Phi3Model",
    "Phi3OVError",
    "PromptError",
    "PromptLookup",
    "QueueFullError",
    "Reply",
    "ReplyStream",
    "RequestLimits",
    "RestoreError",
    "RuntimeConfig",
    "Setting",
    "StateError",
    "Timings",
    "TokenScores",
    "Tool",
    "ToolCall",
    "TuningReport",
    "UnsupportedModelError",
    "Usage",
    "describe_devices",
    "diagnose",
    "export_model",
    "fetch_artifact",
    "list_devices",
    "load_model",
    "push_to_hub",
    "tune",
]

# Module of each public name; a test compares this with __all__ and the imports above.
_MODULES = {
    "artifact.folder": ("Artifact",),
    "batch.runner": ("BatchProgress", "BatchRequest", "BatchResult"),
    "chat": ("Phi3Chat",),
    "prompt.dictionaries": ("ChatMessage",),
    "prompt.messages": ("Message",),
    "exporter.int4": ("Int4Compression",),
    "runtime.devices": (
        "DeviceChoice",
        "DeviceInfo",
        "DeviceRefusal",
        "describe_devices",
        "list_devices",
    ),
    "errors": (
        "ArtifactError",
        "CompressionError",
        "ContextLengthError",
        "DeviceError",
        "EngineCrashedError",
        "ExportError",
        "GenerationError",
        "MissingDependencyError",
        "OptionError",
        "Phi3OVError",
        "PromptError",
        "QueueFullError",
        "RestoreError",
        "StateError",
        "UnsupportedModelError",
    ),
    "exporter.export": ("ExportReport", "export_model"),
    "exporter.progress": ("ExportProgress",),
    "answer.options": ("GenerationOptions", "Options"),
    "artifact.publish": ("fetch_artifact", "push_to_hub"),
    "runtime.limits": ("RequestLimits",),
    "loading": ("load_model",),
    "runtime.lora": ("LoraAdapter",),
    "model": ("Phi3Model",),
    "answer.reply": ("LoadTimings", "Reply", "Timings", "TokenScores", "Usage"),
    "runtime.config": ("RuntimeConfig",),
    "runtime.settings": ("Setting",),
    "runtime.speculation": ("DraftModel", "PromptLookup"),
    "answer.stream": ("ReplyStream",),
    "prompt.tools": ("Tool", "ToolCall"),
    "machine.doctor": ("Diagnosis", "diagnose"),
    "machine.tuner": ("TuningReport", "tune"),
}


_SUBMODULES = ("quality", "reference")
"""Public modules that are available as attributes of the package without a separate import."""

# Hidden from type checkers, which would otherwise accept every misspelt name.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Import a public name from its module on first use."""
        for module, names in _MODULES.items():
            if name in names:
                value = globals()[name] = getattr(import_module(f".{module}", __name__), name)
                return value
        if name in _SUBMODULES:
            return import_module(f".{name}", __name__)
        if name in _moved.MOVED:  # a module of 0.1, which only sys.modules has
            return sys.modules[f"{__name__}.{name}"]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


_moved.add_moved_modules()


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBMODULES})
