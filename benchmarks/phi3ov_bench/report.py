"""Writes ``docs/benchmarks.md`` and its plots from the JSON of the runs, losses included."""

from __future__ import annotations

import json
from statistics import median
from typing import Any

from .peers import ROOT
from .plot import Bar as PlottedBar
from .plot import draw_bars
from .results import FIGURES, Bar, Results, bars

RESULTS = ROOT / "benchmarks" / "results"
DOCUMENT = ROOT / "docs" / "benchmarks.md"
PLOTS = ROOT / "docs" / "benchmarks"
NOTES = ROOT / "benchmarks" / "notes.md"

_ALONE = (
    "cold_start_seconds", "import_seconds", "prefill_32_seconds", "prefill_512_seconds",
    "prefill_2048_seconds", "decode_tokens_per_second",
)  # fmt: skip
_CHAT = ("turn_2_seconds", "turn_5_seconds", "turn_10_seconds")
_TOGETHER = (
    "chats_1_tokens_per_second", "chats_4_tokens_per_second", "chats_8_tokens_per_second",
    "chats_16_tokens_per_second", "batch_seconds",
)  # fmt: skip
_MEMORY = (
    "resident_loaded_bytes", "resident_turns_bytes", "anonymous_loaded_bytes",
    "anonymous_turns_bytes",
)  # fmt: skip
_PLOTTED = (
    "cold_start_seconds", "decode_tokens_per_second", "turn_5_seconds",
    "chats_8_tokens_per_second", "resident_turns_bytes",
)  # fmt: skip

_MODELS = {
    "reference": "The reference model (135 million parameters)",
    "full": "A full-size Phi-3-mini (3.8 billion parameters, random weights)",
}
"""The models, in the order of the document."""

_KINDS = {
    "amx": "AMX",
    "vnni": "AVX-512 VNNI, no AMX",
    "avx-vnni": "AVX-VNNI",
    "avx2": "AVX2 alone",
    "other": "no AVX2",
}
"""What the names of result files say of the processor; see `machine.machine_label`."""


def read_runs() -> dict[str, Results]:
    """Return every committed run, of any machine: by model, then by the processor's arithmetic."""
    models, kinds = list(_MODELS), list(_KINDS)
    paths = [path for model in models for path in RESULTS.glob(f"{model}-*.json")]
    runs = {path.stem: Results(path) for path in sorted(paths)}

    def place(name: str) -> tuple[int, int]:
        kind = name.split("-", 2)[2]
        return models.index(runs[name].model), kinds.index(kind) if kind in kinds else len(kinds)

    return {name: runs[name] for name in sorted(runs, key=place)}


def kind_of(name: str) -> str:
    """Return the processor's maker and arithmetic, from the name of a result file.

    Example:
        >>> kind_of("reference-amd-vnni")
        'AMD, AVX-512 VNNI, no AMX'
    """
    _, maker, kind = name.split("-", 2)
    makers = {"amd": "AMD", "intel": "Intel"}
    return f"{makers.get(maker, maker)}, {_KINDS.get(kind, kind)}"


def _title(name: str, results: Results) -> str:
    return f"{_MODELS[results.model]}: {kind_of(name)}"


def write_report() -> None:
    """Write the document and its plots."""
    runs = read_runs()
    PLOTS.mkdir(exist_ok=True)
    for stale in PLOTS.glob("*.svg"):
        stale.unlink()
    parts = [_beginning(runs), _bars(runs), _method(runs)]
    parts += [_model(name, results) for name, results in runs.items()]
    parts.append(_losses(runs))
    parts.append(NOTES.read_text(encoding="utf-8").strip())
    settings = RESULTS / "settings.json"
    if settings.is_file():
        parts.append(_settings(json.loads(settings.read_text(encoding="utf-8"))))
    parts.append(_versions(next(iter(runs.values()))))
    DOCUMENT.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _beginning(runs: dict[str, Results]) -> str:
    """Return the answer first: the pictures and a paragraph of figures."""
    name, reference = next(iter(runs.items()))
    optimum = {
        figure: reference.ratio(figure, "phi3ov", "optimum")
        for figure in ("decode_tokens_per_second", "cold_start_seconds", "turn_5_seconds")
    }
    raw = reference.ratio("decode_tokens_per_second", "phi3ov", "genai-pa")
    memory = reference.ratio("resident_turns_bytes", "phi3ov", "optimum")
    return "\n\n".join(
        [
            "# Benchmarks",
            "<!-- Written by `make bench-report` from benchmarks/results/*.json; do not edit. -->",
            *(
                f"![{FIGURES[figure].title}](benchmarks/{name}-{figure}.svg)"
                for figure in ("turn_5_seconds", "decode_tokens_per_second")
            ),
            f"On the reference model ({kind_of(name)}) and with the same weights, phi3ov decodes "
            f"{optimum['decode_tokens_per_second'] or 0:.2f} times as fast as optimum-intel and "
            f"{raw or 0:.2f} times as fast as openvino-genai by itself. It gives the first token "
            f"of a chat's fifth turn in {optimum['turn_5_seconds'] or 0:.2f} of optimum-intel's "
            f"time, the first token after a start in {optimum['cold_start_seconds'] or 0:.2f} of "
            f"it, and holds {memory or 0:.2f} of its memory after 50 turns. llama.cpp and "
            "onnxruntime-genai decode this small model faster; "
            "[Where phi3ov is behind](#where-phi3ov-is-behind) lists every such case.",
        ]
    )


