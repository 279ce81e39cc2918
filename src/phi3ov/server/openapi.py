"""``/openapi.json``: generated from the request types and the field table."""

from __future__ import annotations

import functools
from typing import Any

import msgspec

from .. import __version__
from .fields import ENDPOINTS, Endpoint, fields_of
from .schemas import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    ResponsesRequest,
    TokenizeRequest,
)

_KINDS: dict[Endpoint, type[msgspec.Struct]] = {
    "chat": ChatRequest,
    "completions": CompletionRequest,
    "responses": ResponsesRequest,
    "tokenize": TokenizeRequest,
    "detokenize": DetokenizeRequest,
}
_STATUSES = {
    "400": "A field is wrong, unknown or not supported; param names it.",
    "401": "The key is missing or wrong.",
    "404": "The request names another model.",
    "413": "The body is too large.",
    "415": "The body is not JSON.",
    "421": "The Host header is not one of this server's names.",
    "429": "The queue is full; Retry-After says when it is likely to have room.",
    "500": "The engine failed.",
    "503": "The model is loading, restarting or ending.",
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}


@functools.cache
def _components() -> tuple[dict[str, Any], dict[str, Any]]:
    kinds = list(_KINDS.values())
    schemas, components = msgspec.json.schema_components(
        kinds, ref_template="#/components/schemas/{name}"
    )
    return dict(zip(_KINDS, schemas, strict=True)), components


def describe_api(model_name: str, *, with_key: bool) -> dict[str, Any]:
    """Return the OpenAPI description of a server."""
    schemas, components = _components()
    paths: dict[str, Any] = {
        path: {"post": _describe_post(endpoint, schemas[endpoint])}
        for endpoint, path in ENDPOINTS.items()
    }
    for path, text in (
        ("/v1/models", "The one model that is served."),
        ("/metrics", "Prometheus metrics."),
        ("/tokenizer_info", "The token that ends an answer, for clients that encode here."),
    ):
        paths[path] = {"get": {"summary": text, "responses": _responses(text, "401", "421")}}
    paths["/health"] = {
        "get": {
            "summary": "Whether the model takes requests; needs no key.",
            "responses": {
                "200": {"description": "It does."},
                "421": {"description": _STATUSES["421"]},
                "503": {"description": _STATUSES["503"]},
            },
        }
    }
    described: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": f"phi3ov: {model_name}",
            "version": __version__,
            "description": "OpenAI-compatible server of phi3ov.",
        },
        "paths": paths,
        "components": {"schemas": {**components, "Error": _ERROR}},
    }
    if with_key:
        described["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        described["security"] = [{"key": []}]
    return described


def _describe_post(endpoint: Endpoint, schema: dict[str, Any]) -> dict[str, Any]:
    lines = [
        f"- `{field.name}`: {field.policy}. {field.note}" for field in fields_of(endpoint).values()
    ]
    return {
        "summary": ENDPOINTS[endpoint],
        "description": "\n".join(lines),
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": _responses("The answer, as JSON or as server-sent events.", *_STATUSES),
    }


def _responses(text: str, *statuses: str) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    described: dict[str, Any] = {"200": {"description": text}}
    for status in statuses:
        described[status] = {"description": _STATUSES[status], "content": error}
    return described
