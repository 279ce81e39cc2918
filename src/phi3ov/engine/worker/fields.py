"""JSON objects from another process, read field by field: each is taken once, and checked."""

from __future__ import annotations

from typing import Any, cast

MAX_TOKEN_ID = 2**31 - 1
MAX_NUMBER = 2**53


class ProtocolError(ValueError):
    """A line that the other side would never write."""


class Fields:
    """A JSON object, each field of which is taken once and checked."""

    def __init__(self, value: Any) -> None:
        if not isinstance(value, dict):
            raise ProtocolError(f"{str(value)[:80]} is no JSON object.")
        self._values = dict(value)

    def take(self, name: str, *types: type | None) -> Any:
        """Return the field, which must be of exactly one of ``types``; None stands for null."""
        if name not in self._values:
            raise ProtocolError(f"The field {name!r} is missing.")
        value = self._values.pop(name)
        if (None if value is None else type(value)) not in types:
            raise ProtocolError(f"{name}={str(value)[:80]} has the wrong type.")
        return value

    def text(self, name: str) -> str:
        """Return the field, a string."""
        return cast("str", self.take(name, str))

    def integer(self, name: str, *, least: int = 0, most: int = MAX_NUMBER) -> int:
        """Return the field, an integer from ``least`` to ``most``."""
        return in_range(name, self.take(name, int), least, most)

    def number(self, name: str, *, least: float = 0.0, most: float) -> float:
        """Return the field, a number from ``least`` to ``most``; NaN is none."""
        return _real(name, self.take(name, int, float), least, most)

    def token_ids(self, name: str) -> tuple[int, ...]:
        """Return the field, a list of token ids."""
        values = self.take(name, list)
        for value in values:
            if type(value) is not int or not 0 <= value <= MAX_TOKEN_ID:
                raise ProtocolError(f"{name} holds {str(value)[:80]}, which is no token id.")
        return tuple(values)

    def logprobs(self, name: str) -> tuple[float, ...]:
        """Return the field, a list of log-probabilities: at most 0, but for rounding."""
        values = self.take(name, list)
        if any(type(value) not in (int, float) for value in values):
            raise ProtocolError(f"{name} holds what is no number.")
        return tuple(_real(name, value, -MAX_NUMBER, 0.001) for value in values)

    def require_no_more(self) -> None:
        """Refuse fields that nobody took."""
        if self._values:
            raise ProtocolError(f"Unknown fields: {', '.join(sorted(self._values))[:200]}.")


def _real(name: str, value: float, least: float, most: float) -> float:
    if not least <= value <= most:  # false for NaN
        raise ProtocolError(f"{name}={value} is not between {least} and {most}.")
    return float(value)


def in_range(name: str, value: int, least: int, most: int) -> int:
    """Return an integer that must be from ``least`` to ``most``."""
    if not least <= value <= most:
        raise ProtocolError(f"{name}={value} is not between {least} and {most}.")
    return value
