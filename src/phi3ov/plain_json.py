"""A caller's values as JSON holds them: copied into plain dictionaries, lists, texts, numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def plain_json(value: Any) -> Any:
    """Return a copy of ``value`` that its caller cannot change any more.

    Mappings of every kind become dictionaries, tuples become lists.

    Example:
        >>> plain_json({"a": (1, None)})
        {'a': [1, None]}

    Raises:
        ValueError: JSON cannot hold it as it is: a type that JSON has not, a key that is no
            string, NaN or an infinity, a lone surrogate, or parts nested too deeply.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=_as_dictionary)
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("it holds a lone surrogate, which no text has") from error
    except (TypeError, RecursionError) as error:
        raise ValueError(str(error)) from error
    waiting = [value]  # `dumps` has found no circle
    while waiting:
        part = waiting.pop()
        if isinstance(part, Mapping):
            odd = [name for name in part if not isinstance(name, str)]
            if odd:  # `dumps` would write some of them as strings without a word
                raise ValueError(f"the key {odd[0]!r:.80} is no string")
            waiting += part.values()
        elif isinstance(part, list | tuple):
            waiting += part
    return json.loads(text)


def _as_dictionary(value: object) -> dict[Any, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{value!r:.80} is of type {type(value).__name__}")
