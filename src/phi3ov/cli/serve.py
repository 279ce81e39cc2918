"""``phi3ov serve``: an OpenAI-compatible server for an exported model."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from ..engine.protocol import EngineName
from ..runtime.limits import RequestLimits
from ..server.settings import ListenSettings, ServerSettings, describe_settings, read_api_keys
from .options import LoadingOptions, engine_option
from .printing import write_line

EXAMPLE = "phi3ov serve phi3-int4 --port 8000"

KEY_VARIABLE = "PHI3OV_API_KEY"
"""Environment variable with an API key; ``ps`` would show a key on the command line."""

_HELP: Mapping[str, str] = {name: text for name, _, text in describe_settings()}
_LISTEN = "Listening"
_ANSWERS = "Answers"
_DEFAULTS = ServerSettings()


def _option(name: str, *flags: str, panel: str, **more: Any) -> Any:
    """Return the declaration of a setting's option, with the setting's help text."""
    help_text = _HELP[name][0].lower() + _HELP[name][1:].removesuffix(".")
    return typer.Option(*flags, help=help_text, rich_help_panel=panel, **more)


@dataclass(frozen=True, kw_only=True)
class ListenOptions:
    """The fields of `ListenSettings`, under the same names."""

    host: Annotated[str, _option("host", panel=_LISTEN)] = "127.0.0.1"
    port: Annotated[int, _option("port", panel=_LISTEN)] = 8000
    no_auth: Annotated[bool, _option("no_auth", "--no-auth", panel=_LISTEN)] = False
    drain_seconds: Annotated[float, _option("drain_seconds", panel=_LISTEN)] = 30.0
    max_connections: Annotated[int, _option("max_connections", panel=_LISTEN)] = 1024

    def to_settings(self) -> ListenSettings:
        """Return the settings."""
        return ListenSettings(**{field.name: getattr(self, field.name) for field in fields(self)})


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """The fields of `ServerSettings` that the command offers, under the same names."""

    model_name: Annotated[str | None, _option("model_name", panel=_ANSWERS)] = None
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            help=f"a file of keys, one a line; or one key in {KEY_VARIABLE}",
            rich_help_panel=_LISTEN,
        ),
    ] = None
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            help="a Host header that is answered; repeat",
            show_default="localhost, or any if --host is not a loopback address",
            rich_help_panel=_LISTEN,
        ),
    ] = None
    allowed_origin: Annotated[
        list[str] | None,
        typer.Option(
            help="a web page's origin that may call the server (CORS); repeat",
            rich_help_panel=_LISTEN,
        ),
    ] = None
    max_body_bytes: Annotated[int, _option("max_body_bytes", panel=_LISTEN)] = (
        _DEFAULTS.max_body_bytes
    )
    max_depth: Annotated[int, _option("max_depth", panel=_LISTEN)] = _DEFAULTS.max_depth
    max_tokens: Annotated[int | None, _option("max_tokens", panel=_ANSWERS)] = None
    default_temperature: Annotated[float, _option("default_temperature", panel=_ANSWERS)] = 0.0
    timeout_seconds: Annotated[float, _option("timeout_seconds", panel=_ANSWERS)] = (
        _DEFAULTS.timeout_seconds
    )
    ping_seconds: Annotated[float, _option("ping_seconds", panel=_LISTEN)] = _DEFAULTS.ping_seconds
    write_timeout_seconds: Annotated[float, _option("write_timeout_seconds", panel=_LISTEN)] = (
        _DEFAULTS.write_timeout_seconds
    )
    events_per_second: Annotated[int, _option("events_per_second", panel=_LISTEN)] = (
        _DEFAULTS.events_per_second
    )
    ignore_unknown: Annotated[
        bool, _option("ignore_unknown", "--ignore-unknown", panel=_ANSWERS)
    ] = False
    allow_control_tokens: Annotated[
        bool, _option("allow_control_tokens", "--allow-control-tokens", panel=_ANSWERS)
    ] = False

    def to_settings(self, listen: ListenSettings) -> ServerSettings:
        """Return the settings; keys come from the file and the environment.

        Raises:
            OptionError: A setting is out of range, or the key file cannot be read.
        """
        keys = () if self.api_key_file is None else read_api_keys(self.api_key_file)
        if key := os.environ.get(KEY_VARIABLE):
            keys = (*keys, key)
        hosts = _DEFAULTS.allowed_hosts if listen.is_loopback else ("*",)
        same = {field.name for field in fields(self)} & {field.name for field in fields(_DEFAULTS)}
        return ServerSettings(
            api_keys=keys,
            allowed_hosts=tuple(self.allowed_host) if self.allowed_host else hosts,
            allowed_origins=tuple(self.allowed_origin or ()),
            **{name: getattr(self, name) for name in same},
        )


def run(
    loading: LoadingOptions,
    listening: ListenOptions,
    answers: ServerOptions,
    *,
    engine: Annotated[EngineName, engine_option()] = "worker",
    max_running: Annotated[
        int | None,
        typer.Option(
            help="requests that are answered together",
            show_default="32",
            rich_help_panel=_ANSWERS,
        ),
    ] = None,
    max_waiting: Annotated[
        int, typer.Option(help="requests that may wait", rich_help_panel=_ANSWERS)
    ] = 256,
    max_waiting_tokens: Annotated[
        int | None,
        typer.Option(
            help="prompt tokens that may wait",
            show_default="any number",
            rich_help_panel=_ANSWERS,
        ),
    ] = None,
) -> None:
    """Serve an exported model to OpenAI's clients, and a chat page to a browser."""
    from ..loading import find_artifact, load_model
    from ..server import create_app, serve

    limits = RequestLimits(
        max_running=max_running, max_waiting=max_waiting, max_waiting_tokens=max_waiting_tokens
    )
    listen = listening.to_settings()
    settings = answers.to_settings(listen)
    listen.require_safe(settings)
    # Report a wrong folder before the server starts.
    find_artifact(loading.model, revision=loading.revision)
    logging.getLogger("phi3ov.server").setLevel(logging.INFO)
    if not logging.getLogger().handlers:
        logging.basicConfig(format="%(asctime)s %(message)s", stream=sys.stderr)
    app = create_app(
        loading.model,
        settings=settings,
        load=lambda: load_model(
            loading.model, engine=engine, limits=limits, **loading.to_arguments()
        ),
    )

    def say(url: str) -> None:
        text = f"Listening on {url}. The chat page is {url}/, the API {url}/v1."
        write_line(text, style="dim", stream=sys.stderr)

    serve(app, listen=listen, settings=settings, on_listening=say)
