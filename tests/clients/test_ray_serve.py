"""examples/ray_serve.py in an environment with Ray Serve, on two replicas.

Ray Serve brings uvloop and httptools, which uvicorn would take wherever they are installed; so it
is not part of the development set.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sysconfig
from pathlib import Path

from .conftest import REPOSITORY, python_of


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_sessions_find_their_prefix_and_answers_stream(
    reference_export: Path, tmp_path: Path
) -> None:
    """A conversation stays on one replica; without a session, both read the same prompt."""
    # phi3ov and what it runs on come from this environment, Ray Serve from the client's.
    path = os.pathsep.join([str(REPOSITORY / "src"), sysconfig.get_path("purelib")])
    done = subprocess.run(
        [python_of("ray_serve"), REPOSITORY / "tests/clients/programs/ray_serve_client.py"],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": path,
            "EXAMPLES": str(REPOSITORY / "examples"),
            "MODEL": str(reference_export),
            "SERVE_PORT": str(free_port()),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert done.stdout.rstrip().endswith("done")
