"""The OpenAI-compatible server: an ASGI application and the process that runs it.

`create_app` returns the application, which ``phi3ov serve`` runs and a user's own application can
mount. Needs ``pip install "phi3ov[server]"``; the settings alone do not.

    request ─▶ guard ─▶ app ─▶ parsing (fields, schemas) ─▶ chat, completions, responses
                                                                    │
    answer ◀─ event_stream or JSON ◀─── answering ◀── ReplyStream of the model (host)
"""

from typing import TYPE_CHECKING

from ..errors import lazy_names
from .settings import ListenSettings, ServerSettings

if TYPE_CHECKING:
    from .app import create_app
    from .running import serve

__all__ = ["ListenSettings", "ServerSettings", "create_app", "serve"]


# Hidden from type checkers, which would otherwise accept every misspelt name.
if not TYPE_CHECKING:
    __getattr__ = lazy_names(
        __name__,
        {"create_app": "app", "serve": "running"},
        needs=("starlette", "uvicorn", "prometheus_client", "anyio", "h11"),
        purpose="The server",
        extra="server",
    )
