"""One run: every case on every peer, in turns, into one JSON file.

Peers take turns within a round, every second time in the other order (A B C, C B A), so that
whatever else the machine does hits all alike, and being first is nobody's fate; a figure's list
has one value per round. The reference model's processes all stay loaded and take turns case by
case, the whole list of cases once per round; of the full-size model one process fits at a time, so
a peer goes through all of a round's cases before the next one comes. An idle process computes
nothing.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .cases import CASES, SCALES, Case, Figures, Scale
from .machine import describe_machine, measure_bandwidth
from .models import (
    ModelName,
    export_command,
    make_model,
    model_path,
    run_measured,
    weight_bytes,
)
from .peers import PEERS, WORK, installed_bytes, installed_versions
from .session import PeerFailedError, Session
from .work import Work

Values = dict[str, dict[str, list[float]]]
"""Figure to peer to one value per round."""


class Run:
    """Measures, and collects what it measured."""

    def __init__(
        self, model: ModelName, scale: Scale, peers: Sequence[str], *, threads: int
    ) -> None:
        """Start phi3ov's process, which encodes the prompts of all."""
        self.model = model
        self.scale = scale
        self.peers = peers
        self.threads = threads
        self.values: Values = defaultdict(lambda: defaultdict(list))
        self.failures: dict[str, str] = {}
        self.bandwidth: dict[str, list[float]] = defaultdict(list)
        self._warm: dict[str, Session] = {}
        self._keep = len(PEERS) if model == "reference" else 1
        self._encoder = self._open("phi3ov", "reference")  # both models share a tokenizer
        self._encoder.start()
        self._encoder.request("load")
        self.work = Work(
            lambda texts, messages: self._encoder.request(
                "encode", texts=texts, as_messages=messages
            )
        )

    def measure(self, cases: Sequence[Case], rounds: int, *, deadline: float = math.inf) -> None:
        """Go through all steps; a peer's failure is noted and the rest goes on.

        Args:
            cases: What to measure.
            rounds: How often, at most.
            deadline: On the clock of ``time.perf_counter``: no case of a later round begins that
                took longer in the first round than what is left.
        """
        for case, peer in self._steps(cases, rounds, deadline):
            _say(f"{case.name:14} {peer}")
            try:
                self._take(case, peer)
            except (PeerFailedError, ValueError) as error:
                self.failures[f"{case.name}, {peer}"] = str(error)
                self._drop(peer)
                _say(f"  failed: {error}")
        for peer in list(self._warm):
            self._drop(peer)
        self._encoder.close()

    def read_bandwidth(self) -> None:
        """Measure how fast memory is read, once more."""
        for name, rate in measure_bandwidth(self.threads).items():
            self.bandwidth[name].append(rate)

    def _steps(
        self, cases: Sequence[Case], rounds: int, deadline: float
    ) -> Iterator[tuple[Case, str]]:
        if self._keep > 1:
            took: dict[str, float] = {}
            for number in range(rounds):
                for case in cases:
                    begun = time.perf_counter()
                    if begun + took.get(case.name, 0.0) > deadline:
                        _say(f"{case.name:14} no time for round {number + 1}")
                        continue
                    yield from ((case, peer) for peer in self._turn(number) if peer in case.peers)
                    took.setdefault(case.name, time.perf_counter() - begun)
                self.read_bandwidth()
            return
        for number in range(rounds):
            self.read_bandwidth()
            for peer in self._turn(number):
                yield from ((case, peer) for case in cases if peer in case.peers)

    def _turn(self, number: int) -> Sequence[str]:
        return self.peers if number % 2 == 0 else self.peers[::-1]

    def _take(self, case: Case, peer: str) -> None:
        if case.fresh:
            session = self._open(peer, self.model)
            try:
                figures = case.measure(session, self.work, self.scale)
            finally:
                session.close()
            self._keep_values(peer, figures)
            return
        for _ in range(self.scale.decode_repeats if case.name == "decode" else 1):
            self._keep_values(peer, case.measure(self._warm_session(peer), self.work, self.scale))

    def _keep_values(self, peer: str, figures: Figures) -> None:
        for name, value in figures.items():
            self.values[name][peer].append(value)

    def _warm_session(self, peer: str) -> Session:
        if peer not in self._warm:
            while len(self._warm) >= self._keep:
                self._drop(next(iter(self._warm)))
            session = self._open(peer, self.model)
            self._warm[peer] = session
            session.start()
            session.request("load")
            for _ in range(2):  # weights are repacked, buffers grow
                prompt = self.work.prompts(1, 64)[0]
                if peer == "genai-cb":
                    session.request("many", prompts=[prompt], new_tokens=4)
                else:
                    session.request("generate", prompt=prompt, new_tokens=4)
        return self._warm[peer]

    def _open(self, peer: str, model: ModelName) -> Session:
        one = PEERS[peer]
        return Session(one, model_path(model, one.weights), threads=self.threads)

    def _drop(self, peer: str) -> None:
        if peer in self._warm:
            try:
                self._warm.pop(peer).close()
            except (OSError, subprocess.TimeoutExpired) as error:
                _say(f"  {peer} did not end: {error}")