def _method(runs: dict[str, Results]) -> str:
    lines = [
        "## How it was measured",
        "",
        "All programs have the same weights, the same prompts token for token and the same number "
        "of threads, and take turns within one run. `benchmarks/phi3ov_bench/__init__.py` and "
        "`cases.py` say what limits each case. `make bench` runs it again.",
        "",
    ]
    for name, results in runs.items():
        lines.append(
            f"- {_title(name, results)}: {results.raw['date']}, `{results.raw['command']}`, "
            f"at most {results.raw['rounds']} rounds, {results.raw['seconds'] / 60:.0f} minutes."
        )
    return "\n".join(lines)


def _bars(runs: dict[str, Results]) -> str:
    """Return the goals, with a column for each machine."""
    references = {name: each for name, each in runs.items() if each.model == "reference"}
    columns = {
        name: {bar.text: bar for bar in bars(results, runs.get(name.replace("reference", "full")))}
        for name, results in references.items()
    }
    header = " | ".join(kind_of(name) for name in columns)
    lines = ["## Goals", "", f"| goal | required | {header} |"]
    lines.append(f"|---|--:|{'--:|' * len(columns)}")
    texts = dict.fromkeys(text for column in columns.values() for text in column)
    for text in texts:
        found = [column.get(text) for column in columns.values()]
        bar = next(bar for bar in found if bar is not None)
        sign = "at least" if bar.at_least else "at most"
        cells = " | ".join("" if bar is None else _measured(bar) for bar in found)
        lines.append(f"| {text} | {sign} {bar.required:g} | {cells} |")
    lines.append(
        "\nBold is a goal that is missed. Each ratio is the median over the rounds of the ratio "
        "within a round, on the reference model unless the row names another."
    )
    return "\n".join(lines)


def _measured(bar: Bar) -> str:
    measured = "not measured" if bar.measured is None else f"{bar.measured:.{bar.digits}f}"
    return measured if bar.held else f"**{measured}**"


def _model(name: str, results: Results) -> str:
    parts = [f"## {_title(name, results)}"]
    machine = results.raw["machine"]
    features = machine.get("instructions") or ["features not recorded"]
    parts.append(
        f"{machine['processor']} ({', '.join(features)}), {machine['threads']} threads on "
        f"{machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}, Python "
        f"{machine['python']}; memory reads {results.bandwidth / 1e9:.1f} GB/s. Medians over the "
        "rounds, with half the range in percent. Bold is the best of a column."
    )
    sections = (
        ("### One answer at a time", _ALONE),
        ("Time to the first token of turns 2, 5 and 10 of a growing chat:", _CHAT),
        ("### Many at once", _TOGETHER),
        ("### Memory", _MEMORY),
    )
    for heading, figures in sections:
        if any(figure in results.raw["values"] for figure in figures):
            parts.append(f"{heading}\n\n{_table(results, figures, bound=figures is _ALONE)}")
        else:
            parts.append(f"{heading}\n\nNot measured in this run.")
    parts.append(
        "Resident memory includes pages of mapped files, which the system reclaims when it needs "
        "room; anonymous memory does not."
    )
    parts.append("### Exporting\n\n" + _exports(results))
    for figure in _PLOTTED:
        if figure not in results.raw["values"]:
            continue
        plot = PLOTS / f"{name}-{figure}.svg"
        plot.write_text(_plot(name, results, figure), encoding="utf-8", newline="\n")
        title = FIGURES[figure].title
        parts.append(f"![{title}](benchmarks/{plot.name})")
    if results.raw["failures"]:
        listed = [f"- {what}: {why}" for what, why in results.raw["failures"].items()]
        parts.append("What failed in this run:\n\n" + "\n".join(listed))
    return "\n\n".join(parts)


