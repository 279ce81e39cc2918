"""The hub's client has many libraries underneath; what they raise is told by name."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import huggingface_hub
import pytest
from huggingface_hub import errors

from phi3ov import Artifact, ExportError, fetch_artifact, push_to_hub
from phi3ov.artifact.folder import Manifest, record_files

from .test_artifact import CONFIG_TEXT, write_manifest

FAILURES: list[Exception] = [
    httpx.ConnectError("no route"),
    httpx.ReadTimeout("too slow"),
    errors.HFValidationError("bad id"),
    PermissionError("read only"),
    RuntimeError("xet: no route"),
]


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    """A whole artifact of one file."""
    folder = tmp_path / "phi3"
    folder.mkdir()
    (folder / "config.json").write_text(CONFIG_TEXT, encoding="utf-8")
    write_manifest(folder, record_files(folder))
    return Artifact.open(folder)


@pytest.mark.parametrize("error", FAILURES, ids=lambda one: type(one).__name__)
def test_whatever_fails_while_publishing_is_an_export_error(
    error: Exception, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the repository's name, with the cause."""

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", fail)
    said = f"me/phi3 could not be published to: {type(error).__name__}: {error}"
    with pytest.raises(ExportError, match=said) as caught:
        push_to_hub(artifact, "me/phi3")
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", FAILURES, ids=lambda one: type(one).__name__)
def test_whatever_fails_while_fetching_is_an_export_error(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the way out; nothing of httpx reaches a caller who never asked for it."""

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ExportError, match="me/phi3") as caught:
        fetch_artifact("me/phi3")
    assert caught.value.__cause__ is error


def refusal(kind: type[errors.HfHubHTTPError], status: int, said: str) -> errors.HfHubHTTPError:
    """Return an error as the hub's client makes it of a response."""
    request = httpx.Request("GET", "https://huggingface.co/api/models/microsoft/phi")
    response = httpx.Response(status, request=request)
    return kind(f"{status} Client Error", response=response, server_message=said)


@pytest.mark.trap(
    "An expired token, which the hub refuses for public models too, is named, with the hub's own "
    "sentence and what to do.",
    about="Exporting",
)
@pytest.mark.parametrize("kind", [errors.RepositoryNotFoundError, errors.HfHubHTTPError])
def test_an_expired_token_is_not_a_missing_model(
    kind: type[errors.HfHubHTTPError], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a token, 401 means that there is no such model, or none that strangers see."""
    said = 'User Access Token "work" is expired'

    def fail(*_: Any, **__: Any) -> None:
        raise refusal(kind, 401, said)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_secret")
    expected = rf"me/phi3: the hub refuses your token: {said}\. Renew or remove HF_TOKEN"
    with pytest.raises(ExportError, match=expected) as caught:
        fetch_artifact("me/phi3")
    assert "hf_secret" not in str(caught.value)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(ExportError, match=r"no such model|could not be downloaded"):
        fetch_artifact("me/phi3")


@pytest.mark.trap(
    "The folders of your machine stay on it: manifest, model card and commit message of a "
    "published model name a local checkpoint by its folder's name alone.",
    about="Publishing",
)
@pytest.mark.parametrize(
    "source", ["/home/alice/acme-secret/phi3", r"C:\Users\alice\acme-secret\phi3"]
)
def test_no_local_path_is_published(
    source: str, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an export by an earlier version, whose manifest holds the whole path."""
    write_manifest(artifact.path, record_files(artifact.path), source=source, commit=None)
    sent: dict[str, Any] = {}

    def commit(_api: object, repo_id: str, **options: Any) -> Any:
        sent.update(options, repo_id=repo_id)
        return SimpleNamespace(commit_url="https://hub/commit")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda *_, **__: None)
    monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", commit)
    push_to_hub(Artifact.open(artifact.path), "me/phi3")
    files = {
        file.path_in_repo: file.path_or_fileobj
        if isinstance(file.path_or_fileobj, bytes)
        else Path(str(file.path_or_fileobj)).read_bytes()
        for file in sent["operations"]
    }
    assert files.keys() == {"README.md", "config.json", "phi3ov.json"}
    assert not [name for name, content in files.items() if b"alice" in content]
    assert sent["commit_message"] == "Export of phi3 with phi3ov"
    assert Manifest.from_json(files["phi3ov.json"].decode()).source == "phi3"
