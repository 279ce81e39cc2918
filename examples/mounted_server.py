"""phi3ov's OpenAI-compatible server inside an application of your own, beside its own routes.

pip install "phi3ov[server]" fastapi
PHI3OV_MODEL=MODEL uvicorn --app-dir examples mounted_server:app
curl localhost:8000/load localhost:8000/llm/v1/models; the chat page: localhost:8000/llm/
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

import phi3ov
from phi3ov.server import ServerSettings, create_app


@asynccontextmanager
async def load(app: FastAPI) -> AsyncIterator[None]:
    with phi3ov.load_model(os.environ["PHI3OV_MODEL"], engine="worker") as app.state.model:
        settings = ServerSettings(model_name="phi3", max_tokens=512)
        app.mount("/llm", create_app(app.state.model, settings=settings))
        yield


app = FastAPI(lifespan=load)


@app.get("/load")  # the same model answers the application's own routes
def show_load() -> dict[str, int]:
    load = app.state.model.load
    return {"running": load.running, "waiting": load.waiting}
