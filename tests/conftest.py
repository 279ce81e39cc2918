"""For every test: environment (set before heavy imports), Hypothesis profile, Ctrl-C.

Also what tests that run side by side (``pytest -n 2``) share: see `made_once`.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_AUTH_MODE"] = "disabled"  # else Ray writes a token into the home folder
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # else 127.0.0.1 becomes the network's
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


FolderState = dict[str, tuple[int, int]]
_SHARED = pytest.StashKey[dict[Path, FolderState]]()
"""The folders of `made_once` that this process knows, and what was in them."""


def state_of(folder: Path) -> FolderState:
    """Return size and time of the last change of each file in a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in files
    }


@pytest.fixture(scope="session")
def made_once(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """Make what is expensive once in a run, whichever of its processes asks first.

    ``made_once("name", make)`` returns a folder ``name`` after ``make(folder)`` has made it. No
    test may write into it: see `_shared_folders_stay_as_they_are`.
    """
    shared = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):  # one of several processes: pytest-xdist
        shared = shared.parent
    known = request.config.stash.setdefault(_SHARED, {})

    def get(name: str, make: Callable[[Path], object]) -> Path:
        folder = shared / name
        if folder in known:
            return folder
        with FileLock(shared / f"{name}.lock"):
            if not folder.exists():
                try:
                    make(folder)
                except BaseException:  # the next test that asks shall see why, not half of it
                    shutil.rmtree(folder, ignore_errors=True)
                    raise
            known[folder] = state_of(folder)
        return folder

    return get


@pytest.fixture(autouse=True)
def _shared_folders_stay_as_they_are(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail the test that changes a folder which other tests use as well."""
    yield
    known = request.config.stash.get(_SHARED, {})
    for folder, before in known.items():
        now = state_of(folder)
        if now != before:
            known[folder] = now  # later tests are not to blame
            changed = sorted(dict(set(before.items()) ^ set(now.items())))
            pytest.fail(f"{folder.name} is shared, and its files changed: {', '.join(changed)}")
