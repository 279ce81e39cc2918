"""Parses tool calls from an answer's text, in every form that Phi-4-mini is known to write.

The model was trained to write ``[{"name": ..., "arguments": {...}}]`` between its tool-call
tokens. It also writes ``parameters`` for ``arguments``, the arguments as a JSON string, a call
without arguments, OpenAI's ``{"type": "function", "function": {...}}``, a fenced block, several
objects without a list around them, and, without the tokens, a list after the word ``functools``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from typing import Any

from .tools import ToolCall, refuse_constant

MARKER = "functools["
"""Text that begins a list of calls in ordinary text."""

_FENCE = re.compile(r"```[ \t]*\w*[ \t]*\r?\n?(.*?)(?:```|\Z)", re.DOTALL)
_BETWEEN = re.compile(r"[\s,;]*")
_DECODER = json.JSONDecoder(parse_constant=refuse_constant)
_ARGUMENTS = ("arguments", "parameters")
_LABELS = frozenset({"id", "type", "index"})
"""Keys beside name and arguments that are ignored."""


def parse_tool_calls(text: str) -> tuple[ToolCall, ...] | None:
    """Parse ``text`` as a list of calls; None if it is anything else.

    Example:
        >>> parse_tool_calls('[{"name": "now", "arguments": {}}]')
        (ToolCall(name='now', arguments={}, id=None),)
        >>> parse_tool_calls('functools[{"name": "now", "parameters": "{}"}]')
        (ToolCall(name='now', arguments={}, id=None),)
        >>> parse_tool_calls("let me think") is None
        True
    """
    inner = text.strip()
    if fenced := _FENCE.fullmatch(inner):
        inner = fenced[1].strip()
    inner = inner.removeprefix("functools").lstrip()
    try:
        calls = [_read_call(value) for value in _flat(_values(inner))]
    except (ValueError, RecursionError):  # PromptError is a ValueError
        return None
    if not calls or None in calls:
        return None
    return tuple(call for call in calls if call is not None)


def _values(text: str) -> Iterator[Any]:
    """Yield consecutive JSON values, separated by commas or line breaks."""
    position = 0
    while position < len(text):
        value, position = _DECODER.raw_decode(text, position)
        yield value
        between = _BETWEEN.match(text, position)
        position = between.end() if between else position


def _flat(values: Iterator[Any]) -> Iterator[Any]:
    """Yield the values, flattening nested lists."""
    waiting = list(values)[::-1]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value[::-1]
        else:
            yield value


def _read_call(value: Any) -> ToolCall | None:
    """Parse one call; None if the value is anything else.

    Raises:
        ValueError: The arguments are not JSON, or hold values that a call cannot hold.
    """
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        if value.keys() - {"function"} - _LABELS:
            return None
        value = value["function"]
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    given = [name for name in _ARGUMENTS if name in value]
    if len(given) > 1 or value.keys() - {"name", *given} - _LABELS:
        return None  # not only a call, but for example the description of a tool
    arguments = value[given[0]] if given else None
    if isinstance(arguments, str):
        arguments = json.loads(arguments, parse_constant=refuse_constant) if arguments else {}
    return ToolCall(name=value["name"], arguments={} if arguments is None else arguments)


class CallText:
    """Extracts calls that the model wrote as ordinary text, without its tool-call tokens.

    Text is held back while it may still become calls: after ``functools[`` anywhere, and from
    the beginning of an answer that looks like a call of an offered tool. Held text that cannot be
    parsed as calls of offered tools is returned as text.

    Attributes:
        calls: The calls; complete after `finish`.
    """

    def __init__(self, offered: Collection[str]) -> None:
        """Look for calls of the tools named in ``offered``, which may be empty."""
        self._offered = frozenset(offered)
        self._heads = tuple(_heads(offered))
        self._held = ""
        self._at_start = True
        self._is_call = False
        self.calls: tuple[ToolCall, ...] = ()

    def add(self, text: str) -> str:
        """Add text; return the text that is certainly not part of a call."""
        if not self._offered:
            return text
        self._held += text
        if self._at_start:  # the text so far may still look like calls
            dense = "".join(self._held.split())
            if any(dense.startswith(head) for head in self._heads):
                self._at_start = False
                self._is_call = True
            elif any(head.startswith(dense) for head in self._heads):
                return ""
            else:
                self._at_start = False
        if self._is_call:
            return ""
        begin = self._held.find(MARKER)
        if begin < 0:
            begin = len(self._held) - _beginning(self._held, MARKER)
        shown, self._held = self._held[:begin], self._held[begin:]
        return shown

    def finish(self) -> str:
        """Return the held text that is not a call, at the end of the answer."""
        text, self._held = self._held, ""
        calls, rest = self._read(text)
        self.calls += calls
        return rest

    def _read(self, text: str) -> tuple[tuple[ToolCall, ...], str]:
        calls = parse_tool_calls(text)
        rest = ""
        if calls is None and text.startswith(MARKER):  # a sentence may follow the list
            end = _list_end(text)
            calls, rest = parse_tool_calls(text[:end]), text[end:]
        if calls is None or any(call.name not in self._offered for call in calls):
            return (), text
        return calls, rest


def _heads(offered: Collection[str]) -> Iterator[str]:
    """Yield the possible beginnings of an answer that consists of calls, without white space."""
    for fence in ("", "```", "```json", "```tool_call"):
        for marker in ("", "functools"):
            for bracket in ("", "[", "[["):
                start = f"{fence}{marker}{bracket}" + "{"
                yield f'{start}"type":"function"'
                yield f'{start}"id":"'
                yield f'{start}"function":' + "{"
                for name in offered:
                    yield f'{start}"name":{"".join(json.dumps(name, ensure_ascii=False).split())}'


def _beginning(text: str, marker: str) -> int:
    """Return the length of the longest suffix of ``text`` that is a prefix of ``marker``."""
    lengths = range(min(len(text), len(marker) - 1), 0, -1)
    return next((length for length in lengths if text.endswith(marker[:length])), 0)


def _list_end(text: str) -> int:
    """Return the end position of the list after the marker; the text's end if it is open."""
    try:
        _, end = _DECODER.raw_decode(text, len(MARKER) - 1)
    except (ValueError, RecursionError):
        return len(text)
    return end
