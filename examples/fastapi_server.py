"""A streaming chat endpoint for many clients: messages in, text out; leaving ends an answer.

pip install fastapi uvicorn
PHI3OV_MODEL=MODEL uvicorn --app-dir examples fastapi_server:app
curl -N localhost:8000/chat --json '{"messages": [{"role": "user", "content": "Hello"}]}'
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Body, FastAPI, HTTPException
from fastapi.responses import StreamingResponse

import phi3ov


@asynccontextmanager
async def load(app: FastAPI) -> AsyncIterator[None]:
    with phi3ov.load_model(os.environ["PHI3OV_MODEL"], engine="worker") as app.state.model:
        yield


app = FastAPI(lifespan=load)


@app.post("/chat")  # the client sends the conversation so far, and so any server can answer it
async def answer(
    messages: Annotated[list[dict[str, Any]], Body()], max_new_tokens: Annotated[int, Body()] = 256
) -> StreamingResponse:
    limits = phi3ov.Options(max_new_tokens=max_new_tokens, timeout_seconds=60)
    try:
        stream = app.state.model.stream(messages, **limits)
    except phi3ov.Phi3OVError as error:
        status = 503 if isinstance(error, phi3ov.QueueFullError) else 422
        raise HTTPException(status, str(error)) from error

    async def pieces() -> AsyncIterator[str]:
        async with stream:  # its end cancels the answer, also when the client is gone
            async for piece in stream:
                yield piece

    return StreamingResponse(pieces(), media_type="text/plain")
