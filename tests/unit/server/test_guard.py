"""Keys, Host, CORS, sizes, ids and logs: what protects the server, each with its attack."""

from __future__ import annotations

import base64
import logging
from pathlib import Path
from typing import Any

import httpx
import pytest

from phi3ov.errors import OptionError
from phi3ov.server import ListenSettings, ServerSettings
from phi3ov.server.settings import describe_settings, read_api_keys

from .serving import NAME, always, serving

KEYS = ServerSettings(model_name=NAME, api_keys=("first-key", "second-key"))
PATHS = ("/", "/metrics", "/openapi.json", "/v1/models", "/tokenize", "/nothing")
HELLO = {"messages": [{"role": "user", "content": "Hello"}]}


def bearer(key: str) -> dict[str, str]:
    """Return the header with a key."""
    return {"authorization": f"Bearer {key}"}


def test_every_path_but_health_needs_a_key() -> None:
    """Also metrics, the page, the description, and paths that do not exist."""
    with serving(always("x"), settings=KEYS) as served:
        for path in PATHS:
            for headers in (
                {},
                bearer("wrong"),
                {"authorization": "Bearer"},
                {"authorization": "first-key"},
            ):
                response = served.client.get(path, headers=headers)
                assert response.status_code == 401, path
                assert response.json()["error"]["code"] == "invalid_api_key"
                assert "www-authenticate" in response.headers
        assert served.client.get("/health").status_code == 200
        for path in ("//health", "/health/", "/health/../metrics", "/healthz", "/%68ealth/x"):
            assert served.client.get(path).status_code == 401, path
        assert not served.engine.requests


@pytest.mark.parametrize("key", KEYS.api_keys)
def test_each_key_opens(key: str) -> None:
    """As a bearer token, and as a browser's password."""
    with serving(always("x"), settings=KEYS) as served:
        assert served.client.get("/v1/models", headers=bearer(key)).status_code == 200
        basic = base64.b64encode(f"anyone:{key}".encode()).decode()
        page = {"authorization": f"Basic {basic}", "accept": "text/html"}
        assert served.client.get("/", headers=page).status_code == 200
        asked = served.client.get("/", headers={"accept": "text/html"})
        assert asked.headers["www-authenticate"].startswith("Basic ")


def test_another_name_than_its_own_is_refused() -> None:
    """A web page that points its own name at 127.0.0.1 (DNS rebinding) gets nothing."""
    with serving(always("x")) as served:
        for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", ""):
            response = served.client.get("/v1/models", headers={"host": host})
            assert (response.status_code, response.json()["error"]["code"]) == (
                421,
                "host_not_allowed",
            )
        for host in ("localhost:1", "127.0.0.1", "LOCALHOST", "[::1]:8000"):
            assert served.client.get("/v1/models", headers={"host": host}).status_code == 200


def test_other_web_pages_cannot_call_it_unless_they_are_named() -> None:
    """CORS is off; a simple form cannot send JSON; a named origin may."""
    evil = {"origin": "https://evil.example"}
    with serving(always("x")) as served:
        response = served.client.get("/v1/models", headers=evil)
        assert "access-control-allow-origin" not in response.headers
        form = served.client.post(
            "/v1/chat/completions", content="{}", headers={"content-type": "text/plain"}
        )
        assert form.status_code == 415
    settings = ServerSettings(model_name=NAME, allowed_origins=("https://chat.example",))
    with serving(always("x"), settings=settings) as served:
        good = served.client.get("/v1/models", headers={"origin": "https://chat.example"})
        assert good.headers["access-control-allow-origin"] == "https://chat.example"
        response = served.client.get("/v1/models", headers=evil)
        assert "access-control-allow-origin" not in response.headers


def test_a_large_body_is_refused_with_or_without_its_length() -> None:
    """The limit holds for chunked bodies, and for a length that lies."""
    settings = ServerSettings(model_name=NAME, max_body_bytes=2000)
    with serving(always("x"), settings=settings) as served:
        json_type = {"content-type": "application/json"}
        big = b'{"messages": "' + b"a" * 5000 + b'"}'
        whole = served.client.post("/v1/chat/completions", content=big, headers=json_type)
        assert (whole.status_code, whole.json()["error"]["code"]) == (413, "body_too_large")

        def chunks() -> Any:
            yield from (big[start : start + 500] for start in range(0, len(big), 500))

        chunked = served.client.post("/v1/chat/completions", content=chunks(), headers=json_type)
        assert chunked.status_code == 413
        assert served.chat().status_code == 200


