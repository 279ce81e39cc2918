"""``phi3ov devices``: the OpenVINO devices of this machine."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from ..runtime.devices import describe_devices
from .arguments import add_json
from .printing import gigabytes

if TYPE_CHECKING:
    from . import Commands

EXAMPLE = "phi3ov devices"


def add(commands: Commands) -> None:
    """Declare the command and its arguments."""
    parser = commands.add_parser("devices", help="the OpenVINO devices of this machine")
    add_json(parser, "the devices")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    devices = describe_devices()
    if options.json:
        print(json.dumps([asdict(one) for one in devices], indent=2))
        return
    print(f"{'device':8} {'memory':>9}  {'precisions':28} name")
    for one in devices:
        memory = "-" if one.memory_bytes is None else gigabytes(one.memory_bytes)
        print(f"{one.name:8} {memory:>9}  {', '.join(one.precisions):28} {one.full_name}")
