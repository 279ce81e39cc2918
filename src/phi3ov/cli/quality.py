"""``phi3ov quality``: what an export lost against its source."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import add_json
from .files import check_writable, read_text, write_text

if TYPE_CHECKING:
    from . import Commands

EXAMPLE = "phi3ov quality microsoft/Phi-3-mini-4k-instruct phi3-int4 --svg kl.svg"


def add(commands: Commands) -> None:
    """Declare the command and its arguments."""
    parser = commands.add_parser("quality", help="how much an export lost against its source")
    parser.add_argument("source", help="the checkpoint: a folder or a hub id")
    parser.add_argument("artifact", help="the folder exported from it")
    parser.add_argument("--text", type=Path, help="read this file; without it: Python's manual")
    parser.add_argument(
        "--window-tokens", type=int, default=512, help="tokens read at once (%(default)s)"
    )
    parser.add_argument(
        "--max-tokens", type=int, default=8192, help="read so many at most (%(default)s)"
    )
    add_json(parser, "the report")
    parser.add_argument("--svg", type=Path, help="draw the divergence's histogram into this file")
    parser.add_argument("--quiet", action="store_true", help="print no progress")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    from ..quality import compare, draw_histogram
    from ..quality.plot import require_matplotlib

    if options.svg is not None:  # the comparison takes minutes
        check_writable(options.svg)
        require_matplotlib()
    report = compare(
        options.source,
        options.artifact,
        text=None if options.text is None else read_text(options.text),
        window_tokens=options.window_tokens,
        max_tokens=options.max_tokens,
        progress=not options.quiet,
    )
    if options.svg is not None:
        write_text(options.svg, draw_histogram(report))
    print(json.dumps(report.to_dict(), indent=2) if options.json else report)
