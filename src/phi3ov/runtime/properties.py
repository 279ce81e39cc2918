"""OpenVINO properties for compiling a model on a device, and the translation of its errors."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import openvino
import openvino.opset13 as ops

from ..artifact.folder import MODEL_XML, Artifact
from ..artifact.ir import exported_kv_precision
from ..errors import DeviceError
from .config import RuntimeConfig
from .processor import read_processor
from .settings import (
    GROUPS,
    KV_PRECISION,
    PRECISION,
    THREADS,
    Setting,
    Situation,
    choose_settings,
)
from .tuning import TunedSettings

_LOGGER = logging.getLogger("phi3ov")

KEPT_KERNELS = {"CPU_RUNTIME_CACHE_CAPACITY": "100"}
"""Number of shape-specific kernels that OpenVINO's CPU plugin caches.

Each new prompt length creates kernels, and the plugin's default cache of 5 000 makes memory grow
for thousands of turns. With 100, memory stays constant and speed is the same (decision 19).
"""


def device_settings(
    config: RuntimeConfig,
    core: openvino.Core,
    device: str,
    *,
    artifact: Artifact | None = None,
    paged: bool = True,
    tuned: TunedSettings | None = None,
) -> tuple[Setting, ...]:
    """Return the properties with which ``device`` compiles a model, each with its reason.

    Args:
        config: The caller's settings.
        core: OpenVINO.
        device: Name of the device.
        artifact: The exported folder; without it no setting that depends on weights is chosen.
        paged: Whether the model uses paged attention.
        tuned: Result of ``phi3ov tune`` for this machine and export.

    Raises:
        OptionError: The caller set a property that the device does not support, or a group of the
            cache that does not divide a head.
        DeviceError: The device cannot be queried.
    """
    if artifact is not None:
        config.check_groups(artifact.config.head_dim)
    situation = _describe(core, device, artifact, paged=paged)
    settings = choose_settings(config, replace(situation, tuned=tuned))
    names = {setting.name: setting.value for setting in settings}
    if paged and device == "CPU" and "CACHE_DIR" in names:
        _LOGGER.warning(
            "cache_dir=%s makes loading longer, not shorter: on a CPU OpenVINO writes a model with "
            "paged attention there and does not read it back. Leave it out.",
            names["CACHE_DIR"],
        )
    if device == "CPU" and not names.keys() & KEPT_KERNELS.keys() and _takes_kept_kernels(core):
        reason = "keeps memory flat over thousands of turns"
        settings += tuple(
            Setting(name=name, value=value, chosen_by="phi3ov", reason=reason)
            for name, value in KEPT_KERNELS.items()
        )
    for setting in settings:
        _LOGGER.debug("%s: %s", device, setting)
    return settings


def _describe(
    core: openvino.Core, device: str, artifact: Artifact | None, *, paged: bool
) -> Situation:
    """Query OpenVINO, the processor and the export for the inputs of the choice."""
    try:
        supported = set(core.get_property(device, "SUPPORTED_PROPERTIES"))
        # OpenVINO caches compiled models itself, for every device that can export and import them.
        able = "OPTIMIZATION_CAPABILITIES"
        if able in supported and "EXPORT_IMPORT" in core.get_property(device, able):
            supported.add("CACHE_DIR")
        own = {
            name: _as_text(core.get_property(device, name))
            for name in (THREADS, PRECISION, GROUPS, KV_PRECISION)
            if name in supported
        }
        name = core.get_property(device, "FULL_DEVICE_NAME") if device == "CPU" else ""
    except RuntimeError as error:
        raise DeviceError(f"OpenVINO cannot ask device={device!r}: {error}") from error
    return Situation(
        device=device,
        processor=read_processor(str(name)),
        weights=() if artifact is None else artifact.manifest.weights,
        supported=frozenset(supported),
        own=own,
        exported_kv_precision=(
            None if artifact is None else exported_kv_precision(artifact.path / MODEL_XML)
        ),
        paged=paged,
    )


def _as_text(value: Any) -> str:
    return str(value.get_type_name()) if isinstance(value, openvino.Type) else str(value)


@contextmanager
def compiling(folder: Path, device: str) -> Iterator[None]:
    """Translate errors of compilation into a `DeviceError` that names model and device.

    Raises:
        DeviceError: OpenVINO could not compile the model for the device.
    """
    try:
        yield
    except RuntimeError as error:
        raise DeviceError(
            f"OpenVINO could not compile {folder} for device={device!r}: {error}"
        ) from error


def _takes_kept_kernels(core: openvino.Core) -> bool:
    """Whether the CPU plugin supports the property, which no list names: compile a tiny model."""
    parameter = ops.parameter([1])
    try:
        core.compile_model(openvino.Model([parameter], [parameter]), "CPU", KEPT_KERNELS)
    except RuntimeError as error:
        _LOGGER.warning(
            "Memory may grow over many turns: OpenVINO refuses %s: %s", KEPT_KERNELS, error
        )
        return False
    return True
