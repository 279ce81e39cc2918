"""Finds the Python interpreter that runs the worker process.

``sys.executable`` is an interpreter only if Python was started as a program. In a program that
embeds Python it is that program, empty or None, and cannot run the worker.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from multiprocessing import spawn
from pathlib import Path

from ...errors import OptionError

_NAMES = ("python", "pypy", "graalpy")
"""Prefixes of the file names of Python interpreters."""


def find_interpreter() -> str:
    """Return the path of the Python that runs the worker.

    This is the path set by `multiprocessing.set_executable`, else ``sys.executable`` if it is an
    interpreter, else the interpreter of the installation that this process has loaded.

    Raises:
        OptionError: No interpreter was found, or the program is frozen (by PyInstaller, for
            example).

    Example:
        >>> "py" in Path(find_interpreter()).name
        True
    """
    if getattr(sys, "frozen", False):  # sys.executable would start the whole program again
        raise OptionError(
            "engine='worker' starts Python, which a frozen program does not have. Use "
            "engine='pipeline'.",
            option="engine",
        )
    named = spawn.get_executable()
    if named and (path := os.fsdecode(named)) != sys.executable:
        return path
    for candidate in _candidates():
        if candidate.name.lower().startswith(_NAMES) and candidate.is_file():
            return str(candidate)
    raise OptionError(
        f"engine='worker' needs a Python interpreter, but sys.executable={sys.executable!r} is not "
        f"one, and {sys.prefix} and {sys.base_prefix} have none. Name a Python "
        f"{sys.version_info[0]}.{sys.version_info[1]} with multiprocessing.set_executable(path), "
        "or use engine='pipeline'.",
        option="engine",
    )


def _candidates() -> Iterator[Path]:
    if sys.executable:
        yield Path(sys.executable)
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    for prefix in dict.fromkeys((sys.prefix, sys.base_prefix)):
        if os.name == "nt":
            yield from (Path(prefix, "Scripts", "python.exe"), Path(prefix, "python.exe"))
        else:
            yield Path(prefix, "bin", f"python{version}")
            if prefix == sys.prefix != sys.base_prefix:  # a virtual environment has one version
                yield Path(prefix, "bin", "python")
