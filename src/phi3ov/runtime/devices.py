"""The machine's OpenVINO devices, and the choice of the device that runs a model.

`choose_device` returns the next device to try and the reason, from the caller's preferences, the
available devices and those that have failed. `loading` tries it. Devices are queried through
`DeviceSource`, so tests can simulate other machines.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import DeviceError


class DeviceSource(Protocol):
    """The part of ``openvino.Core`` that is used; tests replace it to simulate a machine."""

    @property
    def available_devices(self) -> list[str]:
        """Return the name of every device."""
        ...

    def get_property(self, device_name: str, name: str, /) -> Any:
        """Return a property of a device."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceInfo:
    """One device of the machine.

    Attributes:
        name: OpenVINO's name, such as ``"GPU.0"``.
        full_name: The product name, such as ``"Intel(R) Arc(TM) Graphics (iGPU)"``; or the error
            if OpenVINO cannot query the device.
        memory_bytes: Size of its memory; for a CPU, of the machine's. None if unknown.
        precisions: Precisions with native arithmetic, as OpenVINO spells them.
    """

    name: str
    full_name: str
    memory_bytes: int | None
    precisions: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRefusal:
    """A preferred device that was not chosen.

    Attributes:
        device: The name, as the caller wrote it.
        reason: Why it does not run the model.
    """

    device: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceChoice:
    """The device that runs the model, and the reason.

    Attributes:
        requested: The caller's devices, in order of preference.
        selected: OpenVINO's name of the chosen device, such as ``"CPU"`` or ``"GPU.0"``.
        full_name: The product name, such as ``"Intel(R) Arc(TM) Graphics (iGPU)"``.
        reason: Why this device was chosen over those before it, in a sentence.
        refused: The preferred devices before it, each with the reason.
    """

    requested: tuple[str, ...]
    selected: str
    full_name: str
    reason: str
    refused: tuple[DeviceRefusal, ...] = ()


def list_devices() -> dict[str, str]:
    """Return the full names of the machine's OpenVINO devices, by device name.

    Example:
        >>> "CPU" in list_devices()
        True
    """
    return {device.name: device.full_name for device in describe_devices()}


def describe_devices(source: DeviceSource | None = None) -> list[DeviceInfo]:
    """Return the machine's OpenVINO devices with their memory and precisions.

    Args:
        source: Where to query devices; None for OpenVINO.

    Example:
        >>> "FP32" in describe_devices()[0].precisions
        True
    """
    if source is None:
        from openvino import Core

        source = Core()
    return [_describe_device(name, source) for name in source.available_devices]


def find_devices(
    requested: str | Sequence[str], source: DeviceSource | None = None
) -> dict[str, str]:
    """Return the full names of the machine's devices of the requested kinds, by device name.

    OpenVINO loads plugin and driver of each kind of device that is queried. Querying only the
    requested kinds means that loading a model on the CPU neither waits for a GPU's driver nor
    fails with it.

    Args:
        requested: As for `choose_device`.
        source: Where to query devices; None for OpenVINO.

    Returns:
        The devices; or all devices of the machine if none of the requested kinds exists, for the
        error that lists them.

    Raises:
        DeviceError: A name is not a device name.
    """
    names = (requested,) if isinstance(requested, str) else tuple(requested or ())
    for name in names:
        _refuse_virtual(name)
    if source is None:
        from openvino import Core

        source = Core()
    kinds = dict.fromkeys(name.partition(".")[0].upper() for name in names)
    found = [device for kind in kinds for device in _devices_of_kind(kind, source)]
    if not any(_find(name, dict.fromkeys(found, "")) for name in names):
        found = source.available_devices
    return {name: _describe_device(name, source).full_name for name in found}


def _devices_of_kind(kind: str, source: DeviceSource) -> list[str]:
    """Return OpenVINO's device names of a kind; empty if its plugin does not load."""
    try:
        numbers = list(source.get_property(kind, "AVAILABLE_DEVICES"))
    except RuntimeError:
        return []
    return [f"{kind}.{number}" for number in numbers] if len(numbers) > 1 else [kind] * len(numbers)


def _describe_device(name: str, source: DeviceSource) -> DeviceInfo:
    try:
        return _ask_device(name, source)
    except RuntimeError as error:  # a broken driver must not block the other devices
        why = str(error).strip().splitlines()[-1:] or ["no reason given"]
        return DeviceInfo(
            name=name,
            full_name=f"a device that OpenVINO cannot ask: {why[0].strip()}",
            memory_bytes=None,
            precisions=(),
        )


def _ask_device(name: str, source: DeviceSource) -> DeviceInfo:
    supported = source.get_property(name, "SUPPORTED_PROPERTIES")
    kind = name.partition(".")[0]
    memory = None
    if (total := f"{kind}_DEVICE_TOTAL_MEM_SIZE") in supported:
        memory = int(source.get_property(name, total))
    elif kind == "CPU":
        memory = _system_memory_bytes()
    able: tuple[str, ...] = ()
    if "OPTIMIZATION_CAPABILITIES" in supported:
        able = source.get_property(name, "OPTIMIZATION_CAPABILITIES")
    return DeviceInfo(
        name=name,
        full_name=str(source.get_property(name, "FULL_DEVICE_NAME")),
        memory_bytes=memory,
        precisions=tuple(sorted(precision for precision in able if precision in _PRECISIONS)),
    )


