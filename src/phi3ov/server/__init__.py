"""The OpenAI-compatible server: an ASGI application and the process that runs it.

`create_app` returns the application, which ``phi3ov serve`` runs and a user's own application can
mount. Needs ``pip install "phi3ov[server]"``; the settings alone do not.

    request ─▶ guard ─▶ app ─▶ parsing (fields, schemas) ─▶ chat, completions, responses
                                                                    │
    answer ◀─ event_stream or JSON ◀─── answering ◀── ReplyStream of the model (host)
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .settings import ListenSettings, ServerSettings

if TYPE_CHECKING:
    from .app import create_app
    from .running import serve

__all__ = ["ListenSettings", "ServerSettings", "create_app", "serve"]

_MODULES = {"create_app": "app", "serve": "running"}


# Hidden from type checkers, which would otherwise accept every misspelt name.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Import a name that needs the extra on first use."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            module = import_module(f".{_MODULES[name]}", __name__)
        except ImportError as error:
            if error.name not in ("starlette", "uvicorn", "prometheus_client", "anyio", "h11"):
                raise
            from ..errors import MissingDependencyError

            raise MissingDependencyError(
                error.name, purpose="The server", command='pip install "phi3ov[server]"'
            ) from error
        return getattr(module, name)
