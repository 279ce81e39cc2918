"""The command: peers, run, settings, report. The package's docstring tells what they are for."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from . import peers
from .cases import CASES

RESULTS = peers.ROOT / "benchmarks" / "results"


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="phi3ov_bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    _add_peers(commands)
    _add_run(commands)
    exports = commands.add_parser("exports", help="time both exporters; adds to a run's JSON")
    exports.add_argument("--model", choices=("reference", "full"), default="reference")
    exports.set_defaults(do=_exports)
    settings = commands.add_parser("settings", help="back ends, threads and cache precisions")
    settings.add_argument("--rounds", type=int, default=5)
    settings.add_argument("--json", type=Path, default=RESULTS / "settings.json")
    settings.set_defaults(do=_settings)
    report = commands.add_parser("report", help="write the pages of docs/ from the JSON files")
    report.set_defaults(do=_report)
    options = parser.parse_args()
    options.do(options)


def _add_peers(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("peers", help="make an environment per peer")
    parser.add_argument("--only", nargs="+", choices=peers.ENVIRONMENTS)
    parser.set_defaults(do=_peers)


def _peers(options: argparse.Namespace) -> None:
    for environment in options.only or peers.ENVIRONMENTS:
        sys.stderr.write(f"environment {environment}\n")
        peers.install(environment)


def _add_run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("run", help="measure one model and write its JSON")
    names = [case.name for case in CASES]
    parser.add_argument("--model", choices=("reference", "full"), default="reference")
    parser.add_argument("--peers", nargs="+", choices=peers.PEERS, default=list(peers.COMPARED))
    parser.add_argument("--cases", nargs="+", choices=names, default=names)
    parser.add_argument("--rounds", type=int, default=5, help="the most rounds")
    parser.add_argument(
        "--minutes", type=float, help="begin no case of a later round that would end after this"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--smoke", action="store_true", help="little work: does everything run?")
    parser.add_argument(
        "--json", type=Path, help="where to; default benchmarks/results/MODEL-MACHINE.json"
    )
    parser.set_defaults(do=_run)


def _run(options: argparse.Namespace) -> None:
    from .run import run

    run(
        options.model,
        options.json or _result(options.model),
        minutes=options.minutes,
        peers=options.peers,
        cases=options.cases,
        rounds=options.rounds,
        threads=options.threads,
        smoke=options.smoke,
    )


def _exports(options: argparse.Namespace) -> None:
    from .run import measure_exports

    measure_exports(options.model, options.json or _result(options.model))


def _result(model: str) -> Path:
    """Return where a run on this machine is kept."""
    from .machine import machine_label

    return RESULTS / f"{model}-{machine_label()}.json"


def _settings(options: argparse.Namespace) -> None:
    from .settings import measure_settings

    measure_settings(options.json, rounds=options.rounds)


def _report(_options: argparse.Namespace) -> None:
    from quality_at_size.report import write_pages

    from .report import write_report

    write_report()
    write_pages()


if __name__ == "__main__":
    main()
