"""The pictures of the benchmarks, drawn by matplotlib as SVG that is the same from run to run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from math import log10
from typing import TYPE_CHECKING

from phi3ov.quality.plot import draw_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OURS, _OTHERS, _LIMIT = "#4477aa", "#bbbbbb", "#cc3311"
_BEST = "#888888"
_STACKS = ("#0068b5", "#c2410c", "#228833", "#8a4fbf")
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


@dataclass(frozen=True, slots=True)
class SizedError:
    """One file of weights: what it costs in bytes and in divergence from its source."""

    label: str
    stack: str
    megabytes: float
    divergence: float


def best_at_each_size(points: Sequence[SizedError]) -> list[SizedError]:
    """Return the points that no other one beats in both size and error, from small to large.

    Example:
        >>> small = SizedError("small", "a", 80.0, 0.3)
        >>> worse = SizedError("worse", "a", 90.0, 0.4)
        >>> large = SizedError("large", "b", 100.0, 0.1)
        >>> [point.label for point in best_at_each_size([large, worse, small])]
        ['small', 'large']
    """
    best: list[SizedError] = []
    for point in sorted(points, key=lambda point: (point.megabytes, point.divergence)):
        if not best or point.divergence < best[-1].divergence:
            best.append(point)
    return best


def draw_front(title: str, points: Sequence[SizedError], *, best: Sequence[SizedError]) -> str:
    """Return an SVG of size and error: a colour per stack, a line through the best at each size.

    Args:
        title: What is shown.
        points: Every file; their divergence is above 0.
        best: Of `best_at_each_size`.
    """

    def draw(axes: Axes) -> None:
        axes.plot(
            [point.megabytes for point in best],
            [point.divergence for point in best],
            linestyle="--",
            color=_BEST,
            linewidth=1,
            zorder=1,
            label="best at each size",
        )
        stacks = dict.fromkeys(point.stack for point in points)
        colours = dict(zip(stacks, cycle(_STACKS), strict=False))
        for stack, colour in colours.items():
            shown = [point for point in points if point.stack == stack]
            axes.plot(
                [point.megabytes for point in shown],
                [point.divergence for point in shown],
                linestyle="none",
                marker="o",
                color=colour,
                label=stack,
            )
        for point, (right, up) in zip(points, _label_places(points), strict=True):
            axes.annotate(
                point.label,
                (point.megabytes, point.divergence),
                xytext=(right, up),
                textcoords="offset points",
                ha="left" if right > 0 else "right" if right < 0 else "center",
                va="center",
                color=colours[point.stack],
                fontsize=8,
                fontweight="bold" if point in best else "normal",
            )
        axes.set_yscale("log")
        ticks = (0.003, 0.01, 0.03, 0.1, 0.3, 1)
        axes.set_yticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set_xlim(*_limits([point.megabytes for point in points]))
        low, high = _limits([log10(point.divergence) for point in points])
        axes.set_ylim(10**low, 10**high)
        axes.grid(axis="y", color="#dddddd")
        axes.legend(frameon=False)
        axes.set_xlabel("file of weights, MB")
        axes.set_ylabel("mean KL divergence, nats (lower is better)")
        axes.set_title(title)

    return draw_svg(draw, width=_FRONT_SIZE[0], height=_FRONT_SIZE[1])


_FRONT_SIZE = (9.5, 6.5)
"""Inches."""

_LABEL_HEIGHT, _LETTER_WIDTH = 10.0, 4.4
"""Points, at this size of letters; the width is an estimate."""


def _limits(values: list[float]) -> tuple[float, float]:
    """Return an axis's limits, with room for labels on both sides."""
    room = 0.08 * (max(values) - min(values)) or 0.1
    return min(values) - room, max(values) + room


def _label_places(points: Sequence[SizedError]) -> list[tuple[float, float]]:
    """Return each label's offset from its point: the first place where it covers nothing.

    Labels are placed in points of 1/72 inch on a page of the picture's size, so the axes' margins
    make the estimate a little too small, never so much that labels meet.
    """
    xs, ys = [point.megabytes for point in points], [log10(point.divergence) for point in points]
    (left, right), (bottom, top) = _limits(xs), _limits(ys)
    width, height = 72 * 0.9 * _FRONT_SIZE[0], 72 * 0.85 * _FRONT_SIZE[1]
    places = [
        ((x - left) / (right - left) * width, (y - bottom) / (top - bottom) * height)
        for x, y in zip(xs, ys, strict=True)
    ]
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in places]
    offsets = []
    for point, (x, y) in zip(points, places, strict=True):
        length = _LETTER_WIDTH * len(point.label)

        boxes = {offset: _label_box(x, y, length, offset) for offset in _OFFSETS}
        hidden = {
            offset: sum(_overlap(box, other) for other in taken) + (box[0] < 0 or box[2] > width)
            for offset, box in boxes.items()
        }
        chosen = min(hidden, key=hidden.__getitem__)
        taken.append(boxes[chosen])
        offsets.append(chosen)
    return offsets


def _label_box(x: float, y: float, length: float, offset: tuple[float, float]) -> _Box:
    """Return left, bottom, right and top of a label beside, above or below its point."""
    right, up = offset
    start = x + right - (0 if right > 0 else length if right < 0 else length / 2)
    return start, y + up - _LABEL_HEIGHT / 2, start + length, y + up + _LABEL_HEIGHT / 2


_Box = tuple[float, float, float, float]

_OFFSETS = tuple(
    (float(right), float(up))
    for distance in (0, 9, 18, 27)
    for right, up in (
        (7, distance),
        (-7, distance),
        (7, -distance),
        (-7, -distance),
        (0, distance + 11),
        (0, -distance - 11),
    )
)


def _overlap(one: _Box, other: _Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


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
