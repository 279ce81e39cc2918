"""Makes OpenVINO and NNCF work for users without a home folder.

A container may run under a user id without a password entry, and without HOME. Two tools then
fail on import: OpenVINO, whose telemetry looks for the user's consent in the home folder, and
NNCF, which builds the path of a download cache. If the home folder is not writable, the telemetry
logs a warning on every use.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def has_home() -> bool:
    """Return whether the user has a home folder."""
    try:
        Path.home()
    except RuntimeError:
        return False
    return True


def leave_out_telemetry_without_home() -> None:
    """Prevent the import of the telemetry package if it has no folder to write to.

    OpenVINO, NNCF and openvino-tokenizers then work as if it were not installed.
    """
    if not (has_home() and os.access(Path.home(), os.W_OK)):
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


@contextmanager
def home_assumed() -> Iterator[None]:
    """Give a user without a home folder a nonexistent one while the block runs."""
    if has_home():
        yield
        return
    original = vars(Path)["home"]
    Path.home = classmethod(lambda _cls: Path(os.devnull, "home"))  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        Path.home = original  # type: ignore[method-assign]
