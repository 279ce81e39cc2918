"""A conversation: `Phi3Chat` keeps the history, as token ids, and takes turns.

The history is the ids that the model saw and produced, never text that is encoded again: the
next prompt begins with exactly the ids of the last prompt and answer, so the engine's cache
fits to the token.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .chat_format import Message
from .errors import PromptError, StateError
from .generation import GenerationOptions, Options, Reply
from .stream import ReplyStream
from .tools import Tool, describe_tools

if TYPE_CHECKING:
    from typing import Unpack

    from .model import Phi3Model


@dataclass(frozen=True, slots=True)
class _Turn:
    """One question and its answer, as messages and as the ids that went through the model."""

    user: Message
    assistant: Message
    token_ids: tuple[int, ...]


class Phi3Chat:
    """A conversation with a model. One turn at a time; for many users, one chat each.

    A turn enters the history when its answer has ended. A turn that failed, was cancelled or
    was abandoned leaves the history as it was, unless its partial answer is kept on purpose
    (``stream.cancel(keep=True)``).

    Attributes:
        model: The model that answers.
        options: Options of every turn, unless a call changes them.

    Example:
        >>> chat = Phi3Chat(model, system="You are a helpful AI assistant.")
        >>> reply = chat.generate("What is the capital of France?", max_new_tokens=64)
        >>> print(reply)
        The capital of France is Paris.
        >>> reply.finish_reason, len(chat.messages)
        ('stop', 3)
    """

    def __init__(
        self,
        model: Phi3Model,
        *,
        system: str | None = None,
        tools: Sequence[Tool] = (),
        options: GenerationOptions = GenerationOptions(),  # noqa: B008 - immutable
    ) -> None:
        """Start a conversation.

        Args:
            model: The model that answers.
            system: What the model shall be; None for no system message.
            tools: What the model may call; `Reply.tool_calls` says what it asked for. Needs a
                model that was trained for it (Phi-4-mini). Descriptions stand in the system
                message, which is empty if ``system`` is None.
            options: Options of every turn.

        Raises:
            PromptError: The checkpoint's own template would drop the system message, or the
                model was trained without tools.
        """
        self.model = model
        self.options = options
        if system is None and tools:
            system = ""
        self._system = None if system is None else Message("system", system)
        self._beginning_ids = tuple(model.tokenizer.prefix)
        if self._system is not None:
            described = describe_tools(tools) if tools else None
            system_ids = model.tokenizer.encode_message(self._system, tools=described)
            self._beginning_ids += tuple(system_ids)
        self._turns: list[_Turn] = []
        self._turn_is_open = threading.Lock()  # held from a turn's start to its end

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation so far; turns that were dropped to make room are gone from it."""
        system = () if self._system is None else (self._system,)
        return (*system, *(one for turn in self._turns for one in (turn.user, turn.assistant)))

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The history as ids: what the next prompt begins with."""
        return (*self._beginning_ids, *(one for turn in self._turns for one in turn.token_ids))

    def generate(self, message: str, **options: Unpack[Options]) -> Reply:
        """Take a turn and return the finished answer.

        Args:
            message: What the user says. It is text: no content becomes a control token.
            **options: Fields of `GenerationOptions`, for this turn only.

        Raises:
            PromptError: The message is empty.
            ContextLengthError: History, message and answer do not fit the context.
            OptionError: An option is unknown or not allowed.
            StateError: Another turn of this chat is open, or the model is closed.
            GenerationError: The engine failed; ``partial_text`` holds what there was.
        """
        return self.stream(message, **options).drain()

    def stream(self, message: str, **options: Unpack[Options]) -> ReplyStream:
        """Take a turn and return its answer as a stream of text, already under way.

        Arguments and errors are those of `generate`; errors of the engine are raised while
        the stream is read.
        """
        if not message:
            raise PromptError("The message is empty. Give the user's text.")
        user = Message("user", message)
        chosen = self.options.changed(options)
        user_ids = self.model.tokenizer.encode_message(user)

        def fit_prompt(dropped: int) -> tuple[list[int], int]:
            dropped = min(dropped, len(self._turns))
            kept = [one for turn in self._turns[dropped:] for one in turn.token_ids]
            prompt_ids = [*self._beginning_ids, *kept, *user_ids, *self.model.tokenizer.opening]
            return prompt_ids, dropped

        def end_turn(reply: Reply, keep: bool) -> None:  # noqa: FBT001 - a callback's signature
            if keep:
                answer_ids = [*reply.token_ids, *self.model.tokenizer.closing]
                turn_ids = (*user_ids, *self.model.tokenizer.opening, *answer_ids)
                turn = _Turn(user, Message("assistant", reply.text), turn_ids)
                self._turns = [*self._turns[reply.dropped_turns :], turn]
            self._turn_is_open.release()

        self._open_turn()
        try:
            prompt_ids, plan = self.model.plan(fit_prompt, chosen)
            return self.model.start(
                prompt_ids, plan, chosen, on_end=end_turn, on_abort=self._turn_is_open.release
            )
        except BaseException:
            self._turn_is_open.release()
            raise

    async def agenerate(self, message: str, **options: Unpack[Options]) -> Reply:
        """Take a turn without blocking the event loop; see `generate`."""
        stream = self.stream(message, **options)
        async for _ in stream:
            pass
        return stream.reply

    def reset(self) -> None:
        """Forget all turns; the system message stays.

        Raises:
            StateError: A turn is open.
        """
        self._open_turn()
        self._turns = []
        self._turn_is_open.release()

    def fork(self) -> Phi3Chat:
        """Return a second conversation with the same past; the two go on independently."""
        twin = Phi3Chat(self.model, options=self.options)
        twin._system, twin._beginning_ids = self._system, self._beginning_ids
        twin._turns = list(self._turns)
        return twin

    def _open_turn(self) -> None:
        if not self._turn_is_open.acquire(blocking=False):
            raise StateError(
                "A turn of this chat is still open. Read its stream to the end, or close() it."
            )
