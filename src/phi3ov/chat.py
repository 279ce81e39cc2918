"""A conversation: `Phi3Chat` keeps the history as token ids and runs its turns.

The history is the ids that the model read and generated, never text that is encoded again. The
next prompt begins with exactly the ids of the last prompt and answer, so the prefix cache matches
every token.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, overload

from .answer.options import GenerationOptions, Options, OptionsBesideSchema
from .answer.prompt_ids import PromptIds
from .answer.reply import Parsed, Reply
from .answer.stream import ReplyStream
from .atomic_file import replace_file
from .errors import OptionError, PromptError, RestoreError, StateError
from .prompt.chat_tokenizer import ChatTokenizer
from .prompt.detokenizer import AnswerText
from .prompt.dictionaries import read_messages
from .prompt.messages import Message
from .prompt.tools import ToolSource, read_tools
from .saved_chat import MOST_BYTES, SavedChat, Turn

if TYPE_CHECKING:
    from typing import Unpack

    from .model import Phi3Model


Question = str | Message | Mapping[str, object] | Sequence[Message | Mapping[str, object]]
"""Input of a turn: a user's text or message, or the results of the last answer's tool calls."""


class Phi3Chat:
    """A conversation with a model, one turn at a time. Use one chat per user.

    A turn enters the history when its answer has ended. A turn that failed, was cancelled or
    was abandoned leaves the history unchanged, unless its partial answer is kept explicitly
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
        messages: Sequence[Message | Mapping[str, object]] = (),
        tools: Sequence[ToolSource] = (),
        options: GenerationOptions = GenerationOptions(),  # noqa: B008 - immutable
    ) -> None:
        """Start a conversation.

        Args:
            model: The model that answers.
            system: The system message, if any.
            messages: An earlier conversation to continue: `Message` values or dictionaries of
                OpenAI's protocol. It may begin with a system message, and ends with an assistant
                message. Its answers are encoded from their text.
            tools: Tools that the model may call; `Reply.tool_calls` holds its calls. Needs a model
                that was trained with tools (Phi-4-mini). The system message describes them; an
                empty one is added if it is missing.
            options: Options of every turn.

        Raises:
            PromptError: The order of roles is invalid; the checkpoint's own template would drop
                the system message; or the model was trained without tools.
            OptionError: ``system`` is given together with a system message in ``messages``, or
                ``options`` is not a `GenerationOptions`.
        """
        if not isinstance(options, GenerationOptions):
            raise OptionError(
                f"options must be phi3ov.GenerationOptions, got {options!r:.80}. For a dictionary: "
                "GenerationOptions(**options).",
                option="options",
            )
        self.model = model
        self.options = options
        self._tools = read_tools(tools)
        history = read_messages(messages, ends_with="history")
        if history and history[0].role == "system":
            if system is not None:
                raise OptionError(
                    f"system={system!r:.80} contradicts messages[0], which is a system message. "
                    "Leave one of them out.",
                    option="system",
                )
            system, history = history[0].content, history[1:]
        if system is None and self._tools:
            system = ""
        self._system = None if system is None else Message("system", system)
        self._beginning_ids = tuple(
            model.tokenizer.encode_beginning(self._system, tools=self._tools)
        )
        self._turns: list[Turn] = [*self._read_turns(history)]
        self._candidates: tuple[Reply, ...] = ()  # of the last turn
        self._turn_is_open = threading.Lock()  # held from a turn's start to its end

    def _read_turns(self, history: Sequence[Message]) -> Iterator[Turn]:
        question: list[Message] = []
        for message in history:
            if message.role != "assistant":
                question.append(message)
                continue
            token_ids = (*self._encode(*question), *self._encode(message))
            yield Turn(tuple(question), message, token_ids)
            question = []

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation so far, without turns that were dropped to make room."""
        system = () if self._system is None else (self._system,)
        return (*system, *(message for turn in self._turns for message in turn.messages))

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The history as ids, with which the next prompt begins."""
        turns = (token_id for turn in self._turns for token_id in turn.token_ids)
        return (*self._beginning_ids, *turns)

    @overload
    def generate(
        self,
        message: Question,
        *,
        json_schema: type[Parsed],
        **options: Unpack[OptionsBesideSchema],
    ) -> Reply[Parsed]: ...
    @overload
    def generate(self, message: Question, **options: Unpack[Options]) -> Reply: ...
    def generate(self, message: Question, **options: Unpack[Options]) -> Reply:
        """Take a turn and return the finished answer.

        Args:
            message: The user's text, which never becomes control tokens; or a message; or, if the
                last answer has tool calls, the list of their results: messages with the role
                ``tool``.
            **options: Fields of `GenerationOptions`, for this turn only.

        Raises:
            PromptError: The message is empty, or cannot follow the last answer.
            ContextLengthError: History, message and answer do not fit the context.
            OptionError: An option is unknown or not allowed.
            StateError: Another turn of this chat is open, or the model is closed.
            QueueFullError: The queue is full, and ``on_full_queue`` is not ``"wait"``.
            GenerationError: The engine failed; ``partial_text`` holds the partial answer.
        """
        return self.stream(message, **options).drain()

    @overload
    def stream(
        self,
        message: Question,
        *,
        json_schema: type[Parsed],
        **options: Unpack[OptionsBesideSchema],
    ) -> ReplyStream[Parsed]: ...
    @overload
    def stream(self, message: Question, **options: Unpack[Options]) -> ReplyStream: ...
    def stream(self, message: Question, **options: Unpack[Options]) -> ReplyStream:
        """Take a turn and return its answer as a stream of text.

        Generation starts at once. Arguments and errors are those of `generate`; errors of the
        engine are raised while the stream is read.
        """
        question = self._read_question(message)
        with self._open_turn() as turn:
            opened = self._openings(question)[0]
            return self._start(self._turns, question, turn, options, opened=opened)

    @overload
    async def agenerate(
        self,
        message: Question,
        *,
        json_schema: type[Parsed],
        **options: Unpack[OptionsBesideSchema],
    ) -> Reply[Parsed]: ...
    @overload
    async def agenerate(self, message: Question, **options: Unpack[Options]) -> Reply: ...
    async def agenerate(self, message: Question, **options: Unpack[Options]) -> Reply:
        """Async version of `generate`; does not block the event loop."""
        async with self.stream(message, **options) as stream:
            return await stream.adrain()

    def stream_more(self, **options: Unpack[Options]) -> ReplyStream:
        """Continue the last answer, for example one that ended at ``max_new_tokens``.

        The model continues from the exact ids of the answer. The reply holds the addition, and the
        history then holds the whole answer. Errors are those of `stream`.

        Raises:
            StateError: There is no answer to continue, or it ends with tool calls.

        Example:
            >>> reply = chat.generate("Tell me a story.", max_new_tokens=20)  # doctest: +SKIP
            >>> if reply.finish_reason == "length":  # doctest: +SKIP
            ...     print(reply.text + chat.stream_more(max_new_tokens=200).drain().text)
        """
        with self._open_turn() as turn:
            if not self._turns or self._turns[-1].answer.tool_calls:
                raise StateError("There is no answer to continue. Take a turn first.")
            last, before = self._turns[-1], self._turns[:-1]
            readings = self._readings(last)
            fitting = (each for each in readings if each.is_answer(last))
            opened = next(fitting, readings[0])
            return self._start(before, last.question, turn, options, opened=opened)

    def _start(
        self,
        before: Sequence[Turn],
        question: tuple[Message, ...],
        turn: _OpenTurn,
        options: Options,
        *,
        opened: _OpenedAnswer,
    ) -> ReplyStream:
        """Start the answer to a question after the turns ``before``; the stream closes the turn."""
        exchanges = _exchanges(before)
        prompt = PromptIds(
            beginning=self._beginning_ids,
            turns=tuple(
                tuple(token_id for taken in exchange for token_id in taken.token_ids)
                for exchange in exchanges
            ),
            ending=opened.question_ids,
            answer=(*opened.start_ids, *opened.answer_ids),
        )
        stream = self.model.stream_ids(prompt, tools=self._tools, options=self.options, **options)

        def end_turn(kept: Reply | None) -> None:
            if kept is not None:
                known = len(prompt.joined(dropped_turns=kept.dropped_turns))
                known -= len(opened.answer_ids)
                begun_ids = kept.prompt_ids[known:]  # includes the token that opens a required call
                left = [taken for group in exchanges[kept.dropped_turns :] for taken in group]
                begun = replace(opened, answer_ids=begun_ids)
                self._turns = [*left, self._turn(question, begun, kept)]
                self._candidates = kept.candidates
            turn.close()

        turn.keep_open()
        stream.on_end(end_turn)
        return stream

    def choose(self, candidate: Reply) -> None:
        """Replace the first candidate of the last turn in the history by another one.

        Args:
            candidate: One of the last reply's `Reply.candidates`.

        Raises:
            OptionError: ``candidate`` is not a candidate of the last turn.
            StateError: A turn is open.
        """
        with self._open_turn():
            seeds = {
                drawn.seed for drawn in self._candidates if drawn.token_ids == candidate.token_ids
            }
            if candidate.seed not in seeds:
                raise OptionError(
                    f"candidate={candidate.text[:60]!r} is not one of the last turn's "
                    f"{len(self._candidates)} candidates. Take one from its reply.candidates.",
                    option="candidate",
                )
            last = self._turns[-1]
            before = (token_id for turn in self._turns[:-1] for token_id in turn.token_ids)
            known = len(self._beginning_ids) + len(tuple(before))
            begun = next(
                replace(opened, answer_ids=candidate.prompt_ids[known + len(opened.token_ids) :])
                for opened in self._openings(last.question)
                if candidate.prompt_ids[known:][: len(opened.token_ids)] == opened.token_ids
            )
            self._turns = [*self._turns[:-1], self._turn(last.question, begun, candidate)]

    def reset(self) -> None:
        """Remove all turns; the system message stays.

        Raises:
            StateError: A turn is open.
        """
        with self._open_turn():
            self._turns = []
            self._candidates = ()

    def fork(self) -> Phi3Chat:
        """Return a copy of the conversation that continues independently."""
        twin = Phi3Chat(self.model, options=self.options)
        twin._system, twin._tools = self._system, self._tools
        twin._beginning_ids = self._beginning_ids
        twin._turns, twin._candidates = list(self._turns), self._candidates
        return twin

    def save(self, path: str | Path) -> None:
        """Save the conversation to a file that `restore` reads.

        The file is JSON with the history as ids and as text, system message, tools, options and
        the model's fingerprint. An existing file is overwritten atomically. A turn that is still
        open is not saved.

        Args:
            path: The file to write. On POSIX only its owner may read it.

        Raises:
            OptionError: An option or a tool holds a value that JSON cannot represent.
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
        """Return the conversation that `save` wrote, with the exact saved ids.

        The file is validated: texts must encode to the ids stored with them, and no answer may
        contain a stop token. Device, precision and context are those of ``model``.

        Args:
            model: The model of the saved conversation, loaded again.
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
        """Save the KV cache of this conversation, to skip its prefill later.

        Use it for a fixed beginning, such as a long system prompt or a document: save it once, and
        call `Phi3Model.restore_kv_cache` in any process that loads the same model with the same
        settings. Every prompt that begins with the current `token_ids` then reads only the rest.
        Needs ``engine="paged"``. Tokens that are not in the cache are read first.

        Args:
            path: The file; an existing one is overwritten atomically. It contains the ids and so
                reveals the text. On POSIX only its owner may read it.

        Raises:
            PromptError: The conversation is empty.
            ContextLengthError: The conversation fills the context.
            OptionError: The engine does not support saving its cache.
            GenerationError: The engine failed.
            OSError: The file cannot be written.
            StateError: The model is closed.

        Example:
            >>> manual = Phi3Chat(model, system=text)  # doctest: +SKIP
            >>> manual.save_kv_cache("manual.kv")  # doctest: +SKIP
        """
        self.model.save_kv_cache(self.token_ids, path)

    def _require_ids(self, saved: SavedChat) -> None:
        """Check that saved ids match the saved texts, and that the model could generate them."""
        if saved.beginning_ids != self._beginning_ids:
            raise ValueError("beginning_ids are not those of the system message.")
        tokenizer = self.model.tokenizer
        vocabulary_size = self.model.artifact.vocabulary_size
        read_messages(  # checks the order of the roles
            [message for turn in saved.turns for message in turn.messages], ends_with="history"
        )
        for number, turn in enumerate(saved.turns):
            readings = self._readings(turn)
            if not readings:
                raise ValueError(f"token_ids of turn {number} are not those of its message.")
            if not all(
                0 <= token_id < vocabulary_size and token_id not in tokenizer.stop_tokens
                for token_id in readings[0].answer_ids
            ):
                raise ValueError(f"token_ids of turn {number} hold an id that no answer can hold.")
            written = self._encode(*turn.question, turn.answer)
            if turn.token_ids != written and not any(each.is_answer(turn) for each in readings):
                raise ValueError(f"token_ids of turn {number} are not those of its answer.")

    @property
    def _offered(self) -> list[str]:
        return [tool.name for tool in self._tools]

    def _read_question(self, message: Question) -> tuple[Message, ...]:
        """Return the input of a turn: a user message, or the results of the last calls."""
        if isinstance(message, str):
            if not message:
                raise PromptError("The message is empty. Give the user's text.")
            return (Message("user", message),)
        given = [message] if isinstance(message, Message | Mapping) else message
        last = [self._turns[-1].answer] if self._turns else []
        before = [Message("user", "-"), *last] if last else []
        question = read_messages([*before, *given])[len(before) :]
        if len(question) != 1 and any(each.role != "tool" for each in question):
            raise PromptError(
                f"message={message!r:.80} must be one user's message, or the results of the last "
                "answer's calls. A history goes into Phi3Chat(model, messages=...)."
            )
        return question

    def _encode(self, *messages: Message) -> tuple[int, ...]:
        encode = self.model.tokenizer.encode_message
        return tuple(token_id for message in messages for token_id in encode(message))

    def _openings(self, question: tuple[Message, ...]) -> list[_OpenedAnswer]:
        """Return the ways in which a prompt or a turn opens the answer to ``question``.

        The first is that of a new answer. An answer in the history follows it in the second way
        if the chat format writes other texts there.
        """
        tokenizer = self.model.tokenizer
        question_ids, start = self._encode(*question), tuple(tokenizer.answer_start)
        opening, history_opening = tokenizer.opening, tokenizer.history_opening
        header = opening[: len(opening) - len(start)]
        found = [self._opened((*question_ids, *header), start)]
        if history_opening != opening:
            found.append(self._opened((*question_ids, *history_opening), ()))
        return found

    def _opened(self, question_ids: tuple[int, ...], start: tuple[int, ...]) -> _OpenedAnswer:
        return _OpenedAnswer(self.model.tokenizer, self._offered, question_ids, start)

    def _readings(self, turn: Turn) -> list[_OpenedAnswer]:
        """Return the ways in which the ids of a turn can be read as its question and an answer."""
        closing = tuple(self.model.tokenizer.closing)
        readings = []
        for opened in self._openings(turn.question):
            end = len(turn.token_ids) - len(closing)
            answer_ids = turn.token_ids[len(opened.token_ids) : end]
            if turn.token_ids == (*opened.token_ids, *answer_ids, *closing):
                readings.append(replace(opened, answer_ids=answer_ids))
        if not readings and turn.token_ids == self._encode(*turn.question, turn.answer):
            # The text before an answer in the history may share a token with it.
            header, answer = self.model.tokenizer.split_open(turn.answer, with_start=True)
            question_ids = (*self._encode(*turn.question), *header)
            readings.append(replace(self._opened(question_ids, ()), answer_ids=tuple(answer)))
        return readings

    def _turn(self, question: tuple[Message, ...], begun: _OpenedAnswer, reply: Reply) -> Turn:
        """Return the finished turn; ``reply`` continues what ``begun`` holds.

        A complete answer stands in the history as the chat format writes it there. One that was
        cut off keeps its exact ids, so that it can be continued.
        """
        tokenizer, text = self.model.tokenizer, reply.text
        whole = replace(begun, answer_ids=(*begun.answer_ids, *reply.token_ids))
        if begun.answer_ids:
            text = max(whole.text, begun.text, key=len)
        answer = Message("assistant", text, tool_calls=reply.tool_calls)
        if reply.finish_reason != "stop":
            return Turn(question, answer, (*whole.token_ids, *tokenizer.closing))
        added = tokenizer.format.extension
        has_thoughts = reply.reasoning or (added.opens_thoughts and begun.start_ids)
        # Behind another text, the first token of the answer may be another one.
        moves = begun.start_ids and added.history_start != added.answer_start
        if (has_thoughts or moves) and not tokenizer.drops_part_of(answer):
            return Turn(question, answer, self._encode(*question, answer))  # without thoughts
        history = self._openings(question)[-1]
        token_ids = (*history.token_ids, *whole.answer_ids, *tokenizer.closing)
        return Turn(question, answer, token_ids)

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


