"""Messages of a conversation, `Message`, and the check of their order.

``dictionaries.py`` reads messages from dictionaries of OpenAI's protocol; ``chat_tokenizer.py``
encodes messages to token ids.

Three fields are for the caller and never part of a prompt, because no chat template of the
family writes them: ``name``, ``tool_call_id`` and the ids of calls. They are checked, so that
every result matches its call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Literal, get_args

from ..errors import PromptError
from .tools import ToolCall

Role = Literal["system", "user", "assistant", "tool"]
"""Author of a message; ``tool`` is the result of a call."""

Ending = Literal["question", "answer", "history"]
"""How a conversation ends. ``question``: a user message or tool result that the model answers.
``answer``: the beginning of an answer that the model continues. ``history``: a complete answer, a
system message, or no message at all."""

ROLES: frozenset[str] = frozenset(get_args(Role))


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation.

    Attributes:
        role: Author of the message.
        content: Text of the message. Empty if an assistant message only calls tools.
        tool_calls: The calls of an assistant message, in order.
        tool_call_id: The `ToolCall.id` that a tool message answers. None for the next call that
            has no result yet.
        name: A label for the caller, never part of a prompt. In a tool message, the tool's name.

    Raises:
        PromptError: The role is unknown, the content is not a string or holds a lone surrogate,
            or the role does not allow a field.

    Example:
        >>> Message("user", "Hello")
        Message(role='user', content='Hello')
    """

    role: Role
    content: str
    _: KW_ONLY
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise PromptError(f"role={self.role!r:.80} is not one of {', '.join(get_args(Role))}.")
        if not isinstance(self.content, str):
            raise PromptError(
                f"content={self.content!r:.80} of the {self.role} message is not a string."
            )
        require_text(f"content of the {self.role} message", self.content)
        if self.tool_calls != ():
            self._check_calls()
        for field_name in ("tool_call_id", "name"):
            label = getattr(self, field_name)
            if label is not None:
                _check_label(field_name, label)
        if self.tool_call_id is not None and self.role != "tool":
            raise PromptError(
                f"tool_call_id={self.tool_call_id!r:.80} belongs to a tool message, and this is "
                f"the message of role {self.role!r}. Leave it out."
            )

    def _check_calls(self) -> None:
        calls = self.tool_calls
        if not isinstance(calls, tuple | list) or not all(
            isinstance(call, ToolCall) for call in calls
        ):
            raise PromptError(f"tool_calls={calls!r:.80} must be a tuple of ToolCall.")
        if self.role != "assistant":
            raise PromptError(
                f"tool_calls={calls!r:.80} belong to an assistant message, and this is the message "
                f"of role {self.role!r}. Leave them out."
            )
        object.__setattr__(self, "tool_calls", tuple(calls))
        ids = [call.id for call in calls if call.id is not None]
        if len(set(ids)) < len(ids):
            raise PromptError(f"tool_calls have the ids {ids!r:.80}; each must differ.")

    def __repr__(self) -> str:
        extras = "".join(
            f", {name}={value!r}"
            for name, value in (
                ("tool_calls", self.tool_calls),
                ("tool_call_id", self.tool_call_id),
                ("name", self.name),
            )
            if value is not None and value != ()
        )
        return f"Message(role={self.role!r}, content={self.content!r}{extras})"


