"""LangChain: `ChatPhi3`, a chat model in this process (extra ``langchain``).

With a server, use ``ChatOpenAI`` with the address of ``phi3ov serve`` instead; see
``docs/guides/langchain.md`` for both.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .chat_model import ChatPhi3
    from .errors import ContextOverflowError

__all__ = ["ChatPhi3", "ContextOverflowError"]

_MODULES = {"ChatPhi3": "chat_model", "ContextOverflowError": "errors"}


# Hidden from type checkers, which would otherwise accept every misspelt name.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Import a name that needs the extra on first use."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            module = import_module(f".{_MODULES[name]}", __name__)
        except ImportError as error:
            if (error.name or "").partition(".")[0] not in ("langchain_core", "pydantic"):
                raise
            from ...errors import MissingDependencyError

            raise MissingDependencyError(
                "langchain-core",
                purpose=f"phi3ov.integrations.langchain.{name}",
                command='pip install "phi3ov[langchain]"',
            ) from error
        return getattr(module, name)
