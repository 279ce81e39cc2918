"""Replaces functions of optimum, NNCF and transformers, for the calling thread only.

A program may use the same tools in other threads while phi3ov exports in one. So the attribute is
replaced by a switch, which calls phi3ov's function in the threads that requested it and the
original in all others. The original is restored when the last of those threads is done.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

_LOCK = threading.Lock()
"""Held while a switch is installed or removed."""


class _Switch:
    """Stand-in for a function, class or method that calls a replacement in some threads."""

    def __init__(self, original: Any, *, inherited: bool) -> None:
        self.original = original
        self.inherited = inherited
        self.users = 0
        self._local = threading.local()

    @property
    def replacements(self) -> list[Callable[..., Any]]:
        """The replacements that are active in this thread, innermost last."""
        found: list[Callable[..., Any]] = vars(self._local).setdefault("replacements", [])
        return found

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        replacements = self.replacements
        return (replacements[-1] if replacements else self.original)(*arguments, **options)

    def __get__(self, instance: Any, _owner: type | None = None) -> Any:
        """Bind like a function, for a switch that replaces a method."""
        return self if instance is None else MethodType(self, instance)

    def __instancecheck__(self, instance: Any) -> bool:
        """Make ``isinstance(instance, switch)`` ask for the original, where that is a class."""
        return isinstance(instance, self.original)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Callable[..., Any]) -> Iterator[None]:
    """Replace the attribute ``name`` of ``owner`` in this thread while the block runs.

    Args:
        owner: A module or a class.
        name: Name of a function, a class or an instance method.
        value: The replacement, which accepts the same arguments.
    """
    with _LOCK:
        switch = vars(owner).get(name)
        if not isinstance(switch, _Switch):
            switch = _Switch(getattr(owner, name), inherited=name not in vars(owner))
            setattr(owner, name, switch)
        switch.users += 1
    switch.replacements.append(value)
    try:
        yield
    finally:
        switch.replacements.pop()
        with _LOCK:
            switch.users -= 1
            if not switch.users and vars(owner).get(name) is switch:
                if switch.inherited:
                    delattr(owner, name)
                else:
                    setattr(owner, name, switch.original)


def original_of(owner: Any, name: str) -> Any:
    """Return the original attribute ``name`` of ``owner``, without any replacement."""
    found = getattr(owner, name)
    return found.original if isinstance(found, _Switch) else found


@contextlib.contextmanager
def su_rope_accepted() -> Iterator[None]:
    """Let transformers read the first releases of the 128k models while the block runs.

    Their config calls LongRoPE ``"su"``. transformers renames it too late: it first looks up
    LongRoPE's fields under the new name, and raises because they are missing.
    """
    from transformers import Phi3Config

    convert = original_of(Phi3Config, "convert_rope_params_to_dict")

    def rename_and_convert(config: Any, *arguments: Any, **options: Any) -> Any:
        scaling = options.get("rope_scaling") or {}
        if scaling.get("rope_type", scaling.get("type")) == "su":
            options["rope_scaling"] = scaling | {"rope_type": "longrope"}
        return convert(config, *arguments, **options)

    with replaced(Phi3Config, "convert_rope_params_to_dict", rename_and_convert):
        yield
