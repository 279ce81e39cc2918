"""Answer many independent conversations.

`runner` answers conversations in memory, `file` those of a JSONL file, and `records` reads and
writes the output of such a run.
"""

from importlib import import_module
from typing import TYPE_CHECKING

# Hidden from type checkers, which would otherwise take every misspelt name for an object.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Return a public name that 0.1 had here, with a warning."""
        return import_module("phi3ov.moved").find_moved("batch", name)
