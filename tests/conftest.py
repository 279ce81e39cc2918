"""What holds for every test: environment, before heavy imports, Hypothesis profile, Ctrl-C.

And what tests that run side by side (``pytest -n 2``) share: see `made_once`.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")
os.environ["CI"] = "true"  # silences openvino's telemetry, which doubles a tiny export's time

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings

MadeOnce = Callable[[str, Callable[[Path], object]], Path]

settings.register_profile(
    "phi3ov",
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("phi3ov")

# A shell's background job ignores Ctrl-C, and whatever it starts would, too.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def made_once(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """Make what is expensive once in a run, whichever of its processes asks first.

    ``made_once("name", make)`` returns a folder ``name`` after ``make(folder)`` has made it.
    """
    shared = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):  # one of several processes: pytest-xdist
        shared = shared.parent

    def get(name: str, make: Callable[[Path], object]) -> Path:
        folder = shared / name
        with FileLock(shared / f"{name}.lock"):
            if not folder.exists():
                try:
                    make(folder)
                except BaseException:  # whoever asks next shall see why, not half of it
                    shutil.rmtree(folder, ignore_errors=True)
                    raise
        return folder

    return get
