"""Prompt and answer made to fit the context, as ``on_overflow`` says."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from ..errors import ContextLengthError, PromptError
from .options import GenerationOptions
from .reply import ReplyPlan

FitPrompt = Callable[[int], tuple[list[int], int]]
"""Drops so many of the oldest turns; returns the prompt's ids and how many were dropped."""


def fit_context(
    fit_prompt: FitPrompt, options: GenerationOptions, context_tokens: int
) -> tuple[list[int], ReplyPlan]:
    """Return the prompt's ids, and what its answer may be.

    Args:
        fit_prompt: Gives the prompt with fewer turns, if ``options.on_overflow`` asks for that.
        options: What the caller chose.
        context_tokens: What prompt and answer may have together.

    Raises:
        PromptError: The prompt is empty.
        ContextLengthError: They do not fit, and the policy does not allow to make room.
    """
    prompt_ids, dropped = fit_prompt(0)
    if not prompt_ids:
        raise PromptError("The prompt is empty. Give at least one token.")
    limit = options.max_new_tokens
    if options.on_overflow == "drop_oldest":
        while len(prompt_ids) + limit > context_tokens:
            shorter, more = fit_prompt(dropped + 1)
            if more == dropped:
                break
            prompt_ids, dropped = shorter, more
    elif options.on_overflow == "clamp" and len(prompt_ids) < context_tokens:
        limit = min(limit, context_tokens - len(prompt_ids))
    if len(prompt_ids) + limit > context_tokens:
        raise ContextLengthError(
            prompt_tokens=len(prompt_ids),
            max_new_tokens=limit,
            context_tokens=context_tokens,
        )
    seed = options.seed
    if options.temperature > 0 and seed is None:
        seed = secrets.randbelow(2**31)
    return prompt_ids, ReplyPlan(
        prompt_tokens=len(prompt_ids),
        max_new_tokens=limit,
        dropped_turns=dropped,
        seed=seed,
        logprobs=options.logprobs,
        shape=options.shape(),
    )
