"""LangChain: `ChatPhi3`, a chat model in this process (extra ``langchain``).

With a server, use ``ChatOpenAI`` with the address of ``phi3ov serve`` instead; see
``docs/guides/langchain.md`` for both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import lazy_names

if TYPE_CHECKING:
    from .chat_model import ChatPhi3
    from .errors import ContextOverflowError

__all__ = ["ChatPhi3", "ContextOverflowError"]


# Hidden from type checkers, which would otherwise accept every misspelt name.
if not TYPE_CHECKING:
    __getattr__ = lazy_names(
        __name__,
        {"ChatPhi3": "chat_model", "ContextOverflowError": "errors"},
        needs=("langchain_core", "pydantic"),
        purpose="phi3ov.integrations.langchain",
        extra="langchain",
    )
