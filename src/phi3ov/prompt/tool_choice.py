"""`ToolChoice`: whether a model may, must or must not call a tool, as in OpenAI's protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypedDict, cast, get_args

from ..errors import OptionError


class ToolName(TypedDict):
    """The name of the tool that the model must call."""

    name: str


ToolChoice = Literal["none", "auto", "required"] | ToolName
"""Whether the model must not, may or must call a tool, or must call the named tool."""


def read_tool_choice(choice: object) -> ToolChoice:
    """Normalize a tool choice: OpenAI's dictionary and a plain name become `ToolName`.

    Example:
        >>> read_tool_choice({"type": "function", "function": {"name": "now"}})
        {'name': 'now'}

    Raises:
        OptionError: ``choice`` is not a valid tool choice.
    """
    for word in get_args(get_args(ToolChoice)[0]):
        if isinstance(choice, str) and choice == word:
            return cast("ToolChoice", word)
    if isinstance(choice, str) and choice:
        return ToolName(name=choice)
    if isinstance(choice, Mapping):
        given = choice.get("function") if choice.get("type") == "function" else choice
        if isinstance(given, Mapping) and given.keys() == {"name"}:
            name = given["name"]
            if isinstance(name, str) and name:
                return ToolName(name=name)
    raise OptionError(
        f"tool_choice={choice!r:.80} is not one of none, auto, required, or a dictionary with the "
        "name of a tool: {'name': 'get_weather'}.",
        option="tool_choice",
    )
