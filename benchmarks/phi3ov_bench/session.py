"""The harness's end of an adapter's pipe: a peer in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from .memory import Memory, memory_of
from .peers import WORK, Peer, python_of


class PeerFailedError(RuntimeError):
    """The adapter reported an error, or died."""


class Session:
    """One process of a peer. A new one is the only state from which a cold start can be timed."""

    def __init__(self, peer: Peer, model: Path, *, threads: int) -> None:
        """Start the process; what it does first is up to `request`."""
        self.peer = peer
        log = WORK / "logs" / f"{peer.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        self.started = time.perf_counter()
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [python_of(peer.environment), "-m", f"phi3ov_bench.adapters.{peer.adapter}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=surroundings(threads),
                cwd=WORK,
            )
        self._start = {"variant": peer.variant, "model": str(model), "threads": threads}

    @property
    def process_id(self) -> int:
        """The operating system's number of the process."""
        return self._process.pid

    def start(self) -> float:
        """Import the peer's package; return the seconds."""
        return float(self.request("start", **self._start))

    def request(self, operation: str, **arguments: Any) -> Any:
        """Let the adapter do something and return its result.

        Raises:
            PeerFailedError: It could not.
        """
        line = json.dumps({"op": operation, **arguments}).encode() + b"\n"
        pipes = self._process
        assert pipes.stdin is not None
        assert pipes.stdout is not None
        try:
            pipes.stdin.write(line)
            pipes.stdin.flush()
            answer = pipes.stdout.readline()
        except OSError:
            answer = b""
        if not answer:
            raise PeerFailedError(f"{self.peer.name}: died during {operation!r}")
        report = json.loads(answer)
        if "error" in report:
            raise PeerFailedError(f"{self.peer.name}: {operation}: {report['error']}")
        return report["result"]

    def memory(self) -> Memory:
        """Return what the process and its children hold."""
        return memory_of(self._process.pid)

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(timeout=120)


def surroundings(threads: int) -> dict[str, str]:
    """Return the same surroundings for every peer: nothing of this environment's Python."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return kept | {
        "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
