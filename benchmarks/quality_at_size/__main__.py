"""The command: run, speed, measure, report. The package's docstring tells what they are for."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import traceback
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from phi3ov_bench.models import make_model, model_path
from phi3ov_bench.peers import WORK, installed_versions, python_of
from phi3ov_bench.session import PeerFailedError

from phi3ov import Phi3OVError

from .dequantize import read_gguf, tensor_names
from .dither import write_dithered
from .measure import SourceLogits, measure, open_export
from .recipes import BASE
from .report import DITHERED_RESULTS, RESULTS, write_pages
from .results import OtherTextError, Results
from .rows import DITHERED_ROWS, ROWS, Place, Row, dequantized
from .speed import SpeedMeter
from .texts import MOST_TOKENS, TEXTS, WINDOW_TOKENS, Windows, cut_windows, open_tokenizer

_GROUPS = {
    "ours": {name for name, row in ROWS.items() if row.stack == "phi3ov"},
    "all": set(ROWS),
}
_NOTED = ("phi3ov", "openvino", "nncf", "optimum-intel", "transformers", "torch", "gguf")
_FAILURES = (
    Phi3OVError,
    PeerFailedError,
    subprocess.CalledProcessError,
    OSError,
    ValueError,
    KeyError,
    RuntimeError,
)


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says; return 1 if a row failed."""
    parser = argparse.ArgumentParser(prog="quality_at_size", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure the rows that are missing or have changed")
    _add_common(run)
    run.add_argument("--only", nargs="+", choices=ROWS, metavar="ROW", help="default all, or few")
    run.add_argument(
        "--again",
        nargs="*",
        choices=[*ROWS, *_GROUPS],
        default=[],
        metavar="ROW",
        help="rows to measure again; 'ours' stands for all of phi3ov's, 'all' for every row",
    )
    run.add_argument("--speed", action="store_true", help="then time decoding, as `speed` does")
    run.add_argument("--rounds", type=int, default=5, help="of decoding")
    run.set_defaults(do=_run)
    speed = commands.add_parser("speed", help="time decoding of rows that have no speed yet")
    _add_common(speed)
    speed.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW")
    speed.add_argument("--again", action="store_true", help="also of those that have one")
    speed.add_argument("--rounds", type=int, default=5, help="of decoding")
    speed.set_defaults(do=_speed)
    file = commands.add_parser("measure", help="print the figures of any export or GGUF")
    _add_common(file)
    file.add_argument("files", type=Path, nargs="+", metavar="FOLDER_OR_GGUF")
    file.set_defaults(do=_measure)
    report = commands.add_parser("report", help="write page and picture from the results")
    report.set_defaults(do=_report)
    options = parser.parse_args(arguments)
    return int(options.do(options))


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--source", type=Path, help="the checkpoint; default the reference")
    parser.add_argument(
        "--dithered",
        action="store_true",
        help="the source without its grid (dither.py), with files and results of its own: few "
        "rows, the first text",
    )
    parser.add_argument("--work", type=Path, default=WORK / "quality", help="where files are kept")
    parser.add_argument("--json", type=Path, help="the results file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--texts", nargs="+", choices=TEXTS, help="default all, or the first")
    parser.add_argument("--window-tokens", type=int, default=WINDOW_TOKENS)
    parser.add_argument("--max-tokens", type=int, default=MOST_TOKENS, help="of each text")


def _place(options: argparse.Namespace) -> Place:
    """Return where to work; the reference checkpoint is built if it is missing."""
    import torch

    torch.set_num_threads(options.threads)
    source = options.source
    if source is None:
        make_model("reference", "checkpoint", threads=options.threads)
        source = model_path("reference", "checkpoint")
    options.json = options.json or (DITHERED_RESULTS if options.dithered else RESULTS)
    work = options.work / "dithered" if options.dithered else options.work
    work.mkdir(parents=True, exist_ok=True)
    if options.dithered:
        write_dithered(source, work / "checkpoint")
        source = work / "checkpoint"
    return Place(source, work, options.threads)


def _windows(options: argparse.Namespace, place: Place) -> list[Windows]:
    tokenizer = open_tokenizer(place.checkpoint)
    return [
        cut_windows(
            name, tokenizer, window_tokens=options.window_tokens, most_tokens=options.max_tokens
        )
        for name in options.texts or (list(TEXTS)[:1] if options.dithered else TEXTS)
    ]


def _run(options: argparse.Namespace) -> int:
    place = _place(options)
    windows = _windows(options, place)
    results = Results(options.json)
    try:
        for text in windows:
            results.use(text)
    except OtherTextError as error:
        _say(str(error))
        return 1
    again = {name for word in options.again for name in _GROUPS.get(word, {word})}
    source = SourceLogits(place.checkpoint, place.folder)
    failed = []
    for name in options.only or (DITHERED_ROWS if options.dithered else ROWS):
        row = ROWS[name]
        if name not in again and results.is_current(name, row.settings()):
            if results.rows[name]["title"] != row.title:
                results.rows[name]["title"] = row.title
                results.write()
            continue
        try:
            entry = _measure_row(row, place, source, windows)
        except _FAILURES as error:
            traceback.print_exc()
            _say(f"{name}: failed: {error}")
            failed.append(name)
            continue
        results.versions |= _versions(row)
        results.keep(name, entry)
        _say(f"{name}: {entry['bytes'] / 1e6:.1f} MB, {_shown(entry['texts'])}")
    stale = [name for name in results.rows if name not in ROWS]
    if stale:
        _say(f"{options.json} has rows that are in no table any more: {', '.join(stale)}")
    if options.speed:
        options.only, options.again = options.only or list(ROWS), False
        return _speed(options) or bool(failed)
    return bool(failed)


def _measure_row(
    row: Row, place: Place, source: SourceLogits, windows: list[Windows]
) -> dict[str, Any]:
    _say(f"{row.name}: make")
    started = time.perf_counter()
    row.make(place)
    seconds = time.perf_counter() - started
    _say(f"{row.name}: compare, after {seconds:.0f} s")
    with row.open(place) as model:
        texts = {text.name: measure(model, source.read(text), text) for text in windows}
    return {
        "title": row.title,
        "stack": row.stack,
        "computed": row.computed,
        "bytes": row.weights_file(place).stat().st_size,
        "settings": row.settings(),
        **row.details(place),
        "make_seconds": round(seconds, 1),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "texts": texts,
    }


def _versions(row: Row) -> dict[str, str]:
    """Return the versions that a row depends on."""
    own = {name: version(name) for name in _NOTED}
    if row.stack not in ("llama.cpp", "onnxruntime-genai"):
        return own
    environment = "llama" if row.stack == "llama.cpp" else "builder"
    package = "llama_cpp_python" if row.stack == "llama.cpp" else "onnxruntime-genai"
    if not python_of(environment).exists():
        return own
    return own | {package: installed_versions(environment)[package]}


def _speed(options: argparse.Namespace) -> int:
    place = _place(options)
    results = Results(options.json)
    wanted = [
        name
        for name in options.only
        if name in results.rows
        and name != BASE
        and (options.again or "speed" not in results.rows[name])
    ]
    missing = [name for name in (BASE, *wanted) if not ROWS[name].path(place).exists()]
    if missing:
        _say(
            f"{place.folder} has no file of {', '.join(missing)}, only the results do. "
            f"`run --again ...` makes them, and speeds need {BASE}."
        )
        wanted = [] if BASE in missing else [name for name in wanted if name not in missing]
    if not wanted:
        _say("no row is left to time")
        return bool(missing)
    meter = SpeedMeter(place, rounds=options.rounds)
    failed = bool(missing)
    try:
        for name in wanted:
            try:
                speed = meter.measure(ROWS[name])
            except PeerFailedError as error:
                _say(f"{name}: decoding failed: {error}")
                failed = True
                continue
            results.rows[name]["speed"] = speed
            results.write()
            _say(f"{name}: {speed['ratio']:.2f} of {BASE}, {speed['tokens_per_second']} tokens/s")
    finally:
        meter.close()
    return failed


def _measure(options: argparse.Namespace) -> int:
    place = _place(options)
    windows = _windows(options, place)
    source = SourceLogits(place.checkpoint, place.folder)
    for file in options.files:
        if file.is_dir():
            model = open_export(file, threads=place.threads)
            texts = {text.name: measure(model, source.read(text), text) for text in windows}
            weights = file / "openvino_model.bin"
        else:
            names = tensor_names(place.checkpoint)
            with dequantized(read_gguf(file, names), place.checkpoint) as model:
                texts = {text.name: measure(model, source.read(text), text) for text in windows}
            weights = file
        _say(f"{file}: {weights.stat().st_size / 1e6:.1f} MB, {_shown(texts)}")
        entry = {"file": str(file), "bytes": weights.stat().st_size, "texts": texts}
        sys.stdout.write(f"{json.dumps(entry)}\n")
    return 0


def _report(_options: argparse.Namespace) -> int:
    write_pages()
    return 0


def _shown(texts: dict[str, Any]) -> str:
    return ", ".join(
        f"{name}: KL {figures['mean_kl']:.4f}, p99 {figures['p99_kl']:.3f}, "
        f"same first choice {figures['same_first_choice']:.3f}"
        for name, figures in texts.items()
    )


def _say(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    raise SystemExit(main())
