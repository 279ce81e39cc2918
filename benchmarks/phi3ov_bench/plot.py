"""The pictures of the benchmarks, drawn by matplotlib as SVG that is the same from run to run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from phi3ov.quality.plot import draw_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OURS, _OTHERS, _LIMIT = "#4477aa", "#bbbbbb", "#cc3311"
_BEST, _BEATEN = "#228833", "#888888"
_ENGINES = ("#0068b5", "#c2410c", "#555555", "#228833")


@dataclass(frozen=True, slots=True)
class Bar:
    """One peer's median with the least and the greatest of its rounds."""

    title: str
    median: float
    least: float
    most: float
    ours: bool


def draw_bars(title: str, subtitle: str, bars: list[Bar], *, limit: float | None = None) -> str:
    """Return an SVG of horizontal bars, with whiskers from the least to the greatest value.

    Args:
        title: What is shown.
        subtitle: The unit, and which direction is better.
        bars: From top to bottom.
        limit: Where to draw a dashed line; None draws none.
    """

    def draw(axes: Axes) -> None:
        drawn = axes.barh(
            [bar.title for bar in bars],
            [bar.median for bar in bars],
            height=0.75,
            color=[_OURS if bar.ours else _OTHERS for bar in bars],
        )
        for place, bar in enumerate(bars):
            axes.hlines(place, bar.least, bar.most, color="#222222", linewidth=1)
            axes.annotate(
                f"{bar.median:.3g}",
                (max(bar.most, bar.median), place),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
            )
        for place, shape in enumerate(drawn):
            shape.set_gid(f"bar-{place}")
        if limit is not None:
            axes.axvline(limit, color=_LIMIT, linestyle="--", linewidth=1)
        axes.invert_yaxis()
        axes.margins(x=0.1)
        axes.set_xlim(left=0)
        axes.tick_params(axis="y", length=0)
        axes.set_title(f"{title}\n{subtitle}")

    return draw_svg(draw, width=8, height=1.1 + 0.15 * subtitle.count("\n") + 0.28 * len(bars))


def draw_recipes(rows: dict[str, dict[str, Any]]) -> str:
    """Return an SVG of recipes: megabytes to the right, divergence upwards (logarithmic).

    The line joins the recipes that no other beats in both: the best at each size.

    Args:
        rows: By the recipe's name, its ``megabytes`` and ``mean_kl``. Recipes that lose nothing
            have no place on a logarithmic axis and are left out.
    """
    shown = {name: row for name, row in rows.items() if row["mean_kl"] > 0.001}
    best: list[str] = []
    for name in sorted(shown, key=lambda name: (shown[name]["megabytes"], shown[name]["mean_kl"])):
        if not best or shown[name]["mean_kl"] < shown[best[-1]]["mean_kl"]:
            best.append(name)

    def draw(axes: Axes) -> None:
        axes.plot(
            [shown[name]["megabytes"] for name in best],
            [shown[name]["mean_kl"] for name in best],
            linestyle="--",
            color=_BEST,
            linewidth=1,
        )
        least = min(row["megabytes"] for row in shown.values())
        for index, (name, row) in enumerate(shown.items()):
            place = (row["megabytes"], row["mean_kl"])
            axes.plot(*place, marker="o", color=_BEST if name in best else _BEATEN)
            left = row["megabytes"] == least
            axes.annotate(
                name,
                place,
                xytext=(-8 if left else 8, 3 if index % 2 else -9),
                textcoords="offset points",
                ha="right" if left else "left",
            )
        axes.set_yscale("log")
        ticks = (0.01, 0.03, 0.1, 0.3, 1)
        axes.set_yticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.grid(axis="y", color="#dddddd")
        axes.margins(x=0.2)
        axes.set_xlabel("weights, MB")
        axes.set_title(
            "Recipes: size and what it costs\nmean KL divergence, nats (lower is better)"
        )

    return draw_svg(draw, width=8, height=4.5)


def draw_memory(curves: dict[str, list[float]]) -> str:
    """Return an SVG of megabytes over turns, a line per engine."""

    def draw(axes: Axes) -> None:
        for (engine, curve), colour in zip(curves.items(), _ENGINES, strict=False):
            axes.plot(curve, color=colour, linewidth=1, label=engine)
        axes.set_ylim(bottom=0, top=1.15 * max(max(curve) for curve in curves.values()))
        axes.margins(x=0)
        axes.grid(axis="y", color="#dddddd")
        axes.legend(frameon=False, loc="upper left", ncols=len(curves))
        axes.set_xlabel("turns")
        axes.set_ylabel("resident memory, MB")

    return draw_svg(draw, width=8, height=3)
