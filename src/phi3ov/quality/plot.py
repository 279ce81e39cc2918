"""A `QualityReport` as a picture: SVG, written by hand, without a plotting library."""

from __future__ import annotations

from html import escape
from math import log10

from .report import KL_EDGES, QualityReport

_WIDTH, _HEIGHT, _LEFT, _TOP, _BASE = 760, 400, 60, 84, 330
_BAR = (_WIDTH - 2 * _LEFT) / (len(KL_EDGES) + 1)


def draw_histogram(report: QualityReport) -> str:
    """Return an SVG of how the divergence is spread over the predictions.

    The x axis is KL(source || artifact) in nats, logarithmic, half a power of ten to a bar; the
    y axis counts predictions. Dashed lines mark the mean and the 99th percentile.
    """
    most = max(report.kl_histogram)
    bars = []
    for index, count in enumerate(report.kl_histogram):
        height = (_BASE - _TOP) * count / most
        bars.append(
            f'<rect x="{_LEFT + index * _BAR + 1:.1f}" y="{_BASE - height:.1f}" '
            f'width="{_BAR - 2:.1f}" height="{height:.1f}" fill="#4477aa">'
            f"<title>{_range(index)}: {count} of {report.tokens}</title></rect>"
        )
    marks = [
        _mark("mean", report.mean_kl, _TOP - 6, "#222222"),
        _mark("99th percentile", report.p99_kl, _TOP - 22, "#cc3311"),
    ]
    ticks = [
        f'<text x="{_LEFT + (index + 1) * _BAR:.1f}" y="{_BASE + 18}" text-anchor="middle">'
        f"{edge:.0e}</text>"
        for index, edge in enumerate(KL_EDGES)
        if index % 2 == 0
    ]
    title = f"{report.artifact}: {report.bits_per_weight:.2f} bits per weight"
    facts = (
        f"perplexity {report.source_perplexity:.2f} → {report.artifact_perplexity:.2f}, "
        f"same first choice {report.top1_agreement:.1%}, {report.tokens:,} predictions"
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
            'font-family="sans-serif" font-size="12" fill="#222222">',
            f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
            f'<text x="{_LEFT}" y="24" font-size="15">{escape(title)}</text>',
            f'<text x="{_LEFT}" y="44">{escape(facts)}</text>',
            *bars,
            f'<line x1="{_LEFT}" x2="{_WIDTH - _LEFT}" y1="{_BASE}" y2="{_BASE}" stroke="#222"/>',
            f'<text x="{_LEFT - 8}" y="{_TOP + 4}" text-anchor="end">{most}</text>',
            f'<text x="{_LEFT - 8}" y="{_BASE}" text-anchor="end">0</text>',
            *ticks,
            *marks,
            f'<text x="{_WIDTH / 2}" y="{_BASE + 44}" text-anchor="middle">'
            "KL(source || artifact) of one prediction, nats</text>",
            "</svg>",
            "",
        ]
    )


def _position(kl: float) -> float:
    """Return the x of a divergence; what lies outside the axis goes to its end."""
    first = log10(KL_EDGES[0])
    step = log10(KL_EDGES[1]) - first
    bar = (log10(max(kl, 1e-300)) - first) / step + 1
    return _LEFT + _BAR * min(max(bar, 0.0), len(KL_EDGES) + 1)


def _mark(name: str, kl: float, y: int, colour: str) -> str:
    x = _position(kl)
    anchor = "start" if x < _WIDTH / 2 else "end"
    return (
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y + 4}" y2="{_BASE}" stroke="{colour}" '
        f'stroke-dasharray="4 3"/><text x="{x:.1f}" y="{y}" text-anchor="{anchor}" '
        f'fill="{colour}">{name} {kl:.4f}</text>'
    )


def _range(index: int) -> str:
    if index == len(KL_EDGES):
        return f"above {KL_EDGES[-1]:.0e}"
    return f"up to {KL_EDGES[index]:.0e}"
