"""Writes ``docs/benchmarks/quality-at-size.md``, its picture, and tables of two other pages.

All of them come from the results file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from phi3ov_bench.peers import ROOT
from phi3ov_bench.plot import SizedError, best_at_each_size, draw_front

from .recipes import BASE, RECIPES

RESULTS = ROOT / "benchmarks" / "results" / "quality_at_size.json"
DITHERED_RESULTS = RESULTS.with_name("quality_at_size_dithered.json")
PAGE = ROOT / "docs" / "benchmarks" / "quality-at-size.md"
PICTURE = PAGE.with_suffix(".svg")
RECIPES_PAGE = ROOT / "docs" / "recipes.md"
STACKS_PAGE = ROOT / "docs" / "where-stacks-disagree.md"

_BEGIN = "<!-- Written by `make bench-report`; do not edit. -->"
_END = "<!-- End of what `make bench-report` writes. -->"
"""Around the table in the pages of recipes and of stacks."""

_DEFAULTS = {
    BASE,
    "Q4_K_M",
    "ort int4",
    "optimum Phi-3-mini-4k-instruct",
    "optimum Phi-4-mini-instruct",
}
"""The row of each stack that a user gets who asks for four bits and sets nothing else."""

_STACKS = ("phi3ov", "llama.cpp", "onnxruntime-genai", "optimum-intel")
"""In the order of the picture's colours."""

_SHOWN_ABOVE = 0.001
"""Files closer to their source than this are left out of the picture: 16 bits."""

_LOSS = 1.01
"""A file that is beaten by less than this is not listed as beaten."""


def write_pages() -> None:
    """Write the page, its picture, and the tables of the other pages."""
    content = json.loads(RESULTS.read_text(encoding="utf-8"))
    texts = content["texts"]
    rows = dict(sorted(content["rows"].items(), key=lambda item: _STACKS.index(item[1]["stack"])))
    main = next(iter(texts))
    points = {name: _point(row, main) for name, row in rows.items()}
    drawn = [point for point in points.values() if point.divergence > _SHOWN_ABOVE]
    best = best_at_each_size(drawn)
    PAGE.parent.mkdir(exist_ok=True)
    title = f"Size and error of the reference model's weights, {_predictions(texts[main])}"
    _write(PICTURE, draw_front(title, drawn, best=best))
    names = {point: name for name, point in points.items()}
    parts = [
        "# Error at a size",
        "<!-- Written by `make bench-report` from benchmarks/results/quality_at_size.json; "
        "do not edit. -->",
        f"![Size and mean divergence of every file; a line joins the best at each size]"
        f"({PICTURE.name})",
        _best(best, drawn),
        *(_table(rows, texts, text, {names[point] for point in best}) for text in texts),
        _losses(points),
        _grid(rows, main),
        _METHOD,
        _files(rows),
        _versions(content["versions"], rows),
    ]
    _write(PAGE, "\n\n".join(part for part in parts if part) + "\n")
    _write_between(RECIPES_PAGE, _recipes(rows, texts))
    _write_between(STACKS_PAGE, _defaults(rows, texts))


def _write_between(page: Path, table: str) -> None:
    """Replace what stands between the marks of a page.

    Raises:
        ValueError: The page has no marks.
    """
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"{page} needs the lines {_BEGIN!r} and {_END!r} around its table.")
    _write(page, f"{before}{_BEGIN}\n\n{table}\n\n{_END}{after}")


def _defaults(rows: dict[str, Any], texts: dict[str, Any]) -> str:
    """Return what each stack makes of a checkpoint when it is asked for four bits."""
    lines = [
        f"| four bits | MB |{''.join(f' KL mean, {text} |' for text in texts)} same first choice |",
        f"|---|--:|{'--:|' * len(texts)}--:|",
    ]
    for name in sorted(_DEFAULTS & rows.keys(), key=lambda name: int(rows[name]["bytes"])):
        figures = [rows[name]["texts"][text] for text in texts]
        cells = [rows[name]["title"], f"{rows[name]['bytes'] / 1e6:.1f}"]
        cells += [f"{figure['mean_kl']:.4f}" for figure in figures]
        lines.append(f"| {' | '.join(cells)} | {figures[0]['same_first_choice']:.1%} |")
    return "\n".join(lines)


