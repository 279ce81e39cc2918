"""A streaming chat endpoint for many clients at once; a client that goes away ends its answer.

pip install fastapi uvicorn
PHI3OV_MODEL=MODEL uvicorn --app-dir examples fastapi_server:app
curl -N localhost:8000/chat -H "Content-Type: application/json" -d '{"message": "Hello"}'
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

import phi3ov


class Question(BaseModel):
    message: str
    max_new_tokens: int = 256


@asynccontextmanager
async def load(app: FastAPI) -> AsyncIterator[None]:
    with phi3ov.load_model(os.environ["PHI3OV_MODEL"], engine="worker") as app.state.model:
        yield


app = FastAPI(lifespan=load)


@app.post("/chat")
async def answer(question: Question) -> StreamingResponse:
    limits = phi3ov.Options(max_new_tokens=question.max_new_tokens, timeout_seconds=60)
    try:
        stream = phi3ov.Phi3Chat(app.state.model).stream(question.message, **limits)
    except phi3ov.Phi3OVError as error:
        status = 503 if isinstance(error, phi3ov.QueueFullError) else 422
        raise HTTPException(status, str(error)) from error

    async def pieces() -> AsyncIterator[str]:
        async with stream:  # its end cancels the answer, also when the client is gone
            async for piece in stream:
                yield piece

    return StreamingResponse(pieces(), media_type="text/plain")
