"""What a device is told to compile a model, and what is said where it fails."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openvino
import openvino.opset13 as ops

from ..errors import DeviceError
from .config import RuntimeConfig

_LOGGER = logging.getLogger("phi3ov")

KEPT_KERNELS = {"CPU_RUNTIME_CACHE_CAPACITY": "100"}
"""How many kernels OpenVINO's CPU plugin keeps that it made for one shape.

Each new length of a prompt makes some, and the plugin would keep 5 000: memory that grows for
thousands of turns. With 100 it stays flat and nothing gets slower (decision 19).
"""


def device_properties(
    config: RuntimeConfig, core: openvino.Core, device: str, *, paged: bool = True
) -> dict[str, str]:
    """Return the properties with which ``device`` compiles a model.

    Args:
        config: What the caller configured.
        core: OpenVINO.
        device: Its name.
        paged: Whether the model computes with paged attention.

    Raises:
        OptionError: The caller set a property that the device does not take.
        DeviceError: The device cannot be asked.
    """
    try:
        supported = set(core.get_property(device, "SUPPORTED_PROPERTIES"))
        # OpenVINO itself keeps compiled models, for every device that can hand them out and back.
        able = "OPTIMIZATION_CAPABILITIES"
        if able in supported and "EXPORT_IMPORT" in core.get_property(device, able):
            supported.add("CACHE_DIR")
    except RuntimeError as error:
        raise DeviceError(f"OpenVINO cannot ask device={device!r}: {error}") from error
    chosen = config.to_properties(supported)
    if paged and device == "CPU" and "CACHE_DIR" in chosen:
        _LOGGER.warning(
            "cache_dir=%s makes loading longer, not shorter: on a CPU OpenVINO writes a model with "
            "paged attention there and does not read it back. Leave it out.",
            chosen["CACHE_DIR"],
        )
    if device == "CPU" and _takes_kept_kernels(core):
        return KEPT_KERNELS | chosen
    return chosen


@contextmanager
def compiling(folder: Path, device: str) -> Iterator[None]:
    """Name model and device in what OpenVINO raises while it compiles.

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
    """Ask by compiling nothing: the property is in no list, and a later OpenVINO may drop it."""
    parameter = ops.parameter([1])
    try:
        core.compile_model(openvino.Model([parameter], [parameter]), "CPU", KEPT_KERNELS)
    except RuntimeError as error:
        _LOGGER.warning(
            "Memory may grow over many turns: OpenVINO refuses %s: %s", KEPT_KERNELS, error
        )
        return False
    return True