def _table(results: Results, figures: tuple[str, ...], *, bound: bool = False) -> str:
    peers = [
        peer for peer in results.peers if any(results.values(figure, peer) for figure in figures)
    ]
    shown = [figure for figure in figures if any(results.values(figure, peer) for peer in peers)]
    best = {figure: _best(results, figure, peers) for figure in shown}
    header = [FIGURES[figure].title for figure in shown]
    header += ["MB per token", "of bandwidth"] if bound else []
    lines = [f"| | {' | '.join(header)} |", f"|---|{'--:|' * len(header)}"]
    for peer in peers:
        cells = [_cell(results, figure, peer, best=peer in best[figure]) for figure in shown]
        if bound:
            share = results.share_of_bound(peer)
            cells.append(f"{results.peers[peer]['weight_bytes']['per_token'] / 1e6:.0f}")
            cells.append("" if share is None else f"{share:.0%}")
        lines.append(f"| {results.peers[peer]['title']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(results: Results, figure: str, peer: str, *, best: bool) -> str:
    values = results.values(figure, peer)
    if not values:
        return ""
    kind, middle = FIGURES[figure], median(values)
    text = f"{middle * kind.factor:.{kind.digits}f}"
    spread = (max(values) - min(values)) / 2 / middle
    shown = f"**{text}**" if best else text
    return shown if len(values) == 1 else f"{shown} ±{spread:.0%}"


def _best(results: Results, figure: str, peers: list[str]) -> list[str]:
    medians = {peer: results.median(figure, peer) for peer in peers}
    present = {peer: value for peer, value in medians.items() if value is not None}
    choose = min if FIGURES[figure].better == "lower" else max
    return [peer for peer, value in present.items() if value == choose(present.values())]


def _plot(name: str, results: Results, figure: str) -> str:
    kind = FIGURES[figure]
    plotted = []
    for peer, about in results.peers.items():
        values = [value * kind.factor for value in results.values(figure, peer)]
        if values:
            ours = peer.startswith("phi3ov")
            plotted.append(
                PlottedBar(about["title"], median(values), min(values), max(values), ours)
            )
    limit = results.bound("phi3ov") if figure == "decode_tokens_per_second" else None
    subtitle = f"{kind.better} is better; the line spans the rounds"
    if limit is not None:
        subtitle += "\ndashed: the limit that memory bandwidth sets for phi3ov's weights"
    return draw_bars(f"{kind.title}, {name}", subtitle, plotted, limit=limit)


def _exports(results: Results) -> str:
    records: dict[str, Any] = dict(results.raw["exports"])
    titles = {"q4_0": "llama.cpp's quantizer, Q4_0", "q4_k_m": "llama.cpp's quantizer, Q4_K_M"}
    titles["ort"] = "onnxruntime-genai's builder"
    made = {titles[form]: record for form, record in results.raw["made"].items() if form in titles}
    lines = ["| | seconds | peak resident, GB | peak anonymous, GB |", "|---|--:|--:|--:|"]
    for name, record in (records | made).items():
        lines.append(
            f"| {name} | {record['seconds']:.0f} | {record['peak_resident_bytes'] / 1e9:.2f} | "
            f"{record['peak_anonymous_bytes'] / 1e9:.2f} |"
        )
    lines.append(
        "\nThe files of llama.cpp and onnxruntime-genai were made before the run; llama.cpp's "
        "quantizer starts from a float16 GGUF."
    )
    if not results.raw["exports"]:
        lines.append("phi3ov and optimum-cli were not measured with this run.")
    return "\n".join(lines)


def _losses(runs: dict[str, Results]) -> str:
    """List every cell in which a peer is ahead."""
    lines = ["## Where phi3ov is behind", ""]
    found = []
    for name, results in runs.items():
        for figure, kind in FIGURES.items():
            ours = "phi3ov-worker" if figure in _TOGETHER else "phi3ov"
            own = results.median(figure, ours)
            for peer in results.losses(figure, ours):
                other = results.median(figure, peer)
                if own is not None and other is not None:
                    found.append(
                        f"| {name} | {kind.title} | {own * kind.factor:.{kind.digits}f} | "
                        f"{results.peers[peer]['title']} | {other * kind.factor:.{kind.digits}f} |"
                    )
    if not found:
        return "\n".join([*lines, "Nowhere, in these runs."])
    lines += ["| run | case | phi3ov | peer | its figure |", "|---|---|--:|---|--:|", *found]
    return "\n".join(lines)


def _settings(raw: dict[str, Any]) -> str:
    lines = [
        "## Settings",
        "",
        f"openvino-genai by itself, {raw['model']} model, {raw['date']}, `{raw['command']}`; "
        "medians of the rounds.",
        "",
        "| back end | threads | KV cache | inference | activations in groups of "
        "| prefill 512, ms | decode, tokens/s |",
        "|---|--:|---|---|---|--:|--:|",
    ]
    for row in raw["rows"]:
        if row.get("error"):
            figures = f"refused: {row['error']} | "
        else:
            figures = (
                f"{1e3 * median(row['prefill_seconds']):.0f} | "
                f"{median(row['decode_tokens_per_second']):.1f}"
            )
        lines.append(
            f"| {row['back_end']} | {row['threads']} | {row['kv_cache']} | {row['inference']} | "
            f"{row['group']} | {figures} |"
        )
    return "\n".join(lines)


def _versions(results: Results) -> str:
    wanted = ("openvino", "openvino-genai", "optimum-intel", "transformers", "torch",
              "llama_cpp_python", "onnxruntime", "onnxruntime-genai", "phi3ov")  # fmt: skip
    lines = ["## Installed", "", "| | packages, MB | versions |", "|---|--:|---|"]
    for about in results.peers.values():
        versions = {name.lower(): version for name, version in about["versions"].items()}
        listed = ", ".join(f"{name} {versions[name]}" for name in wanted if name in versions)
        lines.append(f"| {about['title']} | {about['installed_bytes'] / 1e6:.0f} | {listed} |")
    return "\n".join(lines)
