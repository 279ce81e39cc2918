"""Deep copies of a caller's values in plain JSON types."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def plain_json(value: Any) -> Any:
    """Return a deep copy of ``value`` in plain JSON types.

    Mappings of every kind become dictionaries, tuples become lists.

    Example:
        >>> plain_json({"a": (1, None)})
        {'a': [1, None]}

    Raises:
        ValueError: JSON cannot represent the value exactly: it holds another type, a key that is
            not a string, NaN or an infinity, a lone surrogate, or too deep nesting.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=_as_dictionary)
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("it holds a lone surrogate, which no text has") from error
    except (TypeError, RecursionError) as error:
        raise ValueError(str(error)) from error
    waiting = [value]  # `dumps` has refused circular references
    while waiting:
        part = waiting.pop()
        if isinstance(part, Mapping):
            odd = [name for name in part if not isinstance(name, str)]
            if odd:  # `dumps` would convert some of them to strings
                raise ValueError(f"the key {odd[0]!r:.80} is not a string")
            waiting += part.values()
        elif isinstance(part, list | tuple):
            waiting += part
    return json.loads(text)


def _as_dictionary(value: object) -> dict[Any, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{value!r:.80} is of type {type(value).__name__}")
