"""The figures of a quality report, held against the formulae written out slowly."""

from __future__ import annotations

import importlib
import math
import random
import re
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from phi3ov.cli import main
from phi3ov.engine.logits import divergence, log_probabilities
from phi3ov.errors import MissingDependencyError
from phi3ov.quality.plot import draw_histogram
from phi3ov.quality.report import (
    KL_EDGES,
    QualityReport,
    SampleAnswer,
    Tally,
)


def slow_softmax(row: list[float]) -> list[float]:
    """Return the softmax of a few numbers."""
    total = sum(math.exp(one) for one in row)
    return [math.exp(one) / total for one in row]


def draw_logits(rows: int, columns: int, seed: int) -> list[list[float]]:
    """Return logits that float32 holds exactly."""
    generator = random.Random(seed)
    return [[generator.randint(-400, 400) / 64 for _ in range(columns)] for _ in range(rows)]


@pytest.mark.parametrize("tokens", [2, 3, 17, 40])
def test_figures_equal_the_formulae(tokens: int) -> None:
    """KL, perplexities, agreement and percentile, on both sides of the border of a block."""
    source, artifact = draw_logits(tokens, 7, seed=1), draw_logits(tokens, 7, seed=2)
    ids = [random.Random(tokens).randrange(7) for _ in range(tokens)]
    kl, losses, agreed = [], ([], []), 0  # type: ignore[var-annotated]
    for row in range(tokens - 1):
        p, q = slow_softmax(source[row]), slow_softmax(artifact[row])
        kl.append(sum(one * math.log(one / other) for one, other in zip(p, q, strict=True)))
        losses[0].append(-math.log(p[ids[row + 1]]))
        losses[1].append(-math.log(q[ids[row + 1]]))
        agreed += p.index(max(p)) == q.index(max(q))
    tally = Tally()
    tally.add(np.array(source, np.float32), np.array(artifact, np.float32), ids)
    result = tally.result()
    place = 0.99 * (len(kl) - 1)
    low, high = sorted(kl)[math.floor(place)], sorted(kl)[math.ceil(place)]
    assert result["tokens"] == tokens - 1
    assert result["mean_kl"] == pytest.approx(sum(kl) / len(kl))
    assert result["p99_kl"] == pytest.approx(low + (high - low) * (place % 1))
    assert result["source_perplexity"] == pytest.approx(math.exp(sum(losses[0]) / len(kl)))
    assert result["artifact_perplexity"] == pytest.approx(math.exp(sum(losses[1]) / len(kl)))
    assert result["top1_agreement"] == agreed / len(kl)
    edges = (0.0, *KL_EDGES, math.inf)
    assert list(result["kl_histogram"]) == [
        sum(low < one <= high for one in kl) for low, high in pairwise(edges)
    ]


def test_windows_add_up() -> None:
    """Two windows count like two separate texts: no prediction reaches across."""
    source = np.array(draw_logits(8, 5, seed=3), np.float32)
    artifact = np.array(draw_logits(8, 5, seed=4), np.float32)
    both, first = Tally(), Tally()
    both.add(source[:4], artifact[:4], [0, 1, 2, 3])
    both.add(source[4:], artifact[4:], [3, 2, 1, 0])
    first.add(source[:4], artifact[:4], [0, 1, 2, 3])
    second = Tally()
    second.add(source[4:], artifact[4:], [3, 2, 1, 0])
    assert both.result()["tokens"] == 6
    assert both.result()["mean_kl"] == pytest.approx(
        (first.result()["mean_kl"] + second.result()["mean_kl"]) / 2
    )


def test_equal_logits_diverge_by_nothing() -> None:
    """Exactly 0, and a constant added to every logit changes nothing."""
    logits = np.array(draw_logits(5, 9, seed=5), np.float32)
    p = log_probabilities(logits)
    assert divergence(p, p).tolist() == [0.0] * 5
    assert divergence(p, log_probabilities(logits + 64)).max() < 1e-12


def test_large_logits_do_not_overflow() -> None:
    """Logits of a thousand give finite figures."""
    p = log_probabilities(np.array([[1000.0, -1000.0]], np.float32))
    q = log_probabilities(np.array([[-1000.0, 1000.0]], np.float32))
    assert divergence(p, q).tolist() == [pytest.approx(2000.0)]


REPORT = QualityReport(
    source="a/b",
    artifact="models/<x> & y",
    tokens=100,
    window_tokens=51,
    properties={"INFERENCE_PRECISION_HINT": "f32"},
    source_perplexity=10.0,
    artifact_perplexity=11.0,
    mean_kl=0.05,
    p99_kl=0.4,
    top1_agreement=0.925,
    source_bytes=1000,
    artifact_bytes=300,
    bits_per_weight=4.25,
    kl_histogram=(*[0] * 10, 60, 40, *[0] * (len(KL_EDGES) - 11)),
    samples=(SampleAnswer(prompt="Hi?", source="Hello\nyou", artifact="Hullo"),),
)


