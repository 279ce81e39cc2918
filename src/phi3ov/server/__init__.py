"""The OpenAI-compatible server: an ASGI application and the process that runs it.

`create_app` returns the application, which `phi3ov serve` runs and a user's own FastAPI can mount.
Needs ``pip install "phi3ov[server]"``.

    request ─▶ guard ─▶ app ─▶ parsing (+ fields, schemas) ─▶ chat, completions, responses
                                                                   │
    answer ◀─ event_stream or JSON ◀──── answering ◀── ReplyStream of the model (host)
"""

from .app import create_app
from .running import serve
from .settings import ListenSettings, ServerSettings

__all__ = ["ListenSettings", "ServerSettings", "create_app", "serve"]
