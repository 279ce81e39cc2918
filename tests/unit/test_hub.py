"""The hub's client has many libraries underneath; what they raise is told by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import pytest
from huggingface_hub import errors

from phi3ov import Artifact, ExportError, fetch_artifact, push_to_hub
from phi3ov.artifact.folder import record_files

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
