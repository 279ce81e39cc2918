"""Errors that derive from phi3ov's and LangChain's classes."""

from __future__ import annotations

from langchain_core.exceptions import ContextOverflowError as LangChainContextOverflowError

from ...errors import ContextLengthError


class ContextOverflowError(ContextLengthError, LangChainContextOverflowError):
    """Conversation and answer do not fit the context.

    LangChain's middleware for shortening conversations catches LangChain's class, a base of this
    one.

    Example:
        >>> error = ContextOverflowError(prompt_tokens=9, max_new_tokens=8, context_tokens=10)
        >>> isinstance(error, phi3ov.ContextLengthError)
        True
    """