def _recipes(rows: dict[str, Any], texts: dict[str, Any]) -> str:
    """Return phi3ov's rows, in the order of the table of recipes, with both texts' divergence."""
    main, *others = texts
    own = [(name, row) for name in RECIPES if (row := rows.get(name))]
    source = next(iter(rows.values()))["texts"][main]["source_perplexity"]
    more = "".join(f" KL mean, {text} |" for text in others)
    lines = [
        f"| recipe | MB | decoding | KL mean | KL p99 | perplexity (source {source:.2f}) | "
        f"same first choice |{more} export, s |",
        f"|---|--:|--:|--:|--:|--:|--:|{'--:|' * len(others)}--:|",
    ]
    for name, row in own:
        figures = row["texts"][main]
        cells = [
            name,
            f"{row['bytes'] / 1e6:.1f}",
            "1×" if name == BASE else _speed(row),
            f"{figures['mean_kl']:.4f}",
            f"{figures['p99_kl']:.3f}",
            f"{figures['perplexity']:.2f}",
            f"{figures['same_first_choice']:.1%}",
            *(f"{row['texts'][text]['mean_kl']:.4f}" for text in others),
            f"{row['make_seconds']:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _point(row: dict[str, Any], text: str) -> SizedError:
    label = row["title"].removeprefix(row["stack"]).removeprefix("'s").strip()
    return SizedError(
        label, row["stack"], row["bytes"] / 1e6, max(row["texts"][text]["mean_kl"], 1e-9)
    )


def _predictions(text: dict[str, Any]) -> str:
    return f"{text['predictions']:,} predictions"


def _best(best: list[SizedError], drawn: list[SizedError]) -> str:
    """Return the front in words."""
    listed = ", ".join(
        f"{point.stack} {point.label} ({point.megabytes:.0f} MB, {point.divergence:.3f})"
        for point in best
    )
    return (
        f"The best at each size, of {len(drawn)} files made from one checkpoint: {listed}. The "
        "figure is the mean KL divergence from the checkpoint in nats: 0 means the same "
        "probabilities."
    )


def _grid(rows: dict[str, Any], text: str) -> str:
    """Return the same files made from the source without its grid, as far as measured."""
    lines = [
        "## What this model favours",
        "",
        "The reference's weights come from a GGUF in llama.cpp's Q4_1: in each block of 32 "
        "neighbours of a row, the matrices of the layers have at most 16 different values, evenly "
        "spaced. A format with the same blocks can hold them almost without loss if its search "
        "finds the spacing. Here that is Q5_1, which Q5_K_M falls back to, with an importance "
        "matrix. A model that was never quantized has no such grid.",
    ]
    if not DITHERED_RESULTS.is_file():
        return "\n".join(lines)
    others = json.loads(DITHERED_RESULTS.read_text(encoding="utf-8"))["rows"]
    lines += [
        "",
        "The same files made from a copy without the grid: each weight is moved at random by up "
        "to half its block's step (`dither.py`), and each file is compared with the copy that it "
        "was made from. The larger the last column, the more a file gains from the grid. "
        "`python -m quality_at_size run --dithered` measures it.",
        "",
        "| file | MB | KL mean, on the grid | KL mean, without | times |",
        "|---|--:|--:|--:|--:|",
    ]
    made_alike = [
        name
        for name in others
        if name in rows and rows[name]["settings"] == others[name]["settings"]
    ]
    for name in sorted(made_alike, key=lambda name: int(others[name]["bytes"])):
        here = rows[name]["texts"][text]["mean_kl"]
        there = others[name]["texts"][text]["mean_kl"]
        lines.append(
            f"| {rows[name]['title']} | {others[name]['bytes'] / 1e6:.1f} | {here:.4f} | "
            f"{there:.4f} | {there / here:.1f} |"
        )
    return "\n".join(lines)


def _table(rows: dict[str, Any], texts: dict[str, Any], text: str, best: set[str]) -> str:
    """Return the table of one text, from the smallest file to the largest; the first has speeds."""
    first = text == next(iter(texts))
    source = next(iter(rows.values()))["texts"][text]["source_perplexity"]
    speed = " decoding |" if first else ""
    lines = [
        f"## {texts[text]['title']}",
        "",
        f"{texts[text]['windows']} windows of {texts[text]['window_tokens']} tokens, "
        f"{_predictions(texts[text])}.",
        "",
        f"| file | MB |{speed} KL mean | KL p99 | perplexity (source {source:.2f}) | "
        "same first choice |",
        f"|---|--:|{'--:|' if first else ''}--:|--:|--:|--:|",
    ]
    for name in sorted(rows, key=lambda name: int(rows[name]["bytes"])):
        row, figures = rows[name], rows[name]["texts"][text]
        title = f"**{row['title']}**" if first and name in best else row["title"]
        cells = [title, f"{row['bytes'] / 1e6:.1f}"]
        cells += ["1×" if name == BASE else _speed(row)] if first else []
        cells += [
            f"{figures['mean_kl']:.4f}",
            f"{figures['p99_kl']:.3f}",
            f"{figures['perplexity']:.2f}",
            f"{figures['same_first_choice']:.1%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    if first:
        lines.append("\nBold is the best at its size or below.")
    return "\n".join(lines)


def _speed(row: dict[str, Any]) -> str:
    return f"{row['speed']['ratio']:.2f}×" if "speed" in row else ""


def _losses(points: dict[str, SizedError]) -> str:
    """Return the files of phi3ov that another stack beats in both size and error."""
    lines = []
    for point in points.values():
        if point.stack != "phi3ov":
            continue
        better = [
            other
            for other in points.values()
            if other.stack != "phi3ov"
            and other.megabytes <= point.megabytes
            and other.divergence * _LOSS < point.divergence
        ]
        if better:
            named = ", ".join(
                f"{other.stack} {other.label} ({other.megabytes:.0f} MB, {other.divergence:.3f})"
                for other in sorted(better, key=lambda other: other.divergence)[:3]
            )
            lines.append(
                f"- {point.label} ({point.megabytes:.0f} MB, {point.divergence:.3f}): {named}"
            )
    if not lines:
        return "## Where phi3ov is behind\n\nNo other stack's file is both smaller and closer."
    heading = ["## Where phi3ov is behind", "", "Files that are no larger and have less error:", ""]
    return "\n".join([*heading, *lines])


_METHOD = """## How it was measured

    make bench-quality

Every file is made from the reference checkpoint (135 million parameters) and reads the same \
windows of the same texts, each window from an empty context. It is compared with the checkpoint \
in float32.

- *MB* are the bytes of the file of weights on disk, embeddings, scales and zero points included: \
`openvino_model.bin`, the GGUF (without a tokenizer), `model.onnx.data`.
- **Only the weights differ.** OpenVINO exports run in OpenVINO with float32 arithmetic and no \
activation rounded. The weights of llama.cpp and onnxruntime-genai are dequantized and run in \
torch in float32: *weights only*, without what their engines' 8-bit activations add.
- *imatrix* is llama.cpp with an importance matrix. llama-cpp-python has no `llama-imatrix`, so \
torch sums the same squares of activations over the samples that phi3ov's calibrated recipes read, \
and llama.cpp's quantizer takes them through its C interface.
- *optimum-intel's default* is the recipe that optimum-intel keeps for that model of the family, \
exported by optimum-intel. Phi-3-mini's asks for `wikitext2` from the hub; it gets the same \
calibration samples as the other files.
- *Decoding* is tokens per second relative to phi3ov's default, in turns, the median over the \
rounds. OpenVINO exports run in phi3ov's engine, the others in their own. A model of this size \
partly fits into a processor's caches; on a large model speed follows size more closely.
- The first text is of the kind that the calibrated files were calibrated on, though no paragraph \
is the same, so they look a little better on it than on the second."""


def _files(rows: dict[str, Any]) -> str:
    """Return what each file holds."""
    lines = ["## What the files hold", "", "| file | matrices |", "|---|---|"]
    for name in sorted(rows, key=lambda name: int(rows[name]["bytes"])):
        matrices = rows[name]["matrices"]
        shown = (
            matrices
            if isinstance(matrices, str)
            else ", ".join(f"{count} {kind}" for kind, count in matrices.items())
        )
        lines.append(f"| {rows[name]['title']} | {shown} |")
    lines.append(
        "\nllama.cpp's K types need rows of a multiple of 256 values. This model's rows have 576 "
        "but for `down_proj`, so most matrices of its K files have the types that llama.cpp falls "
        "back to, such as Q5_0 and Q8_0. On Phi-3 every row fits, and the files are smaller."
    )
    return "\n".join(lines)


def _versions(versions: dict[str, str], rows: dict[str, Any]) -> str:
    named = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    dates = sorted({row["date"] for row in rows.values()})
    machines = sorted({row["speed"]["processor"] for row in rows.values() if "speed" in row})
    parts = [f"Made with {named}, on {' and '.join(dates)}."]
    if machines:
        parts.append(f"Decoding was timed on {', '.join(machines)}.")
    return " ".join(parts)
