"""File format of a conversation: the JSON that `Phi3Chat.save` writes and `Phi3Chat.restore` reads.

The file holds the ids of every turn, which are the history, and their texts for display.
`SavedChat.from_json` checks size, checksum, version and the type of each value;
`Phi3Chat.restore` checks model and ids. Loading the file cannot run code.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar, cast

from .answer.options import GenerationOptions, Options
from .artifact.fingerprint import ModelFingerprint
from .prompt.messages import Message
from .prompt.tools import Tool, ToolCall

FORMAT = "phi3ov chat"
FORMAT_VERSION = 2
"""Version of the file format; a file with another version is refused."""
MOST_BYTES = 64 * 1024 * 1024
"""Maximum size of a file in bytes; 131 072 tokens with their text take about 2 MB."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and its answer, as messages and as the model's ids.

    Attributes:
        question: The user message, or the results of the preceding tool calls.
        answer: The assistant message.
        token_ids: Ids of both, from the question's header to the answer's footer.
    """

    question: tuple[Message, ...]
    answer: Message
    token_ids: tuple[int, ...]

    @property
    def messages(self) -> tuple[Message, ...]:
        """Question and answer."""
        return (*self.question, self.answer)


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedChat:
    """A conversation without its model.

    Attributes:
        fingerprint: Fingerprint of its model.
        options: Options of every turn.
        system: Content of the system message, if any.
        tools: Tools that the model may call.
        beginning_ids: The ids before the first turn.
        turns: The turns, oldest first.
    """

    fingerprint: ModelFingerprint
    options: GenerationOptions
    system: str | None
    tools: tuple[Tool, ...]
    beginning_ids: tuple[int, ...]
    turns: tuple[Turn, ...]

    def to_json(self) -> str:
        """Return the file's text, which is the same for the same conversation.

        Raises:
            ValueError: JSON cannot represent an option, or the text is too large.
        """
        chat = {
            "model": self.fingerprint.to_values(),
            "options": {
                field.name: getattr(self.options, field.name) for field in fields(self.options)
            },
            "system": self.system,
            "tools": [asdict(tool) for tool in self.tools],
            "beginning_ids": self.beginning_ids,
            "turns": [
                {
                    "question": [_message_values(message) for message in turn.question],
                    "answer": _message_values(turn.answer),
                    "token_ids": turn.token_ids,
                }
                for turn in self.turns
            ],
        }
        try:
            checksum = _checksum(chat)
        except TypeError as error:
            raise ValueError(f"an option or a tool holds what JSON cannot: {error}.") from error
        head = {"format": FORMAT, "format_version": FORMAT_VERSION, "sha256": checksum}
        text = json.dumps({**head, "chat": chat}) + "\n"
        if len(text) > MOST_BYTES:
            raise ValueError(f"it takes {len(text)} bytes, and at most {MOST_BYTES} are read.")
        return text

    @classmethod
    def from_json(cls, text: str) -> SavedChat:
        """Parse the text of a file.

        Raises:
            ValueError: The text is not a conversation, is damaged, or has another version.
        """
        try:
            document = json.loads(text)
            if type(document) is not dict or document.get("format") != FORMAT:
                raise ValueError("it is not a conversation that phi3ov saved.")
            version = document.get("format_version")
            if version != FORMAT_VERSION:
                raise ValueError(
                    f"it has format_version={version!r}; this phi3ov reads {FORMAT_VERSION}."
                )
            chat = document.get("chat")
            if document.get("sha256") != _checksum(chat):
                raise ValueError("it is damaged: its content does not match its checksum.")
        except json.JSONDecodeError as error:
            raise ValueError(f"it is not JSON, or was cut off: {error}.") from error
        except RecursionError as error:
            raise ValueError("it is nested too deeply.") from error
        names = ("model", "options", "system", "tools", "beginning_ids", "turns")
        values = _object("chat", chat, names)
        return cls(
            fingerprint=ModelFingerprint.from_values(values["model"]),
            options=_options(values["options"]),
            system=None if values["system"] is None else _of_type(str, "system", values["system"]),
            tools=tuple(_tool(tool) for tool in _of_type(list, "tools", values["tools"])),
            beginning_ids=_ids("beginning_ids", values["beginning_ids"]),
            turns=tuple(_turn(turn) for turn in _of_type(list, "turns", values["turns"])),
        )


def _checksum(chat: object) -> str:
    """Return a SHA-256 that does not depend on white space or the order of keys."""
    return hashlib.sha256(json.dumps(chat, sort_keys=True).encode()).hexdigest()


def _of_type(kind: type[_T], name: str, value: object) -> _T:
    if type(value) is not kind:  # not isinstance, because True is an int
        raise ValueError(f"{name} is of type {type(value).__name__}, not {kind.__name__}.")
    return value


def _object(name: str, value: object, names: tuple[str, ...]) -> dict[str, Any]:
    values = _of_type(dict, name, value)
    if values.keys() != set(names):
        raise ValueError(f"{name} does not hold exactly {', '.join(names)}.")
    return values


def _ids(name: str, value: object) -> tuple[int, ...]:
    return tuple(_of_type(int, name, token_id) for token_id in _of_type(list, name, value))


def _options(value: object) -> GenerationOptions:
    changes = cast("Options", _of_type(dict, "options", value))  # `changed` checks names and types
    try:
        return GenerationOptions().changed(changes)
    except TypeError as error:
        raise ValueError(f"options: {error}.") from error


def _tool(value: object) -> Tool:
    values = _object("a tool", value, ("name", "description", "parameters"))
    return Tool(
        name=_of_type(str, "name of a tool", values["name"]),
        description=_of_type(str, "description of a tool", values["description"]),
        parameters=_of_type(dict, "parameters of a tool", values["parameters"]),
    )


def _turn(value: object) -> Turn:
    values = _object("a turn", value, ("question", "answer", "token_ids"))
    return Turn(
        question=tuple(map(_message, _of_type(list, "question", values["question"]))),
        answer=_message(values["answer"]),
        token_ids=_ids("token_ids", values["token_ids"]),
    )


def _message_values(message: Message) -> dict[str, Any]:
    """Return the fields that differ from their defaults, as `_message` reads them."""
    calls = [
        {"name": call.name, "arguments": call.arguments, "id": call.id}
        for call in message.tool_calls
    ]
    values = {
        "role": message.role,
        "content": message.content,
        "tool_calls": calls,
        "tool_call_id": message.tool_call_id,
        "name": message.name,
    }
    return {name: value for name, value in values.items() if value not in (None, [])}


def _message(value: object) -> Message:
    values = dict(_of_type(dict, "a message", value))
    calls = _of_type(list, "tool_calls", values.pop("tool_calls", []))
    try:
        return Message(
            values.pop("role"),
            values.pop("content"),
            tool_calls=tuple(
                ToolCall(**_object("a call", call, ("name", "arguments", "id"))) for call in calls
            ),
            **values,
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"a message cannot be read: {error!r}.") from error