def require_text(what: str, text: str) -> None:
    """Check that ``text`` can be encoded.

    Raises:
        PromptError: The text holds a lone surrogate.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"The {what} holds a lone surrogate at index {error.start}, which is not text. Decode "
            "its source as UTF-8 with errors='replace'."
        ) from error


def check_order(messages: Sequence[Message], *, ends_with: Ending = "question") -> None:
    """Check that the roles of ``messages`` are in a valid order.

    An optional system message comes first, then turns: a user message and the assistant's
    answer. An answer with calls may be followed by the result of each call, in the order of the
    calls, and the next answer; or by a user message.

    Raises:
        PromptError: A value is not a `Message`, a role is in the wrong place, a result has no
            call, or the end is not the one that ``ends_with`` names.
    """
    require_list(messages)
    waiting: list[ToolCall] = []  # calls without a result
    answering = False  # whether the last message is a tool result
    expected: tuple[str, ...] = ("user", "system")
    for number, message in enumerate(messages):
        if not isinstance(message, Message):
            raise PromptError(
                f"messages[{number}]={message!r:.80} is of type {type(message).__name__}, not a "
                "Message, such as Message('user', 'Hello')."
            )
        role = message.role
        if role == "tool":
            _check_result(number, message, waiting)
            waiting = waiting[1:]
            answering = True
            expected = ("tool",) if waiting else ("assistant",)
            continue
        if answering and waiting:
            raise PromptError(
                f"messages[{number}].role is {role!r} where 'tool' must stand: the call of "
                f"{waiting[0].name!r:.80} has no result yet. Give a result to every call or to "
                "none."
            )
        if role not in expected:
            raise PromptError(
                f"messages[{number}].role is {role!r} where {expected[0]!r} must stand: an "
                "optional system message, then user and assistant in turn."
            )
        answering = False
        waiting = list(message.tool_calls)
        expected = ("assistant",) if role == "user" else ("user",)
    _check_end(messages, ends_with, open_calls=answering and bool(waiting))


def _check_result(number: int, message: Message, waiting: Sequence[ToolCall]) -> None:
    where = f"messages[{number}]"
    if not waiting:
        raise PromptError(
            f"{where}.role is 'tool', and no call before it waits for a result. A result follows "
            "the assistant message whose tool_calls hold its call."
        )
    call = waiting[0]
    if message.tool_call_id is not None and message.tool_call_id != call.id:
        raise PromptError(
            f"{where}.tool_call_id={message.tool_call_id!r:.80} is not the id {call.id!r:.80} of "
            "the next call without a result. Give the results in the order of the calls: the chat "
            "format holds no ids."
        )
    if message.name is not None and message.name != call.name:
        raise PromptError(
            f"{where}.name={message.name!r:.80} is not the name {call.name!r:.80} of the call that "
            "it answers."
        )


def _check_end(messages: Sequence[Message], ends_with: Ending, *, open_calls: bool) -> None:
    if open_calls:
        raise PromptError(
            f"messages[{len(messages) - 1}] is not the last result: an earlier call has none yet. "
            "Give a result to every call or to none."
        )
    last = messages[-1].role if messages else None
    if ends_with == "history":
        if last in ("user", "tool"):
            raise PromptError(
                f"messages[{len(messages) - 1}].role is {last!r}; a history ends with the "
                "assistant's answer. Give the last question to the call that generates."
            )
        return
    if last is None:
        raise PromptError("The conversation is empty. Give at least one user message.")
    number = len(messages) - 1
    if ends_with == "answer":
        if last != "assistant":
            raise PromptError(
                f"messages[{number}].role is {last!r}; only an assistant message can be continued."
            )
        if messages[-1].tool_calls:
            raise PromptError(
                f"messages[{number}].tool_calls are complete; an answer with calls cannot be "
                "continued."
            )
    elif last not in ("user", "tool"):
        raise PromptError(
            f"messages[{number}].role is {last!r}; the last message must be the user's or a "
            "tool's result."
        )


def require_list(messages: object) -> None:
    """Check that a conversation is a list.

    Raises:
        PromptError: ``messages`` is not a list.
    """
    if isinstance(messages, str) or not isinstance(messages, Sequence):
        raise PromptError(
            f"messages={messages!r:.80} is of type {type(messages).__name__}, not a list of "
            "Message values, such as [Message('user', 'Hello')]."
        )


def _check_label(field_name: str, label: object) -> None:
    if not isinstance(label, str) or not label:
        raise PromptError(f"{field_name}={label!r:.80} must be a string that is not empty.")
    require_text(field_name, label)
