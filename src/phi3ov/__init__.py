"""Microsoft Phi-3 to a fast, correct, local chat on Intel hardware through OpenVINO.

    checkpoint ──export_model()──▶ artifact folder ──load_model()──▶ Phi3Model ──Phi3Chat──▶ text

The names in ``__all__`` are the public surface. Each is imported from its module when it is
first used (PEP 562), so that ``import phi3ov`` costs next to nothing; and none of torch,
transformers, nncf, optimum, openvino, openvino_genai and numpy is imported before a call needs it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .artifact import Artifact
    from .chat import Phi3Chat
    from .chat_format import Message
    from .compression import Int4Compression
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
        StateError,
        UnsupportedModelError,
    )
    from .exporter import ExportReport, export_model
    from .generation import GenerationOptions, Reply, Timings, Usage
    from .hub import fetch_artifact, push_to_hub
    from .model import Phi3Model, load_model
    from .progress import ExportProgress
    from .runtime import DeviceChoice, RuntimeConfig, list_devices
    from .stream import ReplyStream
    from .tools import Tool, ToolCall

__version__ = "0.1.0"

__all__ = [
    "Artifact",
    "ArtifactError",
    "CompressionError",
    "ContextLengthError",
    "DeviceChoice",
    "DeviceError",
    "EngineCrashedError",
    "ExportError",
    "ExportProgress",
    "ExportReport",
    "GenerationError",
    "GenerationOptions",
    "Int4Compression",
    "Message",
    "MissingDependencyError",
    "OptionError",
    "Phi3Chat",
    "Phi3Model",
    "Phi3OVError",
    "PromptError",
    "QueueFullError",
    "Reply",
    "ReplyStream",
    "RuntimeConfig",
    "StateError",
    "Timings",
    "Tool",
    "ToolCall",
    "UnsupportedModelError",
    "Usage",
    "export_model",
    "fetch_artifact",
    "list_devices",
    "load_model",
    "push_to_hub",
]

# Where each public name comes from; a test compares it with __all__ and the imports above.
_MODULES = {
    "artifact": ("Artifact",),
    "chat": ("Phi3Chat",),
    "chat_format": ("Message",),
    "compression": ("Int4Compression",),
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
        "StateError",
        "UnsupportedModelError",
    ),
    "exporter": ("ExportReport", "export_model"),
    "progress": ("ExportProgress",),
    "generation": ("GenerationOptions", "Reply", "Timings", "Usage"),
    "hub": ("fetch_artifact", "push_to_hub"),
    "model": ("Phi3Model", "load_model"),
    "runtime": ("DeviceChoice", "RuntimeConfig", "list_devices"),
    "stream": ("ReplyStream",),
    "tools": ("Tool", "ToolCall"),
}


def __getattr__(name: str) -> object:
    """Import a public name from its module when it is first used."""
    for module, names in _MODULES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(f".{module}", __name__), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
