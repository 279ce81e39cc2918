"""Tool calls out of an answer's text, in every form that Phi-4-mini is known to write.

The model was trained to write ``[{"name": ..., "arguments": {...}}]`` between its tool-call
tokens. It also writes ``parameters`` for ``arguments``, the arguments as a JSON string, none at
all, OpenAI's ``{"type": "function", "function": {...}}``, a fenced block, several objects without
a list around them, and, without the tokens, a list behind the word ``functools``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from typing import Any

from .tools import ToolCall, refuse_constant

MARKER = "functools["
"""What begins a list of calls in ordinary text."""

_FENCE = re.compile(r"```[ \t]*\w*[ \t]*\r?\n?(.*?)(?:```|\Z)", re.DOTALL)
_BETWEEN = re.compile(r"[\s,;]*")
_DECODER = json.JSONDecoder(parse_constant=refuse_constant)
_ARGUMENTS = ("arguments", "parameters")
_LABELS = frozenset({"id", "type", "index"})
"""Keys beside name and arguments that change nothing."""


def parse_tool_calls(text: str) -> tuple[ToolCall, ...] | None:
    """Return the calls that ``text`` consists of; None if it is anything else.

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
    """Yield JSON values that stand one after the other, with commas or lines between."""
    position = 0
    while position < len(text):
        value, position = _DECODER.raw_decode(text, position)
        yield value
        between = _BETWEEN.match(text, position)
        position = between.end() if between else position


def _flat(values: Iterator[Any]) -> Iterator[Any]:
    """Yield the values, and those of lists among them, at any depth."""
    waiting = list(values)[::-1]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value[::-1]
        else:
            yield value


def _read_call(value: Any) -> ToolCall | None:
    """Return one call; None if it is anything else.

    Raises:
        ValueError: Its arguments are not JSON, or hold what a call cannot.
    """
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        if value.keys() - {"function"} - _LABELS:
            return None
        value = value["function"]
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    given = [name for name in _ARGUMENTS if name in value]
    if len(given) > 1 or value.keys() - {"name", *given} - _LABELS:
        return None  # more than a call: the description of a tool, for example
    arguments = value[given[0]] if given else None
    if isinstance(arguments, str):
        arguments = json.loads(arguments, parse_constant=refuse_constant) if arguments else {}
    return ToolCall(name=value["name"], arguments={} if arguments is None else arguments)


class CallText:
    """Takes calls out of ordinary text, where the model wrote them without its tokens.

    Text is held back while it may still become calls: from ``functools[`` on, anywhere, and from
    the beginning of an answer that looks like a call of an offered tool. What cannot be read as
    calls of offered tools is text.

    Attributes:
        calls: The calls; complete after `finish`.
    """

    def __init__(self, offered: Collection[str]) -> None:
        """Look for calls of the tools named ``offered``; for none if there are none."""
        self._offered = frozenset(offered)
        self._heads = tuple(_heads(offered))
        self._held = ""
        self._at_start = True
        self._is_call = False
        self.calls: tuple[ToolCall, ...] = ()

    def add(self, text: str) -> str:
        """Take more text; return what is certainly not part of a call."""
        if not self._offered:
            return text
        self._held += text
        if self._at_start:  # whether it looks like calls so far
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
        """Return what was held back and is not a call, once no more text will come."""
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
    """Yield how an answer that consists of calls may begin, without white space."""
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
    """Return the length of the longest end of ``text`` that begins ``marker``."""
    lengths = range(min(len(text), len(marker) - 1), 0, -1)
    return next((length for length in lengths if text.endswith(marker[:length])), 0)


def _list_end(text: str) -> int:
    """Return where the list behind the marker ends; the text's end if it has none."""
    try:
        _, end = _DECODER.raw_decode(text, len(MARKER) - 1)
    except (ValueError, RecursionError):
        return len(text)
    return end
