"""Errors that callers can catch by phi3ov's name and by LangChain's."""

from __future__ import annotations

from langchain_core.exceptions import ContextOverflowError as LangChainContextOverflowError

from ...errors import ContextLengthError


class ContextOverflowError(ContextLengthError, LangChainContextOverflowError):
    """Conversation and answer do not fit the context.

    LangChain's middleware that shortens conversations catches its own class, of which this is one.

    Example:
        >>> error = ContextOverflowError(prompt_tokens=9, max_new_tokens=8, context_tokens=10)
        >>> isinstance(error, phi3ov.ContextLengthError)
        True
    """
