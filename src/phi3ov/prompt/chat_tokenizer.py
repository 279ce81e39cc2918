"""A checkpoint's tokenizer with its chat format: messages to token ids, and ids back to text.

`ChatTokenizer` inserts control tokens by id and encodes every content as ordinary text, so no
content can become a control token. ``formats.py`` defines the text around a message,
``detokenizer.py`` decodes an answer token by token, and ``text_tokenizer.py`` is the tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import PromptError, UnsupportedModelError
from .extension import THINK
from .formats import CONTROL_TOKEN, ChatFormat
from .messages import Message, check_order
from .text_tokenizer import TextTokenizer
from .tokenizer_files import read_eos_token, read_stop_ids
from .tools import Tool, describe_calls, describe_tools


class ChatTokenizer(TextTokenizer):
    """A checkpoint's tokenizer with its chat format: messages to ids, ids to text.

    Control tokens enter a prompt by id. Contents are encoded by a tokenizer without control
    tokens, so ``"<|end|>"`` in a content stays seven characters.

    Attributes:
        format: The chat format.
        stop_tokens: Text of the control tokens that end an answer, by id.
    """

    def __init__(
        self,
        tokenizer_json: str,
        chat_format: ChatFormat,
        *,
        stop_ids: Sequence[int] = (),
        eos_token: str | None = None,
    ) -> None:
        """Read a ``tokenizer.json``.

        Args:
            tokenizer_json: The file's content.
            chat_format: The chat format.
            stop_ids: Stop ids of the checkpoint's configs, in addition to those that the format
                implies (end of message, start of another).
            eos_token: The tokenizer's own end-of-text token, also a stop token.

        Raises:
            UnsupportedModelError: The tokenizer lacks a control token of the format, or its
                segments cannot be encoded separately.
        """
        named = () if eos_token is None else (eos_token,)
        super().__init__(
            tokenizer_json, ending=(*stop_ids, *named), words=chat_format.thoughts or ()
        )
        self.format = chat_format
        self._control_texts = re.compile(
            "|".join(map(re.escape, sorted(self.control, key=len, reverse=True))) or "(?!)"
        )
        self._check_format_tokens()
        self._check_segments()
        self._check_extension()
        self.stop_tokens: dict[int, str] = self._find_stop_tokens(stop_ids, eos_token)

    @classmethod
    def from_folder(cls, folder: Path, chat_format: ChatFormat) -> ChatTokenizer:
        """Read ``tokenizer.json`` and all stop ids from a checkpoint's or an artifact's folder.

        Raises:
            UnsupportedModelError: A file is damaged, or as in the constructor.
        """
        try:
            return cls(
                (folder / "tokenizer.json").read_text(encoding="utf-8"),
                chat_format,
                stop_ids=read_stop_ids(folder),
                eos_token=read_eos_token(folder),
            )
        except UnsupportedModelError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UnsupportedModelError(
                f"{folder}: the files of its tokenizer cannot be read: {error!r}."
            ) from error

    def require_rows(self, rows: int) -> None:
        """Check that the model's embedding matrix has a row for every token.

        Args:
            rows: Number of rows; may exceed the number of tokens.

        Raises:
            UnsupportedModelError: A token's id is out of range; names the token.
        """
        token_id, text = self.last_token()
        if token_id >= rows:
            raise UnsupportedModelError(
                f"tokenizer.json: the token {text!r} has the id {token_id}, but the model knows "
                f"vocab_size={rows} tokens (ids 0 to {rows - 1}). Its embedding was not resized "
                "for this tokenizer: take the tokenizer that belongs to the weights, or resize "
                "the model."
            )

    def encode_prompt(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        continue_last: bool = False,
    ) -> list[int]:
        """Return the ids of a whole conversation, ending in an open assistant turn.

        The ids are the concatenation of `encode_beginning`, `encode_message` of each message
        after the system message, and `opening` (or `encode_open`).

        Args:
            messages: The conversation.
            tools: Tools that the model may call. Without a system message, an empty one is added
                to hold them.
            continue_last: Whether the last message is the beginning of the assistant's answer.
                The ids then end after its content, within the assistant's turn.

        Raises:
            PromptError: The order of roles is invalid, or the format has no place for a message,
                a call, a result or tools.
        """
        check_order(messages, ends_with="answer" if continue_last else "question")
        system = messages[0] if messages[0].role == "system" else None
        ids = self.encode_beginning(system, tools=tools)
        first = 0 if system is None else 1
        last = len(messages) - 1 if continue_last else len(messages)
        for number in range(first, last):
            try:
                ids += self.encode_message(messages[number])
            except PromptError as error:
                raise PromptError(f"messages[{number}]: {error}") from error
        return ids + (self.encode_open(messages[-1]) if continue_last else self.opening)

    def encode_beginning(
        self, system: Message | None = None, *, tools: Sequence[Tool] = ()
    ) -> list[int]:
        """Return the ids before the first user message: prefix, system message and tools.

        Args:
            system: The system message, if any.
            tools: Tools that the model may call. The system message holds them; it is empty if
                ``system`` is None.

        Raises:
            PromptError: As for `encode_message`.
            OptionError: A value in ``tools`` is not a `Tool`.
        """
        if system is None and not tools:
            return self.prefix + self._encode_system_text()
        described = describe_tools(tools) if tools else None
        ids = self.encode_message(system or Message("system", ""), tools=described)
        return self.prefix + (ids or self._encode_system_text())

    def _encode_system_text(self) -> list[int]:
        """Return the ids of the format's own system message; empty for most formats."""
        if not self.format.system_text:
            return []
        header = self._segments(self.format.header.format(role="system"))
        footer = self._segments(self.format.footer)
        return self.encode_segments([*header, self.format.system_text, *footer])

    def encode_message(self, message: Message, *, tools: str | None = None) -> list[int]:
        """Return the ids of one message, from its header to its footer.

        The calls of an assistant message follow its content in the form that the model writes. A
        tool message gets the header that the checkpoint's vocabulary has for results.

        Args:
            message: The message.
            tools: JSON that describes the tools, for the end of a system message. It is encoded
                as ordinary text, like a content.

        Raises:
            PromptError: The message is a system message with text or tools, and the format's own
                template drops it; it is an answer with thoughts, and the template drops those; or
                the model was trained without tools.
        """
        described = self._tool_segments(tools)
        if message.role == "system" and self.format.system_messages == "replaces messages":
            raise PromptError(
                "This checkpoint's own chat template writes its fixed system text in place of "
                "every message where a system message comes first, so the user's text would be "
                "lost. Put the text of the system message into the first user message."
            )
        if self.format.skips(message.role, message.content):
            if not message.content and not described:
                return []
            if described:
                every = self.format.system_messages == "dropped"
                raise PromptError(
                    "This checkpoint's own chat template drops the system message in which tools "
                    "stand. "
                    + ("Leave tools out." if every else "Give a system message with text.")
                )
            raise PromptError(
                "This checkpoint's own chat template drops system messages without an error, so "
                "the model was not trained to follow one. Put the text into the first user "
                "message; phi3ov does not drop it."
            )
        is_answer = message.role == "assistant"
        footer = self.format.footer + (self.format.extension.answer_end if is_answer else "")
        ending = self._segments(footer)
        return self.encode_segments(
            [*self._open_segments(message), *described, *self._call_segments(message), *ending]
        )

    def encode_open(self, message: Message) -> list[int]:
        """Return the ids of an assistant message that the model continues: without its footer.

        Raises:
            PromptError: The message is not an assistant message, or has calls.
        """
        if message.role != "assistant" or message.tool_calls:
            raise PromptError(
                f"role={message.role!r} with {len(message.tool_calls)} calls: only an assistant "
                "message without calls can be continued."
            )
        return self.encode_segments(self._open_segments(message))

    @property
    def prefix(self) -> list[int]:
        """The ids before the first message; empty for most formats."""
        return self.encode_segments(self._segments(self.format.prefix))

    @property
    def opening(self) -> list[int]:
        """The ids that open the answer, with the text that the format begins it with."""
        return self.encode_segments(self._segments(self.format.opening))

    @property
    def history_opening(self) -> list[int]:
        """The ids before the content of an answer in the history."""
        added = self.format.extension.history_start
        return self.encode_segments(self._segments(self.format.assistant_header + added))

    @property
    def answer_start(self) -> list[int]:
        """The ids at the end of `opening` that the answer continues; empty for most formats."""
        if not self.format.extension.answer_start:
            return []
        header = self.format.extension.question_end + self.format.assistant_header
        return self.opening[_shared(self.opening, self.encode_segments(self._segments(header))) :]

    def split_open(
        self, message: Message, *, with_start: bool = False
    ) -> tuple[list[int], list[int]]:
        """Return the ids of `encode_open` as header and beginning of the answer.

        Args:
            message: The assistant message.
            with_start: Whether the header includes the text that the format writes there.

        Raises:
            PromptError: As for `encode_open`.
        """
        opened = self.encode_open(message)
        header = self.encode_segments(self._segments(self.format.assistant_header))
        border = _shared(opened, self.history_opening if with_start else header)
        return opened[:border], opened[border:]

    def drops_part_of(self, message: Message) -> bool:
        """Whether the checkpoint's own template drops thoughts from this earlier answer."""
        drops = self.format.extension.drops_thoughts and message.role == "assistant"
        return drops and THINK[1] in message.content

    @property
    def closing(self) -> list[int]:
        """The ids that close the assistant's turn."""
        footer = self.format.footer + self.format.extension.answer_end
        return self.encode_segments(self._segments(footer))

    def _open_segments(self, message: Message) -> list[int | str]:
        """Return header and content segments of a message."""
        role = self.format.header_role(message.role)
        if role is None:
            raise PromptError(
                f"role='tool' is the result of a call, but the chat format {self.format.name!r} "
                "has no calls: of the family only Phi-4-mini was trained to call tools. Put the "
                "result into a user message."
            )
        content = message.content
        added = ""
        if message.role == "system":
            content = self.format.system_content(content)
        elif message.role == "assistant":
            added = self.format.extension.history_start
            if self.drops_part_of(message):
                raise PromptError(
                    f"The content of the assistant message holds {THINK[1]!r}, and this "
                    "checkpoint's own chat template drops thoughts from earlier answers. Give "
                    "the text that follows them (`Reply.text`)."
                )
        return [*self._segments(self.format.header.format(role=role) + added), content]

    def _tool_segments(self, tools: str | None) -> list[int | str]:
        if tools is None:
            return []
        if self.format.tool_list is None:
            raise PromptError(
                f"tools were given, but the chat format {self.format.name!r} has none: of the "
                "family only Phi-4-mini was trained to call tools."
            )
        before, after = (self.control[token]["id"] for token in self.format.tool_list)
        return [before, tools, after]

    def _call_segments(self, message: Message) -> list[int | str]:
        if not message.tool_calls:
            return []
        if self.tool_call_ids is None:
            raise PromptError(
                f"tool_calls={message.tool_calls!r:.80}: the chat format {self.format.name!r} has "
                "no calls: of the family only Phi-4-mini was trained to call tools. Leave them "
                "out, or put them into the content as text."
            )
        before, after = self.tool_call_ids
        return [before, describe_calls(message.tool_calls), after]

    @property
    def thought_tags(self) -> tuple[str, str] | None:
        """Tags around the reasoning text before an answer; None for other models."""
        return self.format.thoughts

    @property
    def tool_call_ids(self) -> tuple[int, int] | None:
        """Ids before and after a tool call; None for a model without tools."""
        if self.format.tool_call is None:
            return None
        before, after = (self.control[token]["id"] for token in self.format.tool_call)
        return before, after

    def _segments(self, text: str) -> list[int | str]:
        """Split a format's text into control ids and the text between them."""
        segments: list[int | str] = []
        position = 0
        for match in self._control_texts.finditer(text):
            segments += [text[position : match.start()], self.control[match.group()]["id"]]
            position = match.end()
        return [*segments, text[position:]]

    def _check_format_tokens(self) -> None:
        needed = {*self.format.own_tokens, *(self.format.tool_list or ())}
        needed.update(self.format.tool_call or ())
        for text in self.format.extension.texts.values():
            needed.update(CONTROL_TOKEN.findall(text))
        missing = sorted(needed - self.control.keys())
        if missing:
            raise UnsupportedModelError(
                f"tokenizer.json has no control token {', '.join(missing)}, which the chat format "
                f"{self.format.name!r} needs."
            )
        first = {
            self._segments(self.format.header.format(role=role))[1] for role in self.format.roles
        }
        strips = any(isinstance(token, int) and self._flag(token, "lstrip") for token in first)
        if strips and self._segments(self.format.footer)[-1]:
            raise UnsupportedModelError(
                f"tokenizer.json gives one of {sorted(needed)} lstrip=true, so it swallows the "
                f"text {self._segments(self.format.footer)[-1]!r} at the end of the message before "
                "it, and messages could not be encoded one by one. No Phi-3 tokenizer does."
            )

    def _check_segments(self) -> None:
        """Check that text encodes the same after a control token as on its own."""
        for text in ("a b", "\na", " a"):
            opening = self.format.header.format(role="user") + text
            if self.encode_raw(opening) != self.encode_segments(self._segments(opening)):
                raise UnsupportedModelError(
                    f"tokenizer.json encodes {text!r} after a control token otherwise than by "
                    "itself (a prefix that is added to the first segment only)."
                )

    def _check_extension(self) -> None:
        """Check that a conversation encodes message by message as the rendered text does."""
        if not self.format.extension.texts:
            return
        messages = [Message("user", "a b"), Message("assistant", "c "), Message("user", "d")]
        rendered = self.format.render(
            [{"role": message.role, "content": message.content} for message in messages]
        )
        if self.encode_raw(rendered) != self.encode_prompt(messages):
            raise UnsupportedModelError(
                f"tokenizer.json encodes the texts {self.format.extension.texts} that the chat "
                "template adds together with the messages beside them, and messages could not be "
                "encoded one by one."
            )

    def _find_stop_tokens(self, stop_ids: Sequence[int], eos_token: str | None) -> dict[int, str]:
        """Combine the configured stop ids with the tokens that end a message or start the next."""
        names = {"<|endoftext|>", eos_token or ""} & self.control.keys()
        for role in self.format.roles:
            names.update(CONTROL_TOKEN.findall(self.format.header.format(role=role)))
        names.update(CONTROL_TOKEN.findall(self.format.footer))
        names.update(self._control_texts.findall(self.format.extension.answer_end))
        stops = {self.control[name]["id"]: name for name in names}
        for token_id in stop_ids:
            text = self.token_text(token_id)
            if text is not None:
                stops[token_id] = text
        return dict(sorted(stops.items()))


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    """Return the length of the longest beginning that both lists have."""
    pairs = enumerate(zip(first, second, strict=False))
    differing = (number for number, (left, right) in pairs if left != right)
    return next(differing, min(len(first), len(second)))
