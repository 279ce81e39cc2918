"""The ASGI application: `create_app` and its routes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from ..errors import Phi3OVError
from ..prompt.dictionaries import read_messages
from ..prompt.token_texts import TokenTexts
from .answering import Answers, ClientGoneError, start_answers, unless_gone
from .chat import ChatExchange
from .completions import CompletionExchange, encode_text
from .errors import ApiError, bad_field, error_response, json_response, translate_error
from .event_stream import EventStream
from .fields import Endpoint
from .guard import Guard
from .host import ModelHost
from .metrics import ServerMetrics
from .openapi import describe_api
from .options import merge_messages
from .page import PAGE, PAGE_HEADERS
from .parsing import read_request
from .rendering import AnswerHead, Rendering, new_id, system_fingerprint
from .responses import ResponsesExchange
from .schemas import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    ResponsesRequest,
    TokenizeRequest,
)
from .settings import ServerSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.types import Receive, Scope, Send

    from ..answer.stream import ReplyStream
    from ..model import Phi3Model

_LOGGER = logging.getLogger("phi3ov.server")

Handler = Callable[[Request], Any]


class Exchange(Protocol):
    """A validated request: starts the answers and creates their rendering."""

    notes: dict[str, str]

    @property
    def scores_prompts(self) -> bool:
        """Whether `start` computes the log-probabilities of prompts, which may take long."""
        ...

    def start(self, model: Phi3Model) -> Sequence[ReplyStream]:
        """Start the answers."""
        ...

    def render(self, head: AnswerHead, texts: TokenTexts) -> Rendering:
        """Return the rendering of the answers."""
        ...


def create_app(
    model: Phi3Model | str | Path,
    *,
    settings: ServerSettings = ServerSettings(),  # noqa: B008 - immutable
    load: Callable[[], Phi3Model] | None = None,
) -> Starlette:
    """Return an OpenAI-compatible ASGI application.

    Any ASGI server can serve it, and another application can mount it:
    ``FastAPI().mount("/llm", create_app(model))``. To mount it, pass a loaded model, which the
    caller closes. A folder is loaded with ``engine="worker"`` when the application starts.

    Args:
        model: A loaded model, or a folder made by `phi3ov.export_model`.
        settings: Settings of the application.
        load: Loads the model; `phi3ov.load_model` on the folder by default.

    Raises:
        OptionError: ``load`` is given beside a loaded model.

    Example:
        >>> app = create_app(model)  # doctest: +SKIP
        >>> sorted(route.path for route in app.routes)[:2]  # doctest: +SKIP
        ['/', '/detokenize']
    """
    if isinstance(model, str | Path):
        folder = Path(model)
        name = settings.model_name or folder.resolve().name
        host = ModelHost(
            load or (lambda: _load_folder(folder)), events_per_second=settings.events_per_second
        )
    else:
        if load is not None:
            from ..errors import OptionError

            raise OptionError("load has no effect on a loaded model. Pass one of the two.")
        loaded = model
        name = settings.model_name or loaded.artifact.path.resolve().name
        host = ModelHost(lambda: loaded, model=loaded, events_per_second=settings.events_per_second)
    return _Application(host, name, settings).build()


def _load_folder(folder: Path) -> Phi3Model:
    from ..loading import load_model

    return load_model(folder, engine="worker")


class _Gone(Response):
    """Response to a disconnected client: sends nothing."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pass


