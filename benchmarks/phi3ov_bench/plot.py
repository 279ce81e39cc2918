"""Bars as SVG, written by hand, without a plotting library."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

_WIDTH, _LEFT, _RIGHT, _TOP, _ROW = 760, 210, 110, 64, 26
_OURS, _OTHERS = "#4477aa", "#bbbbbb"


@dataclass(frozen=True, slots=True)
class Bar:
    """One peer's median with the least and the greatest of its rounds."""

    title: str
    median: float
    least: float
    most: float
    ours: bool


def draw_bars(title: str, subtitle: str, bars: list[Bar], *, limit: float | None = None) -> str:
    """Return an SVG of horizontal bars, whiskers from the least to the greatest value.

    Args:
        title: What is shown.
        subtitle: The unit, and which direction is better.
        bars: In the order in which they shall stand.
        limit: Where to draw a dashed line; None for none.
    """
    greatest = max([bar.most for bar in bars] + ([limit] if limit else []))
    scale = (_WIDTH - _LEFT - _RIGHT) / greatest
    height = _TOP + _ROW * len(bars) + 16
    rows = [part for number, bar in enumerate(bars) for part in _draw(number, bar, scale)]
    if limit:
        x = _LEFT + limit * scale
        rows.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 4}" y2="{height - 12}" '
            f'stroke="#cc3311" stroke-dasharray="4 3"/>'
        )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
            'font-family="sans-serif" font-size="12" fill="#222222">',
            f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
            f'<text x="16" y="24" font-size="15">{escape(title)}</text>',
            f'<text x="16" y="44">{escape(subtitle)}</text>',
            *rows,
            "</svg>",
            "",
        ]
    )


def _draw(number: int, bar: Bar, scale: float) -> list[str]:
    y = _TOP + number * _ROW
    middle = y + _ROW / 2 - 2
    least, most = _LEFT + bar.least * scale, _LEFT + bar.most * scale
    return [
        f'<text x="{_LEFT - 8}" y="{middle + 4:.1f}" text-anchor="end">{escape(bar.title)}</text>',
        f'<rect x="{_LEFT}" y="{y}" width="{bar.median * scale:.1f}" height="{_ROW - 6}" '
        f'fill="{_OURS if bar.ours else _OTHERS}"/>',
        f'<line x1="{least:.1f}" x2="{most:.1f}" y1="{middle:.1f}" y2="{middle:.1f}" '
        'stroke="#222222"/>',
        f'<text x="{max(most, _LEFT + bar.median * scale) + 6:.1f}" y="{middle + 4:.1f}">'
        f"{bar.median:.3g}</text>",
    ]
