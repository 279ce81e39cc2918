"""Arguments that several commands take, each declared in one place."""

from __future__ import annotations

import argparse
import math
from typing import Any

from ..engine.protocol import ENGINES, EngineName
from ..errors import OptionError
from ..runtime.config import RuntimeConfig


def add_json(parser: argparse.ArgumentParser, what: str) -> None:
    """Declare ``--json``, which prints one JSON value: ``what``."""
    parser.add_argument("--json", action="store_true", help=f"print JSON: {what}")


def add_model(parser: argparse.ArgumentParser, *, engine: EngineName) -> None:
    """Declare the model, how it is loaded, and what holds for every answer.

    Args:
        parser: A command's.
        engine: The engine that it uses by default.
    """
    parser.add_argument("model", help="an exported folder")
    parser.add_argument(
        "--device",
        action="append",
        help="OpenVINO device; repeat for preferences (GPU, then CPU)",
    )
    parser.add_argument(
        "--engine",
        choices=tuple(ENGINES),
        default=engine,
        help="what answers (%(default)s)",
    )
    parser.add_argument(
        "--context-tokens",
        type=int,
        help="tokens of prompt and answer together (the model's original context)",
    )
    parser.add_argument("--threads", type=int, help="CPU threads (OpenVINO's choice)")
    parser.add_argument(
        "--max-new-tokens", type=int, default=1024, help="the longest answer (%(default)s)"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        help="0 takes the likeliest token each time, above 0 draws (%(default)s)",
    )


def loading_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return what `load_model` takes of the arguments that `add_model` declared."""
    return {
        "device": tuple(options.device or ("GPU", "CPU")),
        "config": RuntimeConfig(threads=options.threads),
        "engine": options.engine,
        "context_tokens": options.context_tokens,
    }


def gigabytes_to_bytes(name: str, gigabytes: float | None) -> int | None:
    """Return a size of 10^9 bytes each in bytes; None stays None.

    Raises:
        OptionError: It is no finite number above 0.
    """
    if gigabytes is None:
        return None
    if not math.isfinite(gigabytes) or gigabytes <= 0:
        raise OptionError(f"{name}={gigabytes} must be a number of GB above 0.")
    return int(gigabytes * 1e9)
