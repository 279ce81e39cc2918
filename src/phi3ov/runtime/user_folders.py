"""The user's folders in which phi3ov keeps files: measured settings and input history.

A user id without a password entry and without HOME, as in some containers, has no such folders.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ..errors import OptionError

_VARIABLES = {"data": "XDG_DATA_HOME", "state": "XDG_STATE_HOME"}


def user_folder(kind: Literal["data", "state"]) -> Path:
    """Return phi3ov's folder of a kind for this user, which may not exist.

    Args:
        kind: ``"data"`` for files worth keeping, ``"state"`` for files that may be lost.

    Raises:
        OptionError: The user has no home folder, and no environment variable names the folder.

    Example:
        >>> user_folder("data").name
        'phi3ov'
    """
    import platformdirs

    ask = {"data": platformdirs.user_data_path, "state": platformdirs.user_state_path}[kind]
    try:
        folder = ask("phi3ov", appauthor=False)
    except RuntimeError:  # platformdirs before 4.5 returns a path that begins with ~
        folder = Path("~")
    if folder.parts[0] == "~":
        raise OptionError(
            f"This user has no home folder, so there is no {kind} folder either. Set HOME or "
            f"{_VARIABLES[kind]} to a folder that can be written."
        )
    return folder
