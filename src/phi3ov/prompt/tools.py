"""Tools that a model may call: descriptions into the prompt, calls out of the answer.

Only Phi-4-mini was trained with a tool format: the descriptions stand as JSON in the system
message, and the model answers with ``<|tool_call|>[{"name": ..., "arguments": {...}}]``.
Where they stand is ``chat_format.py``; nothing here runs a tool.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import OptionError, PromptError
from ..plain_json import plain_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function that the model may ask to be called.

    Attributes:
        name: What the model calls it.
        description: What it does, for the model to read.
        parameters: Name of each parameter to its description, such as
            ``{"city": {"description": "Name of the city", "type": "str"}}``. A mapping of any
            kind; the tool keeps a copy of it in plain dictionaries and lists.

    Raises:
        OptionError: The name is empty, name or description is no text, or the parameters are
            nothing that JSON can hold.
    """

    name: str
    description: str
    parameters: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.name == "":
            raise OptionError(f"name={self.name!r} of a tool is empty.")
        for field_name, kind in (("name", str), ("description", str), ("parameters", Mapping)):
            value = getattr(self, field_name)
            if not isinstance(value, kind):
                raise OptionError(
                    f"{field_name}={value!r:.80} of a tool is of type {type(value).__name__}, not "
                    f"{kind.__name__}."
                )
            try:
                object.__setattr__(self, field_name, plain_json(value))
            except ValueError as error:
                raise OptionError(
                    f"{field_name}={value!r:.80} of the tool {self.name!r:.80} is no JSON: {error}."
                ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call that the model asked for.

    Attributes:
        name: The tool's name, as the model wrote it: check that you offered it.
        arguments: The arguments, as the model wrote them: check them before use. A mapping of any
            kind; the call keeps a copy of it in plain dictionaries and lists.
        id: A label for the caller that ties a result to its call, as in OpenAI's protocol. The
            model neither reads nor writes it.

    Raises:
        PromptError: The name is empty or not text, the id likewise, or the arguments are nothing
            that JSON can hold.
    """

    name: str
    arguments: Mapping[str, Any] = field(hash=False)
    id: str | None = None

    def __post_init__(self) -> None:
        for field_name in ("name", "id"):
            label = getattr(self, field_name)
            if label is None and field_name == "id":
                continue
            if not isinstance(label, str) or not label:
                raise PromptError(
                    f"{field_name}={label!r:.80} of a call must be a string that is not empty."
                )
        if not isinstance(self.arguments, Mapping):
            raise PromptError(
                f"arguments={self.arguments!r:.80} of a call is of type "
                f"{type(self.arguments).__name__}, not a mapping."
            )
        try:
            plain_json([self.name, self.id])
            object.__setattr__(self, "arguments", plain_json(self.arguments))
        except ValueError as error:
            raise PromptError(f"The call of {self.name!r:.80} cannot be JSON: {error}.") from error


def describe_tools(tools: Sequence[Tool]) -> str:
    """Return the descriptions as the JSON that Phi-4-mini's model card shows.

    Example:
        >>> describe_tools([Tool(name="now", description="Current time")])
        '[{"name": "now", "description": "Current time", "parameters": {}}]'

    Raises:
        OptionError: One is no `Tool`.
    """
    for one in tools:
        if not isinstance(one, Tool):
            raise OptionError(
                f"tools holds {one!r:.80} of type {type(one).__name__}. Make a Tool of it: "
                "Tool(name=..., description=..., parameters=...)."
            )
    values = [
        {"name": one.name, "description": one.description, "parameters": one.parameters}
        for one in tools
    ]
    return json.dumps(values, ensure_ascii=False)


def describe_calls(calls: Sequence[ToolCall]) -> str:
    """Return calls as the JSON that Phi-4-mini writes between its tool-call tokens.

    Example:
        >>> describe_calls([ToolCall(name="now", arguments={"zone": "UTC"})])
        '[{"name": "now", "arguments": {"zone": "UTC"}}]'
    """
    values = [{"name": call.name, "arguments": call.arguments} for call in calls]
    return json.dumps(values, ensure_ascii=False)


def refuse_constant(name: str) -> None:
    """Refuse NaN and infinities, for the ``parse_constant`` of ``json.loads``.

    Raises:
        ValueError: Always.
    """
    raise ValueError(f"{name} is not JSON, although Python reads it")


def parse_tool_calls(text: str) -> tuple[ToolCall, ...] | None:
    """Return the calls in what stood between the tool-call tokens, or None if it is no call.

    The model writes a JSON list of objects, sometimes without the brackets, with ``name`` and
    ``arguments``.

    Example:
        >>> parse_tool_calls('[{"name": "now", "arguments": {}}]')
        (ToolCall(name='now', arguments={}, id=None),)
        >>> parse_tool_calls("let me think") is None
        True
    """
    stripped = text.strip()
    try:
        listed = stripped if stripped.startswith("[") else f"[{stripped}]"
        values = json.loads(listed, parse_constant=refuse_constant)
    except (ValueError, RecursionError):
        return None
    calls = []
    for value in values:
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            return None
        arguments = value.get("arguments")
        if not isinstance(arguments, dict):
            return None
        try:
            calls.append(ToolCall(name=value["name"], arguments=arguments))
        except PromptError:  # an empty name, a lone surrogate, a number beyond JSON's
            return None
    return tuple(calls) or None
