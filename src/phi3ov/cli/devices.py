"""``phi3ov devices``: the OpenVINO devices of this machine."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from ..runtime.devices import describe_devices
from .options import json_option
from .printing import gigabytes, print_json, write_table

EXAMPLE = "phi3ov devices"


def run(*, as_json: Annotated[bool, json_option("the devices")] = False) -> None:
    """List the OpenVINO devices of this machine."""
    devices = describe_devices()
    if as_json:
        print_json([asdict(device) for device in devices])
        return
    rows = [
        (
            device.name,
            "-" if device.memory_bytes is None else gigabytes(device.memory_bytes),
            ", ".join(device.precisions),
            device.full_name,
        )
        for device in devices
    ]
    write_table(("device", "memory", "precisions", "name"), rows, right="memory")
