"""OpenVINO and NNCF for users who have no home folder.

A container may run under a user id that has no entry in the password file, and without HOME.
There is no home folder then, and two tools fail while they are imported: OpenVINO, whose telemetry
looks there for the user's consent, and NNCF, which composes the path of a cache of downloads. In
a home folder that cannot be written, the telemetry logs a warning each time it is asked.
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
    """Keep the telemetry package from being imported where it has no folder to write to.

    OpenVINO, NNCF and openvino-tokenizers go on without it, as where it is not installed.
    """
    if not (has_home() and os.access(Path.home(), os.W_OK)):
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


@contextmanager
def home_assumed() -> Iterator[None]:
    """While the block runs, let a user without a home folder have one, in which nothing can be."""
    if has_home():
        yield
        return
    original = vars(Path)["home"]
    Path.home = classmethod(lambda _cls: Path(os.devnull, "home"))  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        Path.home = original  # type: ignore[method-assign]
