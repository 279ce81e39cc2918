"""The exported folder: its manifest, the contents of its IR, download and publishing.

`exporter` creates such a folder, `loading` opens it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

# Hidden from type checkers, which would otherwise take every misspelt name for an object.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Return a public name that 0.1 had here, with a warning."""
        return import_module("phi3ov.moved").find_moved("artifact", name)