@dataclass(frozen=True, slots=True)
class _OpenedAnswer:
    """The ids of a question and of an answer so far.

    Attributes:
        tokenizer: Tokenizer of the model.
        offered: Names of the tools whose calls are parsed from the answer.
        question_ids: Ids of the question and of the header of the answer.
        start_ids: Ids of the text with which the chat format begins a new answer.
        answer_ids: Ids of the answer so far.
    """

    tokenizer: ChatTokenizer
    offered: Sequence[str]
    question_ids: tuple[int, ...]
    start_ids: tuple[int, ...]
    answer_ids: tuple[int, ...] = ()

    @property
    def token_ids(self) -> tuple[int, ...]:
        """All ids."""
        return (*self.question_ids, *self.start_ids, *self.answer_ids)

    @property
    def text(self) -> str:
        """The text of the answer, without thoughts and calls."""
        return self._read(self.start_ids)

    def is_answer(self, turn: Turn) -> bool:
        """Whether the ids are those of the answer of ``turn``; a stop string may have cut it.

        A model generated them after the text of a new answer, which decides about a leading
        space; the ids of an answer that the caller gave stand alone.
        """
        content = turn.answer.content
        return any(
            self._read(before).startswith(content)
            for before in (self.start_ids, self.tokenizer.answer_start)
        )

    def _read(self, before: Sequence[int]) -> str:
        return AnswerText.of(self.tokenizer, self.answer_ids, offered=self.offered, before=before)


class _OpenTurn:
    """Guard of the open turn: releases the chat's lock once, even if closed repeatedly."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock: threading.Lock | None = lock
        self._stays_open = False

    def close(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()

    def keep_open(self) -> None:
        """Keep the turn open after the ``with`` block."""
        self._stays_open = True

    def __enter__(self) -> _OpenTurn:
        return self

    def __exit__(self, kind: object, *_exc: object) -> None:
        if kind is not None or not self._stays_open:
            self.close()


def _exchanges(turns: Sequence[Turn]) -> list[list[Turn]]:
    """Group turns so that tool results stay with the question that led to the calls."""
    groups: list[list[Turn]] = []
    for turn in turns:
        if groups and turn.question[0].role == "tool":
            groups[-1].append(turn)
        else:
            groups.append([turn])
    return groups