_PRECISIONS = {"FP32", "BF16", "FP16", "INT16", "INT8", "INT4", "BIN", "FP8", "NF4"}
"""OpenVINO capabilities that are precisions, unlike WINOGRAD for example."""


def _system_memory_bytes() -> int | None:
    if sys.platform == "win32":  # has no sysconf
        return None
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def choose_device(
    requested: str | Sequence[str],
    available: Mapping[str, str] | None = None,
    *,
    failed: Mapping[str, str] | None = None,
) -> DeviceChoice:
    """Choose the first requested device that exists and has not failed.

    Args:
        requested: A device name, or several in order of preference. ``"GPU"`` and ``"GPU.0"``
            are the same on a machine with one GPU; names are case-insensitive.
        available: Full names of the machine's devices, by device name; None queries OpenVINO for
            the requested kinds.
        failed: Reason why the model does not run on a device, by OpenVINO's device name.

    Raises:
        DeviceError: No requested device is left, or a name is not a device name.

    Example:
        >>> choose_device(("GPU.0", "CPU"), {"CPU": "Intel(R) Core(TM) Ultra 7"}).reason
        'GPU.0 is not there (OpenVINO finds CPU); CPU is.'
    """
    names = (requested,) if isinstance(requested, str) else tuple(requested or ())
    for name in names:
        _refuse_virtual(name)
    available = find_devices(names) if available is None else available
    failed = failed or {}
    if not names:
        raise DeviceError(f"device={requested!r} names no device. {_describe(available)}")
    missing: list[str] = []
    refused: list[DeviceRefusal] = []
    for name in names:
        selected = _find(name, available)
        if selected is None:
            missing.append(name)
            why = f"It is not there (OpenVINO finds {', '.join(available) or 'nothing'})."
            refused.append(DeviceRefusal(device=name, reason=why))
        elif selected in failed:
            refused.append(DeviceRefusal(device=name, reason=failed[selected]))
        else:
            return DeviceChoice(
                requested=names,
                selected=selected,
                full_name=available[selected],
                reason=_reason(name, selected, missing, refused, available),
                refused=tuple(refused),
            )
    if failed:
        reasons = "".join(f"\n  - {refusal.device}: {refusal.reason}" for refusal in refused)
        raise DeviceError(f"device={requested!r}: none runs the model:{reasons}")
    raise DeviceError(
        f"device={requested!r}: {' and '.join(missing)} "
        f"{'is' if len(missing) == 1 else 'are'} not there. {_describe(available)}"
        f"{_driver_hint(missing)}"
    )


def _refuse_virtual(name: object) -> None:
    if not isinstance(name, str):
        raise DeviceError(f"device={name!r} is not a device name, such as 'CPU'.")
    if ":" in name or name.upper() in ("AUTO", "MULTI", "HETERO"):
        raise DeviceError(
            f"device={name!r} is a virtual device. phi3ov chooses by itself and says why: give an "
            "ordered preference instead, such as device=('GPU', 'CPU')."
        )


def _find(name: str, available: Mapping[str, str]) -> str | None:
    """Return OpenVINO's name for ``name``, or None if the machine has no such device."""
    wanted = name.upper()
    kind, _, number = wanted.partition(".")
    same_kind = [name for name in available if name.partition(".")[0] == kind]
    if wanted in available:
        return wanted
    if not number and same_kind:
        return min(same_kind)
    if number == "0" and same_kind == [kind]:
        return kind
    return None


def _reason(
    name: str,
    selected: str,
    missing: Sequence[str],
    refused: Sequence[DeviceRefusal],
    available: Mapping[str, str],
) -> str:
    alias = "" if name == selected else f" ({name} means {selected} here)"
    if not refused:
        return f"{selected} is the first choice and is there{alias}."
    parts = []
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        found = ", ".join(available)
        parts.append(f"{' and '.join(missing)} {verb} not there (OpenVINO finds {found})")
    tried = [refusal.device for refusal in refused if refusal.device not in missing]
    if tried:
        verb = "does" if len(tried) == 1 else "do"
        parts.append(f"{' and '.join(tried)} {verb} not run the model")
    return f"{'; '.join(parts)}; {selected} {'is' if not tried else 'is next'}{alias}."


def _describe(available: Mapping[str, str]) -> str:
    listed = ", ".join(f"{name} ({full_name})" for name, full_name in available.items())
    return f"OpenVINO finds on this machine: {listed or 'nothing'}."


def _driver_hint(missing: Sequence[str]) -> str:
    kinds = {name.partition(".")[0].upper() for name in missing} & {"GPU", "NPU"}
    if not kinds:
        return ""
    return f" An Intel {' or '.join(sorted(kinds))} appears here once its driver is installed."
