"""Microsoft Phi-3 to a fast, correct, local chat on Intel hardware through OpenVINO.

    checkpoint ──export_model()──▶ artifact folder ──load_model()──▶ Phi3Model ──Phi3Chat──▶ text

The names below are the public surface. None of torch, transformers, nncf, optimum, openvino,
openvino_genai and numpy is imported before a call needs it.
"""

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
    StateError,
    UnsupportedModelError,
)
from .exporter import ExportProgress, ExportReport, export_model
from .generation import GenerationOptions, Reply, Timings, Usage
from .model import Phi3Model, load_model
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
    "list_devices",
    "load_model",
]