def test_the_table_shows_every_figure() -> None:
    """Figures, sizes, and answers on one line each."""
    shown = str(REPORT)
    for part in (
        "10.000",
        "11.000",
        "0.05000",
        "0.40000",
        "92.50%",
        "4.25",
        "Hello you",
        "Hullo",
        "INFERENCE_PRECISION_HINT=f32",
    ):
        assert part in shown


SVG = "{http://www.w3.org/2000/svg}"


def drawn(picture: str, prefix: str) -> dict[str, list[tuple[float, float]]]:
    """Return the corners of each shape whose id begins with ``prefix``."""
    found = {}
    for group in ET.fromstring(picture).iter(f"{SVG}g"):
        if group.attrib.get("id", "").startswith(prefix):
            [path] = group.iter(f"{SVG}path")
            numbers = [float(text) for text in re.findall(r"-?[\d.]+", path.attrib["d"])]
            found[group.attrib["id"]] = list(zip(numbers[::2], numbers[1::2], strict=True))
    return found


def texts(picture: str) -> list[str]:
    """Return the texts that the picture shows, each in one piece."""
    return [text.text or "" for text in ET.fromstring(picture).iter(f"{SVG}text")]


def height(corners: list[tuple[float, float]]) -> float:
    """Return how high a shape is."""
    return max(y for _, y in corners) - min(y for _, y in corners)


def test_the_picture_is_svg_with_a_bar_per_edge() -> None:
    """Well-formed, names as they are, bars as high as their counts, marks inside the frame."""
    pytest.importorskip("matplotlib")
    picture = draw_histogram(REPORT)
    bars = drawn(picture, "bar-")
    assert list(bars) == [f"bar-{index}" for index in range(len(KL_EDGES) + 1)]
    assert height(bars["bar-10"]) > 50
    assert height(bars["bar-11"]) / height(bars["bar-10"]) == pytest.approx(40 / 60, abs=0.01)
    assert any("models/<x> & y" in text for text in texts(picture))
    assert any("mean 0.0500" in text for text in texts(picture))
    left, right = bars["bar-0"][0][0], bars["bar-17"][1][0]
    for kl in (0.0, 1e-9, 1e9):
        marks = drawn(draw_histogram(replace(REPORT, mean_kl=kl)), "mark-")
        assert len(marks) == 2
        for corners in marks.values():
            assert all(left - 5 <= x <= right + 25 for x, _ in corners)


def test_a_mark_stands_where_its_value_is() -> None:
    """A mean at the edge between two bars is drawn between them."""
    pytest.importorskip("matplotlib")
    for index in (3, 12):
        picture = draw_histogram(replace(REPORT, mean_kl=KL_EDGES[index]))
        bars, mark = drawn(picture, "bar-"), drawn(picture, "mark-mean")["mark-mean"]
        before, after = bars[f"bar-{index}"], bars[f"bar-{index + 1}"]
        assert max(x for x, _ in before) < mark[0][0] < min(x for x, _ in after)


def test_the_picture_depends_on_the_report_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal reports give equal text, whatever the user's style; names are not read as formulas."""
    matplotlib = pytest.importorskip("matplotlib")
    report = replace(REPORT, artifact="models/$x_1$ 模型")
    first = draw_histogram(report)
    assert any("models/$x_1$ 模型" in text for text in texts(first))
    monkeypatch.setitem(matplotlib.rcParams, "axes.facecolor", "red")
    assert draw_histogram(report) == first
    assert matplotlib.rcParams["axes.facecolor"] == "red"


def test_without_matplotlib_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an extra, and the error says which."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "phi3ov\[plot\]"'):
        draw_histogram(REPORT)


def test_the_command_asks_for_matplotlib_before_it_compares(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The comparison takes minutes; without ``--svg`` nothing is drawn and nothing is asked."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    picture = tmp_path / "kl.svg"
    assert main(["quality", "no-source", "no-artifact", "--svg", str(picture)]) == 1
    assert 'pip install "phi3ov[plot]"' in capsys.readouterr().err
    assert main(["quality", "no-source", "no-artifact"]) == 1
    assert "matplotlib" not in capsys.readouterr().err


def test_the_former_module_still_draws_and_says_where_it_went() -> None:
    """Programs that import it keep working."""
    former = importlib.import_module("phi3ov.quality_plot")
    with pytest.deprecated_call(match=r"use phi3ov\.quality\.draw_histogram"):
        assert former.draw_histogram is draw_histogram
