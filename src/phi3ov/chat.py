"""A conversation: `Phi3Chat` keeps the history, as token ids, and takes turns.

The history is the ids that the model saw and produced, never text that is encoded again: the
next prompt begins with exactly the ids of the last prompt and answer, so the engine's cache
fits to the token.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from .answer.options import GenerationOptions, Options
from .answer.prompt_ids import PromptIds
from .answer.reply import Reply
from .answer.stream import ReplyStream
from .atomic_file import replace_file
from .errors import OptionError, PromptError, RestoreError, StateError
from .prompt.detokenizer import AnswerText
from .prompt.messages import Message
from .prompt.tools import Tool, describe_tools
from .saved_chat import MOST_BYTES, SavedChat, Turn

if TYPE_CHECKING:
    from typing import Unpack

    from .model import Phi3Model


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
        self._tools = tuple(tools)
        if system is None and tools:
            system = ""
        self._system = None if system is None else Message("system", system)
        self._beginning_ids = tuple(model.tokenizer.prefix)
        if self._system is not None:
            described = describe_tools(tools) if tools else None
            system_ids = model.tokenizer.encode_message(self._system, tools=described)
            self._beginning_ids += tuple(system_ids)
        self._turns: list[Turn] = []
        self._candidates: tuple[Reply, ...] = ()  # of the last turn
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
            QueueFullError: As many requests wait as may, and the options do not say to wait.
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
        question_ids = (*self._encode(user), *self.model.tokenizer.opening)
        turn = self._open_turn()
        try:
            prompt = PromptIds(
                beginning=self._beginning_ids,
                turns=tuple(taken.token_ids for taken in self._turns),
                ending=question_ids,
            )
            stream = self.model.stream_ids(prompt, options=self.options, **options)
        except BaseException:
            turn.close()
            raise

        def end_turn(kept: Reply | None) -> None:
            if kept is not None:
                self._keep(user, question_ids, kept)
            turn.close()

        stream.on_end(end_turn)
        return stream

    async def agenerate(self, message: str, **options: Unpack[Options]) -> Reply:
        """Take a turn without blocking the event loop; see `generate`."""
        async with self.stream(message, **options) as stream:
            return await stream.adrain()

    def choose(self, candidate: Reply) -> None:
        """Continue with another candidate of the last turn; the history holds the first until then.

        Args:
            candidate: One of the last reply's `Reply.candidates`.

        Raises:
            OptionError: It is no candidate of the last turn.
            StateError: A turn is open.
        """
        with self._open_turn():
            seeds = {
                drawn.seed for drawn in self._candidates if drawn.token_ids == candidate.token_ids
            }
            if candidate.seed not in seeds:
                raise OptionError(
                    f"candidate={candidate.text[:60]!r} is not one of the last turn's "
                    f"{len(self._candidates)} candidates. Take one from its reply.candidates."
                )
            last, opening = self._turns[-1], self.model.tokenizer.opening
            candidates = self._candidates
            self._turns = self._turns[:-1]
            self._keep(last.user, (*self._encode(last.user), *opening), candidate)
            self._candidates = candidates

    def reset(self) -> None:
        """Forget all turns; the system message stays.

        Raises:
            StateError: A turn is open.
        """
        with self._open_turn():
            self._turns = []
            self._candidates = ()

    def fork(self) -> Phi3Chat:
        """Return a second conversation with the same past; the two go on independently."""
        twin = Phi3Chat(self.model, options=self.options)
        twin._system, twin._tools = self._system, self._tools
        twin._beginning_ids = self._beginning_ids
        twin._turns, twin._candidates = list(self._turns), self._candidates
        return twin

    def save(self, path: str | Path) -> None:
        """Write the conversation to a file, from which `restore` makes it again.

        The file is JSON: the history as ids and as text, system message, tools, options and the
        model's fingerprint. It replaces the file that is there, if any, all at once. A turn
        that is still open is not in it.

        Args:
            path: The file to write. On POSIX its owner alone may read it.

        Raises:
            OptionError: An option or a tool holds what JSON cannot.
            OSError: The file cannot be written.

        Example:
            >>> chat.save("talk.json")  # doctest: +SKIP
            >>> again = Phi3Chat.restore(model, "talk.json")  # doctest: +SKIP
        """
        saved = SavedChat(
            fingerprint=self.model.fingerprint,
            options=self.options,
            system=None if self._system is None else self._system.content,
            tools=self._tools,
            beginning_ids=self._beginning_ids,
            turns=tuple(self._turns),
        )
        try:
            text = saved.to_json()
        except ValueError as error:
            raise OptionError(f"{path} cannot be written: {error}") from error
        with replace_file(path) as file:
            file.write(text.encode())

    @classmethod
    def restore(cls, model: Phi3Model, path: str | Path) -> Phi3Chat:
        """Return the conversation that `save` wrote; its next answer is what it would have been.

        What is in the file is checked, not believed: texts must encode to the ids beside them,
        and no answer may hold a token that ends one. Device, precision and context are those of
        ``model``.

        Args:
            model: The model that the conversation was held with, loaded again.
            path: The file.

        Raises:
            RestoreError: The file is damaged, of another version, or of another model.
            OSError: The file cannot be read.
        """
        with Path(path).open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        try:
            if len(content) > MOST_BYTES:
                raise ValueError(f"it has more than {MOST_BYTES} bytes.")
            saved = SavedChat.from_json(content.decode())
            saved.fingerprint.require(model.fingerprint)
            chat = cls(model, system=saved.system, tools=saved.tools, options=saved.options)
            chat._require_ids(saved)
        except ValueError as error:
            raise RestoreError(path, str(error)) from error
        chat._turns = list(saved.turns)
        return chat

    def save_kv_cache(self, path: str | Path) -> None:
        """Write what the model has read of this conversation, so that nobody reads it again.

        For a fixed beginning, such as a long system prompt or a document: save it once, and
        call `Phi3Model.restore_kv_cache` in any process that loads the same model with the same
        settings. Every prompt that begins with `token_ids` as they are now then starts there.
        The model must be loaded with ``engine="paged"``. What is not in its cache is read first.

        Args:
            path: The file; it replaces one that is there, all at once. It holds the ids, hence
                the text. On POSIX its owner alone may read it.

        Raises:
            PromptError: The conversation is empty.
            ContextLengthError: It fills the context.
            OptionError: The engine keeps its cache to itself.
            GenerationError: The engine failed.
            OSError: The file cannot be written.
            StateError: The model is closed.

        Example:
            >>> manual = Phi3Chat(model, system=text)  # doctest: +SKIP
            >>> manual.save_kv_cache("manual.kv")  # doctest: +SKIP
        """
        self.model.save_kv_cache(self.token_ids, path)

    def _require_ids(self, saved: SavedChat) -> None:
        """Check that saved ids are those of the saved texts, and could have been produced."""
        if saved.beginning_ids != self._beginning_ids:
            raise ValueError("beginning_ids are not those of the system message.")
        tokenizer = self.model.tokenizer
        vocabulary_size = self.model.artifact.vocabulary_size
        for number, turn in enumerate(saved.turns):
            before = (*tokenizer.encode_message(turn.user), *tokenizer.opening)
            after = tuple(tokenizer.closing)
            answer = turn.token_ids[len(before) : len(turn.token_ids) - len(after)]
            if turn.token_ids != before + answer + after:
                raise ValueError(f"token_ids of turn {number} are not those of its message.")
            if not all(
                0 <= one < vocabulary_size and one not in tokenizer.stop_tokens for one in answer
            ):
                raise ValueError(f"token_ids of turn {number} hold what no answer can hold.")
            text = AnswerText.of(tokenizer, answer)  # a stop string may have cut its end off
            if not text.startswith(turn.assistant.content):
                raise ValueError(f"token_ids of turn {number} are not those of its answer.")

    def _encode(self, message: Message) -> tuple[int, ...]:
        return tuple(self.model.tokenizer.encode_message(message))

    def _keep(self, user: Message, question_ids: tuple[int, ...], reply: Reply) -> None:
        """Add a finished turn to the history."""
        closing = self.model.tokenizer.closing
        token_ids = (*question_ids, *reply.token_ids, *closing)
        turn = Turn(user, Message("assistant", reply.text), token_ids)
        self._turns = [*self._turns[reply.dropped_turns :], turn]
        self._candidates = reply.candidates

    def _open_turn(self) -> _OpenTurn:
        if not self._turn_is_open.acquire(blocking=False):
            raise StateError(
                "A turn of this chat is still open. Read its stream to the end, or close() it."
            )
        return _OpenTurn(self._turn_is_open)

    def __repr__(self) -> str:
        return (
            f"<phi3ov.Phi3Chat: {len(self._turns)} turns, {len(self.token_ids)} tokens, "
            f"with {self.model!r}>"
        )

    def __copy__(self) -> Phi3Chat:
        return self.fork()

    def __deepcopy__(self, _memo: object) -> Phi3Chat:
        return self.fork()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "A Phi3Chat cannot be pickled, because its loaded model cannot. Write it with "
            "chat.save(path), and read it with Phi3Chat.restore(model, path)."
        )


class _OpenTurn:
    """The right to take a turn, given back once, however often it is closed."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock: threading.Lock | None = lock

    def close(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()

    def __enter__(self) -> _OpenTurn:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