class _Application:
    """The routes of an application and their shared state."""

    def __init__(self, host: ModelHost, name: str, settings: ServerSettings) -> None:
        self._host = host
        self._name = name
        self._settings = settings
        self._metrics = ServerMetrics(host)
        self._created = int(time.time())
        self._head_parts: tuple[str, TokenTexts] | None = None

    def build(self) -> Starlette:
        routes = [
            Route("/", self._page),
            Route("/health", self._health),
            Route("/metrics", self._show_metrics),
            Route("/openapi.json", self._openapi),
            Route("/v1/models", self._models),
            Route("/v1/models/{name:path}", self._one_model),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/completions", self._complete, methods=["POST"]),
            Route("/v1/responses", self._respond, methods=["POST"]),
            Route("/tokenizer_info", self._tokenizer_info),
            Route("/tokenize", self._tokenize, methods=["POST"]),
            Route("/detokenize", self._detokenize, methods=["POST"]),
        ]
        middleware = []
        if self._settings.allowed_origins:
            middleware.append(
                Middleware(
                    CORSMiddleware,
                    allow_origins=self._settings.allowed_origins,
                    allow_methods=["GET", "POST"],
                    allow_headers=["authorization", "content-type", "x-request-id"],
                    expose_headers=["x-request-id", "retry-after", "x-phi3ov-merged-messages"],
                )
            )
        paths = frozenset(route.path for route in routes)
        middleware.append(
            Middleware(Guard, settings=self._settings, metrics=self._metrics, paths=paths)
        )
        app = Starlette(
            routes=routes,
            middleware=middleware,
            lifespan=self._lifespan,
            exception_handlers={
                404: _answer_not_found,
                405: _answer_wrong_method,
                ApiError: _answer_api_error,
                ClientDisconnect: _answer_gone,
                ClientGoneError: _answer_gone,
            },
        )
        app.state.host = self._host
        app.state.metrics = self._metrics
        return app

    @asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        self._host.start()
        try:
            yield
        finally:
            self._host.close()

    # --- answers ------------------------------------------------------------------------------

    async def _chat(self, http: Request) -> Any:
        return await self._answer(http, "chat", ChatRequest, ChatExchange, "chatcmpl-")

    async def _complete(self, http: Request) -> Any:
        return await self._answer(
            http, "completions", CompletionRequest, CompletionExchange, "cmpl-"
        )

    async def _respond(self, http: Request) -> Any:
        return await self._answer(http, "responses", ResponsesRequest, ResponsesExchange, "resp_")

    async def _answer(
        self,
        http: Request,
        endpoint: Endpoint,
        kind: Any,
        make_exchange: Callable[[Any, ServerSettings], Exchange],
        prefix: str,
    ) -> Any:
        model = self._host.require_model()  # before the body is read
        parsed = await read_request(http, endpoint, kind, self._settings)
        request = parsed.request
        self._require_model_name(request.model)
        exchange = make_exchange(request, self._settings)
        headers = dict(exchange.notes)
        if parsed.ignored:
            headers["x-phi3ov-ignored"] = (
                ", ".join(parsed.ignored).encode("ascii", "replace").decode()
            )
        rendering = exchange.render(*self._rendering_parts(model, prefix))
        starting = start_answers(
            self._host, exchange.start, self._metrics, scores=exchange.scores_prompts
        )
        if request.stream:
            events = _write_events(await starting, rendering)
            return EventStream(
                events,
                headers=headers,
                ping_seconds=self._settings.ping_seconds,
                write_timeout_seconds=self._settings.write_timeout_seconds,
                metrics=self._metrics,
            )
        try:
            body = await unless_gone(http.receive, _write_body(starting, rendering))
        except ClientGoneError:
            self._metrics.disconnected.inc()
            raise
        return json_response(body, headers=headers)

    def _rendering_parts(self, model: Phi3Model, prefix: str) -> tuple[AnswerHead, TokenTexts]:
        if self._head_parts is None:
            self._head_parts = (system_fingerprint(model), TokenTexts(model.tokenizer))
        fingerprint, texts = self._head_parts
        head = AnswerHead(answer_id=new_id(prefix), model_name=self._name, fingerprint=fingerprint)
        return head, texts

    def _require_model_name(self, name: str) -> None:
        if name not in ("", self._name):
            raise ApiError(
                404,
                f"The model {name!r:.100} is not served here; the one that is: {self._name!r}.",
                param="model",
                code="model_not_found",
            )

    # --- everything else ----------------------------------------------------------------------

    async def _tokenize(self, http: Request) -> Response:
        parsed = await read_request(http, "tokenize", TokenizeRequest, self._settings)
        request = parsed.request
        self._require_model_name(request.model)
        model = self._host.require_model()
        if (request.prompt is None) == (request.messages is None):
            raise bad_field("prompt", "Send either prompt or messages.")
        try:
            body = await asyncio.to_thread(_describe_tokens, model, request, self._settings)
        except Phi3OVError as error:
            raise translate_error(error) from error
        return Response(body, media_type="application/json")

    async def _detokenize(self, http: Request) -> Response:
        parsed = await read_request(http, "detokenize", DetokenizeRequest, self._settings)
        self._require_model_name(parsed.request.model)
        model = self._host.require_model()
        tokens = parsed.request.tokens
        size = model.artifact.vocabulary_size
        wrong = next((token for token in tokens if not 0 <= token < size), None)
        if wrong is not None:
            raise bad_field("tokens", f"tokens holds {wrong}; ids go from 0 to {size - 1}.")
        return json_response({"prompt": await asyncio.to_thread(model.tokenizer.decode, tokens)})

    async def _tokenizer_info(self, _http: Request) -> Response:
        """Answer as vLLM does: lm-eval asks, and then encodes with /tokenize."""
        tokenizer = self._host.require_model().tokenizer
        ending = next(iter(tokenizer.stop_tokens.values()))
        return json_response({"eos_token": ending, "bos_token": None, "pad_token": None})

    async def _models(self, _http: Request) -> Response:
        return json_response({"object": "list", "data": [self._describe_model()]})

    async def _one_model(self, http: Request) -> Response:
        self._require_model_name(http.path_params["name"])
        return json_response(self._describe_model())

    def _describe_model(self) -> dict[str, Any]:
        model = self._host.model
        return {
            "id": self._name,
            "object": "model",
            "created": self._created,
            "owned_by": "phi3ov",
            "max_model_len": None if model is None else model.context.tokens,
            "default_temperature": self._settings.default_temperature,
            "supports_tools": model is not None and model.tokenizer.tool_call_ids is not None,
        }

    async def _health(self, _http: Request) -> Response:
        state = self._host.state
        headers = {} if state == "ready" else {"retry-after": "5"}
        return json_response(
            {"status": state}, status=200 if state == "ready" else 503, headers=headers
        )

    async def _show_metrics(self, _http: Request) -> Response:
        return Response(self._metrics.render(), media_type="text/plain; version=0.0.4")

    async def _openapi(self, _http: Request) -> Response:
        return json_response(describe_api(self._name, with_key=bool(self._settings.api_keys)))

    async def _page(self, _http: Request) -> Response:
        return Response(PAGE, headers=PAGE_HEADERS, media_type="text/html")


