"""Public types that 0.1 had in other modules: the old names work, and warn.

Modules of 0.1 that are gone are entries of ``sys.modules`` instead of files. The public names of
``phi3ov`` itself have not moved. `docs/migrating.md` lists all of them.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from warnings import warn

MOVED: Mapping[str, Mapping[str, str]] = {
    "artifact": {"FileRecord": "artifact.folder", "Manifest": "artifact.folder"},
    "batch": {"Conversation": "batch.runner", "ReportProgress": "batch.runner"},
    "chat_format": {"Role": "prompt.messages"},
    "compression": {"Compression": "exporter.recipes", "Int4Compression": "exporter.int4"},
    "engine": {"EngineName": "engine.protocol"},
    "generation": {
        "GenerationOptions": "answer.options",
        "JsonSchema": "answer.options",
        "Options": "answer.options",
        "OverflowPolicy": "answer.options",
        "QueuePolicy": "answer.options",
        "TimeoutPolicy": "answer.options",
    },
    "ir": dict.fromkeys(("Precision", "WeightLayer", "WeightSummary"), "artifact.ir"),
    "progress": {"ExportProgress": "exporter.progress", "ProgressCallback": "exporter.progress"},
    "quality_plot": {"draw_histogram": "quality"},
    "reply": {"FinishReason": "answer.reply", "Reply": "answer.reply", "Usage": "answer.reply"},
    "rope": {"ContextChoice": "runtime.rope", "RopeFactors": "runtime.rope"},
}
"""For each module of 0.1: its public names, and where each is now."""

_FOLDERS = frozenset({"artifact", "batch", "engine"})
"""Modules of 0.1 that are folders now."""

REMOVED_IN = "0.4"


def find_moved(module: str, name: str) -> object:
    """Return the object that ``phi3ov.module.name`` was in 0.1, with a warning.

    Args:
        module: Without ``phi3ov.``.
        name: A name of it.

    Raises:
        AttributeError: 0.1 had no such public name there.
    """
    place = MOVED.get(module, {}).get(name)
    if place is None:
        raise AttributeError(f"module 'phi3ov.{module}' has no attribute {name!r}")
    value: object = getattr(import_module(f"phi3ov.{place}"), name)
    public = name in import_module("phi3ov").__all__
    warn(
        f"phi3ov.{module}.{name} has moved: use phi3ov.{name if public else f'{place}.{name}'}. "
        f"The old name is removed in {REMOVED_IN}.",
        DeprecationWarning,
        stacklevel=3,
    )
    return value


class _MovedModule(ModuleType):
    """A module of 0.1 that is gone."""

    def __getattr__(self, name: str) -> object:
        return find_moved(self.__name__.removeprefix("phi3ov."), name)


def add_moved_modules() -> None:
    """Let ``import phi3ov.reply`` and the others of `MOVED` work."""
    for module in MOVED.keys() - _FOLDERS:
        name = f"phi3ov.{module}"
        sys.modules.setdefault(name, _MovedModule(name, doc="Moved; see phi3ov.moved."))