def test_request_ids_are_kept_or_made() -> None:
    """A sensible id comes back; another is replaced, so that none splits a log line."""
    with serving(always("x")) as served:
        kept = served.client.get("/health", headers={"x-request-id": "abc-1"})
        assert kept.headers["x-request-id"] == "abc-1"
        for odd in ("a b", "x" * 200, "", "<script>"):
            made = served.client.get("/health", headers={"x-request-id": odd})
            assert made.headers["x-request-id"].startswith("req_")
        assert served.chat(model="other").headers["x-request-id"].startswith("req_")


def test_neither_logs_nor_metrics_hold_a_prompt_or_a_key(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A log line names the path, status, duration and id."""
    caplog.set_level(logging.DEBUG)
    with serving(always("answer-text"), settings=KEYS, headers=bearer("first-key")) as served:
        assert served.chat("secret-prompt").status_code == 200
        assert served.chat("secret-prompt", max_tokens=10**6).status_code == 400
        served.client.get("/v1/models/secret-prompt")
        served.client.get("/secret-prompt?secret-prompt")
        seen = served.client.get("/metrics").text + caplog.text
    assert "POST /v1/chat/completions 200" in seen
    own = "\n".join(
        record.getMessage() for record in caplog.records if record.name.startswith("phi3ov")
    )
    for secret in ("secret-prompt", "answer-text", "first-key"):
        assert secret not in own
        assert secret not in served_metrics(seen)


def served_metrics(text: str) -> str:
    """Return the metrics' part of a text."""
    return "\n".join(line for line in text.splitlines() if "phi3ov:" in line)


def test_an_open_address_needs_a_key_or_a_word() -> None:
    """127.0.0.1 is free; 0.0.0.0 is not."""
    ListenSettings().require_safe(ServerSettings())
    ListenSettings(host="::1").require_safe(ServerSettings())
    ListenSettings(host="0.0.0.0").require_safe(KEYS)
    ListenSettings(host="0.0.0.0", no_auth=True).require_safe(ServerSettings())
    for host in ("0.0.0.0", "192.0.2.1", "::", "example.org"):
        with pytest.raises(OptionError, match="--no-auth"):
            ListenSettings(host=host).require_safe(ServerSettings())


def test_keys_come_from_a_file(tmp_path: Path) -> None:
    """One a line; a file without a key is an error, not a server without one."""
    file = tmp_path / "keys"
    file.write_text("# comment\n\none\n two \n", encoding="utf-8")
    assert read_api_keys(file) == ("one", "two")
    file.write_text("# comment\n", encoding="utf-8")
    with pytest.raises(OptionError, match="holds no key"):
        read_api_keys(file)
    with pytest.raises(OptionError, match="cannot be read"):
        read_api_keys(tmp_path / "missing")


@pytest.mark.parametrize(
    "fields",
    [
        {"api_keys": ("",)},
        {"api_keys": "key"},
        {"allowed_origins": ("*",)},
        {"max_body_bytes": 0},
        {"max_depth": 10**6},
        {"events_per_second": 0},
        {"max_tokens": 0},
        {"timeout_seconds": 0},
        {"ping_seconds": -1},
        {"default_temperature": float("nan")},
    ],
)
def test_settings_are_checked(fields: dict[str, Any]) -> None:
    """A setting out of its range names itself."""
    with pytest.raises(OptionError, match=next(iter(fields))):
        ServerSettings(**fields)


def test_every_setting_is_in_the_documentation() -> None:
    """The help and the page are made of the same table."""
    page = (Path(__file__).parents[3] / "docs" / "server" / "index.md").read_text(encoding="utf-8")
    for name, default, text in describe_settings():
        assert f"| `{name}` | `{default}` | {text} |" in page
        assert text.endswith(".")


def test_a_mounted_application_works_under_its_prefix() -> None:
    """Paths, keys and the health check are those below the prefix."""
    from starlette.applications import Starlette
    from starlette.routing import Mount

    from .serving import listening

    with serving(always("x"), settings=KEYS) as served:
        outer = Starlette(routes=[Mount("/llm", app=served.app)])
        with listening(outer) as url, httpx.Client(base_url=url) as client:
            assert client.get("/llm/health").status_code == 200
            assert client.get("/llm/v1/models").status_code == 401
            response = client.post(
                "/llm/v1/chat/completions", json=HELLO, headers=bearer("first-key")
            )
            assert response.status_code == 200
