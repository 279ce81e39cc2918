"""Server settings: `ServerSettings` for the application, `ListenSettings` for its socket.

The help of ``phi3ov serve`` and the table in the documentation are generated from these classes.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..errors import OptionError
from ..validation import is_number, require_integer

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")
"""Host names of loopback addresses, as programs on the same machine use them."""


def _setting(text: str, *, default: Any) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Settings of the application. `describe_settings` lists every field with its meaning.

    Raises:
        OptionError: A value is out of range.

    Example:
        >>> ServerSettings(model_name="phi3").timeout_seconds
        600.0
    """

    model_name: str | None = _setting(
        "Name of the model in /v1/models; the folder's name if it is not set.", default=None
    )
    api_keys: tuple[str, ...] = _setting(
        "Keys that clients send as a bearer token. Every path but /health needs one of them.",
        default=(),
    )
    allowed_hosts: tuple[str, ...] = _setting(
        "Values of the Host header that are answered, without the port; '*' allows any.",
        default=LOOPBACK_HOSTS,
    )
    allowed_origins: tuple[str, ...] = _setting(
        "Origins of web pages that may call the server (CORS), such as https://chat.example.",
        default=(),
    )
    max_body_bytes: int = _setting("Largest request body.", default=4 * 1024**2)
    max_depth: int = _setting("Deepest nesting of a request's JSON.", default=64)
    max_tokens: int | None = _setting(
        "Most tokens of one answer, whatever a request asks for; not set: the context.",
        default=None,
    )
    default_temperature: float = _setting(
        "Temperature of requests that name none; 0 is greedy decoding.", default=0.0
    )
    timeout_seconds: float = _setting(
        "Longest time for one answer, the time in the queue included.", default=600.0
    )
    ping_seconds: float = _setting(
        "A stream without news sends a comment this often, so that proxies keep it open.",
        default=15.0,
    )
    write_timeout_seconds: float = _setting(
        "A client that reads nothing for this long is disconnected.", default=60.0
    )
    events_per_second: int = _setting(
        "Most events that all streams together send; with many streams, an event holds several "
        "tokens. Each event takes time from the processor that computes the next tokens.",
        default=200,
    )
    ignore_unknown: bool = _setting(
        "Ignore unknown fields and name them in the header x-phi3ov-ignored, instead of refusing.",
        default=False,
    )
    allow_control_tokens: bool = _setting(
        "Honour control tokens in the prompts of /v1/completions and /tokenize.", default=False
    )

    def __post_init__(self) -> None:
        for name in ("api_keys", "allowed_hosts", "allowed_origins"):
            values = getattr(self, name)
            if isinstance(values, str) or not all(isinstance(value, str) for value in values):
                raise OptionError(f"{name} must be a tuple of strings.")
            if "" in values:
                raise OptionError(f"{name} holds an empty string.")
            object.__setattr__(self, name, tuple(values))
        if "*" in self.allowed_origins:
            raise OptionError(
                "allowed_origins=('*',) would let every web page use this server. Name the "
                "origins.",
                option="allowed_origins",
            )
        require_integer("max_body_bytes", self.max_body_bytes, least=1024)
        require_integer("max_depth", self.max_depth, least=8, most=200)
        require_integer("events_per_second", self.events_per_second, least=1)
        if self.max_tokens is not None:
            require_integer("max_tokens", self.max_tokens, least=1)
        for name, most in (
            ("timeout_seconds", 1e6),
            ("ping_seconds", 3600.0),
            ("write_timeout_seconds", 3600.0),
        ):
            value = getattr(self, name)
            if not is_number(value) or not 0 < value <= most:
                raise OptionError(
                    f"{name}={value!r} must be a number above 0, at most {most:g}.", option=name
                )
        if not is_number(self.default_temperature) or not 0 <= self.default_temperature <= 100:
            raise OptionError(
                f"default_temperature={self.default_temperature!r} must be from 0 to 100.",
                option="default_temperature",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenSettings:
    """Settings of socket and shutdown. `describe_settings` lists every field.

    Raises:
        OptionError: A value is out of range.

    Example:
        >>> ListenSettings().is_loopback
        True
        >>> ListenSettings(host="0.0.0.0").is_loopback
        False
    """

    host: str = _setting("Address to listen on.", default="127.0.0.1")
    port: int = _setting("Port to listen on; 0 takes a free one.", default=8000)
    no_auth: bool = _setting(
        "Listen on an address that other machines reach although there is no key.", default=False
    )
    drain_seconds: float = _setting(
        "After SIGTERM, running answers have this long to finish; then they are cut off.",
        default=30.0,
    )
    max_connections: int = _setting(
        "Connections beyond this number are answered with 503.", default=1024
    )

    def __post_init__(self) -> None:
        require_integer("port", self.port, least=0, most=65535)
        require_integer("max_connections", self.max_connections, least=1)
        if not is_number(self.drain_seconds) or not 0 <= self.drain_seconds <= 3600:
            raise OptionError(
                f"drain_seconds={self.drain_seconds!r} must be from 0 to 3600.",
                option="drain_seconds",
            )

    @property
    def is_loopback(self) -> bool:
        """Whether only programs on this machine can reach the address."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def require_safe(self, settings: ServerSettings) -> None:
        """Check that an address that other machines can reach is protected by a key.

        Raises:
            OptionError: The address is not a loopback address, there is no key, and ``no_auth``
                is not set.
        """
        if not self.is_loopback and not settings.api_keys and not self.no_auth:
            raise OptionError(
                f"host={self.host!r} lets other machines use the model, and there is no key. Give "
                "a key (--api-key-file FILE or the environment variable PHI3OV_API_KEY), listen "
                "on 127.0.0.1, or say --no-auth.",
                option="host",
            )


def describe_settings() -> Iterator[tuple[str, str, str]]:
    """Yield name, default and meaning of every setting, for the help and the documentation."""
    for group in (ListenSettings(), ServerSettings()):
        for entry in fields(group):
            yield entry.name, repr(getattr(group, entry.name)), entry.metadata["help"]


def read_api_keys(path: Path) -> tuple[str, ...]:
    """Read keys from a file, one per line; empty lines and lines that begin with # are skipped.

    Raises:
        OptionError: The file contains no key, or cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise OptionError(f"The key file {path} cannot be read: {error}") from error
    keys = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not keys:
        raise OptionError(f"The key file {path} holds no key. Write one key a line.")
    return keys
