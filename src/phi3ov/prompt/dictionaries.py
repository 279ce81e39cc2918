"""Reads messages from dictionaries of OpenAI's protocol: `read_messages`.

Unsupported fields are refused by name. ``messages.py`` defines the content and order of messages.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Literal, Required, TypedDict

from ..errors import PromptError
from .messages import ROLES, Ending, Message, check_order, require_list
from .tools import ToolCall, refuse_constant

_FIELDS = frozenset({"role", "content", "name", "tool_calls", "tool_call_id"})
_THOUGHTS = frozenset({"reasoning", "reasoning_content"})
"""Fields of an assistant message in which servers return reasoning text. Prompts leave it out, as
the model cards of the reasoning models recommend."""


class TextPart(TypedDict):
    """A text part of a content in OpenAI's protocol; parts are joined by line breaks."""

    type: Literal["text"]
    text: str


class ChatFunction(TypedDict):
    """Name and arguments of a call in OpenAI's protocol; the arguments are JSON as a string."""

    name: str
    arguments: str


class ChatToolCall(TypedDict):
    """A call in OpenAI's protocol."""

    id: str
    type: Literal["function"]
    function: ChatFunction


class ChatMessage(TypedDict, total=False):
    """A message as a dictionary of OpenAI's protocol, for type checkers; see `read_messages`."""

    role: Required[Literal["system", "developer", "user", "assistant", "tool"]]
    content: str | Sequence[TextPart] | None
    name: str | None
    tool_calls: Sequence[ChatToolCall] | None
    tool_call_id: str | None


def read_messages(
    messages: Sequence[Message | Mapping[str, object]], *, ends_with: Ending = "question"
) -> tuple[Message, ...]:
    """Return a conversation as `Message` values, checked for content and order.

    A dictionary has the fields of `ChatMessage`. ``developer`` is read as ``system``, ``null``
    and an empty list as absent, text parts are joined by line breaks, and the reasoning text of an
    earlier answer (``reasoning``, ``reasoning_content``) is dropped. Everything else is refused.

    Args:
        messages: The conversation, oldest message first.
        ends_with: How the conversation must end.

    Returns:
        The conversation as `Message` values.

    Raises:
        PromptError: A message cannot be read, a user message is empty, or the order of roles is
            invalid. The text begins with the message's number and field, such as
            ``messages[3].content``.

    Example:
        >>> read_messages([{"role": "user", "content": [{"type": "text", "text": "Hello"}]}])
        (Message(role='user', content='Hello'),)
        >>> read_messages([{"role": "user", "content": "Hello", "images": ["a.png"]}])
        Traceback (most recent call last):
            ...
        phi3ov.errors.PromptError: messages[0].images=['a.png'] is not a field that a prompt can \
hold. Fields: content, name, role, tool_call_id, tool_calls.
    """
    require_list(messages)
    read = tuple(
        message if isinstance(message, Message) else _read_message(number, message)
        for number, message in enumerate(messages)
    )
    check_order(read, ends_with=ends_with)
    for number, message in enumerate(read):
        if message.role == "user" and not message.content:
            raise PromptError(f"messages[{number}].content is empty. Give the user's text.")
    return read


def _read_message(number: int, fields: object) -> Message:
    """Read one dictionary of OpenAI's protocol."""
    where = f"messages[{number}]"
    if not isinstance(fields, Mapping):
        raise PromptError(
            f"{where}={fields!r:.80} is of type {type(fields).__name__}, not a Message or a "
            "dictionary, such as {'role': 'user', 'content': 'Hello'}."
        )
    given = {name: value for name, value in fields.items() if value is not None and value != []}
    role = given.get("role")
    if role == "developer":
        role = "system"
    if not isinstance(role, str) or role not in ROLES:
        raise PromptError(
            f"{where}.role={fields.get('role')!r:.80} is not one of system, developer, user, "
            "assistant, tool."
        )
    for name in given.keys() - _FIELDS:
        if name in _THOUGHTS and role == "assistant":
            continue
        raise PromptError(
            f"{where}.{name}={given[name]!r:.80} is not a field that a prompt can hold. Fields: "
            f"{', '.join(sorted(_FIELDS))}."
        )
    calls = _read_calls(where, given.get("tool_calls", ()))
    if "content" not in given and not calls and fields.get("content") != []:
        raise PromptError(f"{where}.content is missing. Give a string, or a list of text parts.")
    try:
        return Message(
            role=role,  # type: ignore[arg-type]  # checked against ROLES above
            content=_read_content(where, given.get("content", "")),
            tool_calls=calls,
            tool_call_id=given.get("tool_call_id"),
            name=given.get("name"),
        )
    except PromptError as error:
        raise PromptError(f"{where}: {error}") from error


def _read_content(where: str, content: object) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise PromptError(
            f"{where}.content={content!r:.80} is not a string or a list of text parts."
        )
    texts = []
    for index, part in enumerate(content):
        here = f"{where}.content[{index}]"
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind != "text":
            raise PromptError(
                f"{here}={part!r:.80} is not a text part: the models of this family read text "
                "only. Give {'type': 'text', 'text': ...}."
            )
        given = {name: value for name, value in part.items() if value is not None}
        unknown = sorted(map(str, given.keys() - {"type", "text"}))
        if unknown:
            raise PromptError(f"{here}.{unknown[0]} is not a field of a text part.")
        if not isinstance(given.get("text"), str):
            raise PromptError(f"{here}.text={given.get('text')!r:.80} is not a string.")
        texts.append(given["text"])
    return "\n".join(texts)


def _read_calls(where: str, values: object) -> tuple[ToolCall, ...]:
    if not isinstance(values, list | tuple):
        raise PromptError(f"{where}.tool_calls={values!r:.80} is not a list of calls.")
    return tuple(
        _read_call(f"{where}.tool_calls[{index}]", value) for index, value in enumerate(values)
    )


def _read_call(here: str, value: object) -> ToolCall:
    if isinstance(value, ToolCall):
        return value
    if not isinstance(value, Mapping):
        raise PromptError(f"{here}={value!r:.80} is of type {type(value).__name__}, not a call.")
    given = {name: part for name, part in value.items() if part is not None and name != "index"}
    unknown = sorted(map(str, given.keys() - {"id", "type", "function"}))
    if unknown:
        raise PromptError(f"{here}.{unknown[0]} is not a field of a call.")
    if given.get("type", "function") != "function":
        raise PromptError(f"{here}.type={given['type']!r:.80} is not 'function'.")
    function = given.get("function")
    if not isinstance(function, Mapping):
        raise PromptError(f"{here}.function={function!r:.80} is not a dictionary of a call.")
    unknown = sorted(map(str, function.keys() - {"name", "arguments"}))
    if unknown:
        raise PromptError(f"{here}.function.{unknown[0]} is not a field of a call.")
    arguments = _read_arguments(f"{here}.function.arguments", function.get("arguments"))
    try:
        return ToolCall(name=function.get("name"), arguments=arguments, id=given.get("id"))  # type: ignore[arg-type]  # ToolCall checks
    except PromptError as error:
        raise PromptError(f"{here}: {error}") from error


def _read_arguments(here: str, arguments: object) -> Mapping[str, object]:
    """Read the arguments of a call; null, an empty string and a missing field mean no arguments."""
    if arguments is None or arguments == "":
        return {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments, parse_constant=refuse_constant)
        except (ValueError, RecursionError) as error:
            raise PromptError(f"{here}={arguments!r:.80} is not JSON: {error}.") from error
    if not isinstance(arguments, Mapping):
        raise PromptError(f"{here}={arguments!r:.80} is not a JSON object.")
    return arguments