def run(
    model: ModelName,
    target: Path,
    *,
    peers: Sequence[str],
    cases: Sequence[str],
    rounds: int,
    threads: int,
    smoke: bool,
    minutes: float | None = None,
) -> None:
    """Make what is missing, measure, and write ``target``.

    The minutes count from here, and what has to be made counts as well.
    """
    started = time.perf_counter()
    for form in ("checkpoint", *{PEERS[peer].weights: None for peer in peers}):
        make_model(model, form, threads=threads)
    make_model("reference", "openvino", threads=threads)  # the encoder's
    running = Run(model, SCALES["smoke" if smoke else model], peers, threads=threads)
    chosen = [case for case in CASES if case.name in cases]
    running.read_bandwidth()
    deadline = math.inf if minutes is None else started + 60 * minutes
    running.measure(chosen, rounds, deadline=deadline)
    result = {
        "model": model,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "command": f"python -m phi3ov_bench {' '.join(sys.argv[1:])}",
        "machine": describe_machine() | {"threads": threads},
        "rounds": rounds,
        "seconds": 0.0,
        "bandwidth_bytes_per_second": running.bandwidth,
        "peers": {peer: _describe(model, peer) for peer in peers},
        "values": running.values,
        "exports": {},
        "made": json.loads((WORK / "models" / model / "made.json").read_text(encoding="utf-8")),
        "failures": running.failures,
    }
    result["seconds"] = time.perf_counter() - started
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(_rounded(result), indent=1) + "\n", encoding="utf-8")
    _say(f"{target} after {result['seconds']:.0f} s; failures: {running.failures or 'none'}")


def measure_exports(model: ModelName, target: Path) -> None:
    """Export with phi3ov and with optimum-cli, and add what it took to the run's JSON."""
    results = {}
    for exporter in ("phi3ov", "optimum-cli"):
        _say(f"export         {exporter}")
        output = WORK / "exported"
        shutil.rmtree(output, ignore_errors=True)
        command = export_command(exporter, model_path(model, "checkpoint"), output)
        results[exporter] = run_measured(command)
        shutil.rmtree(output)
    result = json.loads(target.read_text(encoding="utf-8"))
    result["exports"] = _rounded(results)
    target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _describe(model: ModelName, peer: str) -> dict[str, Any]:
    one = PEERS[peer]
    return {
        "title": one.title,
        "weights": one.weights,
        "weight_bytes": weight_bytes(model, one.weights),
        "installed_bytes": installed_bytes(one.environment),
        "versions": installed_versions(one.environment),
    }


def _rounded(value: Any) -> Any:
    """Return a JSON value with floats of six significant digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def _say(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()