def _describe_tokens(model: Phi3Model, request: TokenizeRequest, settings: ServerSettings) -> bytes:
    """Return the response body of /tokenize; runs on a worker thread."""
    if request.prompt is not None:
        ids = encode_text(model, request.prompt, settings)
    else:
        messages, _ = merge_messages(request.messages or ())
        ids = model.tokenizer.encode_prompt(read_messages(messages))
    return msgspec.json.encode(
        {"count": len(ids), "max_model_len": model.context.tokens, "tokens": ids}
    )


async def _write_body(starting: Awaitable[Answers], rendering: Rendering) -> Mapping[str, Any]:
    answers = await starting
    return rendering.whole(await answers.collect())


async def _write_events(answers: Answers, rendering: Rendering) -> AsyncIterator[bytes]:
    try:
        begun = False
        async for found in answers.read():
            events = [] if begun else [*rendering.begin()]
            begun = True
            for number, piece in found:
                if piece is None:
                    events += rendering.end(number, answers.streams[number].reply)
                else:
                    events += rendering.piece(number, piece)
            if events:
                yield b"".join(events)
        yield b"".join(rendering.finish(answers.replies))
    finally:
        await answers.aclose()


async def _answer_api_error(_http: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error)


async def _answer_gone(_http: Request, _error: Exception) -> Response:
    return _Gone()


async def _answer_not_found(http: Request, _error: Exception) -> Response:
    return error_response(ApiError(404, f"There is no {http.url.path!r:.100}.", code="not_found"))


async def _answer_wrong_method(http: Request, error: Exception) -> Response:
    return error_response(
        ApiError(
            405,
            f"{http.url.path} does not support {http.method}.",
            code="method_not_allowed",
            headers=getattr(error, "headers", None),
        )
    )
