"""``phi3ov quality``: the quality loss of an export against its source."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .files import check_writable, read_text, write_text
from .options import Quiet, json_option
from .printing import print_json, write_line

EXAMPLE = "phi3ov quality microsoft/Phi-3-mini-4k-instruct phi3-int4 --svg kl.svg"


def run(
    source: Annotated[str, typer.Argument(help="the checkpoint: a folder or a hub id")],
    artifact: Annotated[str, typer.Argument(help="the folder exported from it")],
    *,
    text: Annotated[
        Path | None, typer.Option(help="the file to read", show_default="Python's manual")
    ] = None,
    window_tokens: Annotated[int, typer.Option(help="tokens read at once")] = 512,
    max_tokens: Annotated[int, typer.Option(help="tokens read at most")] = 8192,
    as_json: Annotated[bool, json_option("the report")] = False,
    svg: Annotated[
        Path | None, typer.Option(help="draw the divergence's histogram into this file")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Measure how much an export lost against its source."""
    from ..quality import compare, draw_histogram
    from ..quality.plot import require_matplotlib

    if svg is not None:  # the comparison takes minutes
        check_writable(svg)
        require_matplotlib()
    report = compare(
        source,
        artifact,
        text=None if text is None else read_text(text),
        window_tokens=window_tokens,
        max_tokens=max_tokens,
        progress=not quiet,
    )
    if svg is not None:
        write_text(svg, draw_histogram(report))
    if as_json:
        print_json(report.to_dict())
    else:
        write_line(str(report))  # it contains answers of the models
