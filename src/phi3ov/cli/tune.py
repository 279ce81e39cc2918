"""``phi3ov tune``: measure settings on this machine and keep the fastest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .files import check_writable, read_text, write_text
from .options import Model, Quiet, Revision, json_option
from .printing import print_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..machine.tuner import TuningReport

EXAMPLE = "phi3ov tune phi3-int4 --svg tuning.svg"


def run(
    model: Model,
    *,
    revision: Revision = None,
    own_divergence: Annotated[
        float | None,
        typer.Option(
            help="mean KL of the export to its source, as phi3ov quality prints it: settings may "
            "add 5 % of it",
            show_default="unknown",
        ),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            help="most divergence from the exact setting, in nats",
            show_default="5 % of --own-divergence, else 0.01",
        ),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            help="the file that divergence is measured on", show_default="Python's manual"
        ),
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(help="rounds per step", show_default="5, or 2 for large models")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="keep the winners in this file", show_default="the user's data folder"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="keep nothing")] = False,
    as_json: Annotated[bool, json_option("the report")] = False,
    svg: Annotated[Path | None, typer.Option(help="draw the table into this file")] = None,
    quiet: Quiet = False,
) -> None:
    """Measure OpenVINO settings on this machine and keep the fastest for this export."""
    from ..machine.tuner import tune
    from ..quality.plot import draw_svg, require_matplotlib

    if svg is not None:  # the measurement takes minutes
        check_writable(svg)
        require_matplotlib()
    if output is not None:
        check_writable(output)
    report = tune(
        model,
        revision=revision,
        own_divergence=own_divergence,
        budget=budget,
        text=None if text is None else read_text(text),
        rounds=rounds,
        save=False if dry_run else output or True,
        progress=not quiet,
    )
    if svg is not None:
        height = 1.6 + 0.55 * len(report.rows)
        write_text(svg, draw_svg(lambda axes: _draw(axes, report), width=8, height=height))
    if as_json:
        print_json(report.to_dict())
    else:
        print(report)


def _draw(axes: Axes, report: TuningReport) -> None:
    """Draw three bars per setting: the multiples of OpenVINO's own."""
    from ..machine.tuner import describe

    names = [describe(row.settings) + (" (refused)" if row.refused else "") for row in report.rows]
    kinds = (
        ("one chat", [row.gain.one_chat for row in report.rows], "#4477aa"),
        ("eight chats", [row.gain.eight_chats for row in report.rows], "#ee6677"),
        ("prefill", [row.gain.prefill for row in report.rows], "#228833"),
    )
    places = range(len(names))
    for number, (kind, gains, colour) in enumerate(kinds):
        heights = [place + (number - 1) * 0.26 for place in places]
        bars = axes.barh(heights, gains, height=0.24, color=colour, label=kind)
        axes.bar_label(bars, [f"{gain:.2f}" for gain in gains], fontsize=7, padding=2)
    axes.axvline(1, color="#222222", linewidth=1)
    axes.set_yticks(list(places), names)
    axes.invert_yaxis()
    axes.set_xlabel("tokens per second, as a multiple of OpenVINO's own settings")
    axes.margins(x=0.12)
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=3)
    axes.set_title(f"{report.artifact}\n{report.record.key.processor}, {report.record.date}")
