"""Shared validators: a number but not a bool, an integer in a range, one of a set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

from .errors import OptionError


def is_integer(value: object) -> TypeGuard[int]:
    """Return whether a value is an integer but not a bool.

    Example:
        >>> is_integer(2), is_integer(True), is_integer(2.0)
        (True, False, False)
    """
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[int | float]:
    """Return whether a value is an integer or a float (also NaN or infinity), but not a bool.

    Example:
        >>> is_number(2), is_number(2.0), is_number(True)
        (True, True, False)
    """
    return isinstance(value, int | float) and not isinstance(value, bool)


def require_integer(name: str, value: object, *, least: int, most: int | None = None) -> None:
    """Check that a value is an integer from ``least`` to ``most`` (None: no limit).

    Raises:
        OptionError: It is not; the error names the option, the value and the bound.
    """
    if not is_integer(value) or value < least:
        raise OptionError(f"{name}={value!r} must be an integer of at least {least}.", option=name)
    if most is not None and value > most:
        raise OptionError(f"{name}={value!r} must be at most {most}.", option=name)


def require_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Check that a value is one of ``choices``.

    Raises:
        OptionError: It is not; the error names the option, the value and the choices.
    """
    if value not in choices:
        raise OptionError(
            f"{name}={value!r} is not one of {', '.join(map(repr, choices))}.", option=name
        )
