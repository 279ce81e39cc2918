"""A prompt as token ids, and its fitting to the context: `PromptIds`, `fit_prompt`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import ContextLengthError, PromptError
from ..prompt.chat_tokenizer import ChatTokenizer
from ..prompt.messages import Message
from ..prompt.tools import Tool
from .options import GenerationOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptIds:
    """A prompt in parts, so that old turns can be dropped and an answer can be continued.

    Attributes:
        beginning: Ids before the first turn, such as the system message; always kept.
        turns: Ids of each finished turn, oldest first; may be dropped.
        ending: Ids after the last turn: the new message and the assistant header; always kept.
        answer: Ids of a partial answer that the model continues, also of the text with which the
            chat format begins every answer; always kept.
    """

    beginning: tuple[int, ...] = ()
    turns: tuple[tuple[int, ...], ...] = ()
    ending: tuple[int, ...] = ()
    answer: tuple[int, ...] = ()

    def joined(self, *, dropped_turns: int = 0) -> tuple[int, ...]:
        """Return all ids as one sequence, without the ``dropped_turns`` oldest turns."""
        kept = (token_id for turn in self.turns[dropped_turns:] for token_id in turn)
        return (*self.beginning, *kept, *self.ending, *self.answer)


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedPrompt:
    """A prompt that fits the context together with its answer.

    Attributes:
        token_ids: The prompt.
        max_new_tokens: Maximum number of tokens of the answer.
        dropped_turns: Number of oldest turns that were dropped.
    """

    token_ids: tuple[int, ...]
    max_new_tokens: int
    dropped_turns: int


def fit_prompt(prompt: PromptIds, options: GenerationOptions, context_tokens: int) -> FittedPrompt:
    """Make prompt and answer fit the context, following ``options.on_overflow``.

    Args:
        prompt: The whole prompt.
        options: Overflow policy and maximum length of the answer.
        context_tokens: Context length that prompt and answer share.

    Raises:
        PromptError: The prompt is empty.
        ContextLengthError: Prompt and answer do not fit, and the policy cannot make room.

    Example:
        >>> prompt = PromptIds(turns=((1, 2, 3), (4, 5)), ending=(6,))
        >>> options = GenerationOptions(max_new_tokens=2, on_overflow="drop_oldest")
        >>> fit_prompt(prompt, options, context_tokens=6).token_ids
        (4, 5, 6)
    """
    limit, dropped = options.max_new_tokens, 0
    tokens = len(prompt.joined())
    if not tokens:
        raise PromptError("The prompt is empty. Give at least one token.")
    if options.on_overflow == "drop_oldest":
        for turn in prompt.turns:
            if tokens + limit <= context_tokens:
                break
            tokens -= len(turn)
            dropped += 1
    elif options.on_overflow == "clamp" and tokens < context_tokens:
        limit = min(limit, context_tokens - tokens)
    if tokens + limit > context_tokens:
        raise ContextLengthError(
            prompt_tokens=tokens, max_new_tokens=limit, context_tokens=context_tokens
        )
    return FittedPrompt(
        token_ids=prompt.joined(dropped_turns=dropped), max_new_tokens=limit, dropped_turns=dropped
    )


def conversation_ids(
    tokenizer: ChatTokenizer,
    messages: Sequence[Message],
    *,
    tools: Sequence[Tool] = (),
    continue_last: bool = False,
) -> PromptIds:
    """Encode a conversation and split its ids into turns.

    Joined, the ids equal those of `ChatTokenizer.encode_prompt`.

    Args:
        tokenizer: The checkpoint's tokenizer.
        messages: The conversation, already checked by `read_messages`.
        tools: Tools that the model may call.
        continue_last: Whether the last message is the beginning of the answer.

    Raises:
        PromptError: The chat format has no place for a message, a call, a result or tools.
    """
    system = messages[0] if messages[0].role == "system" else None
    first = 0 if system is None else 1
    last = len(messages) - 1 if continue_last else len(messages)
    turns: list[list[int]] = []
    for number in range(first, last):
        if messages[number].role == "user":
            turns.append([])
        try:
            turns[-1] += tokenizer.encode_message(messages[number])
        except PromptError as error:
            raise PromptError(f"messages[{number}]: {error}") from error
    *finished, question = turns
    if continue_last:
        opening, answer = tokenizer.split_open(messages[-1])
    else:
        opening, answer = tokenizer.opening, tokenizer.answer_start
        opening = opening[: len(opening) - len(answer)]
    return PromptIds(
        beginning=tuple(tokenizer.encode_beginning(system, tools=tools)),
        turns=tuple(map(tuple, finished)),
        ending=(*question, *opening),
        answer=tuple(answer),
    )
