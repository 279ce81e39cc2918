"""A `QualityReport` as a picture, drawn by matplotlib (``pip install "phi3ov[plot]"``)."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from math import log10
from typing import TYPE_CHECKING, Any

from ..errors import MissingDependencyError
from .report import KL_EDGES, QualityReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STYLE: dict[str, Any] = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "font.size": 9,
    "svg.fonttype": "none",  # keep text as text, in the viewer's font
    "svg.hashsalt": "phi3ov",  # stable ids from run to run
    "text.parse_math": False,  # a path may contain a dollar sign
}


def require_matplotlib() -> None:
    """Check that matplotlib is installed, before work that takes minutes.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        import matplotlib as _  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            "matplotlib", purpose="Drawing a picture", command='pip install "phi3ov[plot]"'
        ) from error


def draw_svg(draw: Callable[[Axes], None], *, width: float, height: float) -> str:
    """Return a picture as SVG, reproducible with the same version of matplotlib.

    Args:
        draw: Draws on the given axes.
        width: Of the picture, in inches of 72 points.
        height: Of the picture, in inches of 72 points.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    require_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    text = io.StringIO()
    with matplotlib.rc_context(), warnings.catch_warnings():
        # Text is kept as text, so a glyph missing from matplotlib's font is not lost.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        matplotlib.rcdefaults()  # the user's own style must not change the picture
        rc: dict[Any, Any] = matplotlib.rcParams  # keyed by literals in some versions' types
        rc.update(_STYLE)
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure.subplots())
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    lines = text.getvalue().splitlines()
    return "\n".join(line.rstrip() for line in lines) + "\n"


def draw_histogram(report: QualityReport) -> str:
    """Return an SVG histogram of the divergence over the predictions.

    The x axis is KL(source || artifact) in nats, logarithmic; each bar spans half a power of
    ten. The y axis counts predictions. Dashed lines mark the mean and the 99th percentile.

    Raises:
        MissingDependencyError: ``phi3ov[plot]`` is not installed.
    """
    return draw_svg(lambda axes: _draw_histogram(axes, report), width=8, height=4.2)


def _draw_histogram(axes: Axes, report: QualityReport) -> None:
    positions = [index - 0.5 for index in range(len(report.kl_histogram))]  # between two edges
    bars = axes.bar(positions, report.kl_histogram, width=0.92, color="#4477aa")
    for index, bar in enumerate(bars):
        bar.set_gid(f"bar-{index}")
    axes.bar_label(bars, [str(count) if count else "" for count in report.kl_histogram], fontsize=8)
    for name, kl, colour in (
        ("mean", report.mean_kl, "#222222"),
        ("99th percentile", report.p99_kl, "#cc3311"),
    ):
        line = axes.axvline(_position(kl), color=colour, linestyle="--", linewidth=1)
        line.set_gid(f"mark-{name}")
        line.set_label(f"{name} {kl:.4f}")
    axes.set_xlim(-1, len(KL_EDGES))
    axes.set_xticks(range(0, len(KL_EDGES), 2), [f"{edge:.0e}" for edge in KL_EDGES[::2]])
    axes.set_xlabel("KL(source || artifact) of one prediction, nats")
    axes.set_ylabel("predictions")
    axes.margins(y=0.1)
    axes.legend(frameon=False, loc="upper left")
    axes.set_title(
        f"{report.artifact}: {report.bits_per_weight:.2f} bits per weight\n"
        f"perplexity {report.source_perplexity:.2f} → {report.artifact_perplexity:.2f}, "
        f"same first choice {report.top1_agreement:.1%}, {report.tokens:,} predictions"
    )


def _position(kl: float) -> float:
    """Return the x coordinate of a divergence: edge i is at x = i. Clips to the axis."""
    first = log10(KL_EDGES[0])
    step = log10(KL_EDGES[1]) - first
    place = (log10(max(kl, 1e-300)) - first) / step
    return min(max(place, -1.0), float(len(KL_EDGES)))
