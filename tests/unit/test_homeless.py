"""Users without a home folder: which folders there are, and what is left out."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from phi3ov.artifact.download import download
from phi3ov.cli import chat as chat_command
from phi3ov.cli import line_editor
from phi3ov.errors import ExportError, OptionError
from phi3ov.runtime import tuning
from phi3ov.runtime.user_folders import user_folder
from phi3ov.thirdparty.home import has_home, home_assumed, leave_out_telemetry_without_home


@pytest.fixture(params=["raises", "tilde"])
def homeless(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No home folder, as newer and older platformdirs say it."""

    def no_home() -> NoReturn:
        raise RuntimeError("Could not determine home directory.")

    def ask(*_names: str, **_options: object) -> Path:
        if request.param == "raises":
            no_home()
        return Path("~/.local/share/phi3ov")

    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setattr("platformdirs.user_data_path", ask)
    monkeypatch.setattr("platformdirs.user_state_path", ask)


@pytest.mark.usefixtures("homeless")
def test_the_error_names_what_to_set() -> None:
    """HOME, or the variable of that kind of folder."""
    with pytest.raises(OptionError, match="Set HOME or XDG_DATA_HOME"):
        user_folder("data")
    with pytest.raises(OptionError, match="Set HOME or XDG_STATE_HOME"):
        user_folder("state")


@pytest.mark.usefixtures("homeless")
def test_loading_finds_no_tuned_settings_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing was kept there, so nothing is missing."""
    with caplog.at_level(logging.INFO, "phi3ov"):
        assert tuning.find_record(SimpleNamespace(), "fake") is None  # type: ignore[arg-type]
    assert "no home folder" in caplog.text


def test_a_home_that_cannot_be_read_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As HOME=/root under another user."""

    def refuse(_path: Path) -> NoReturn:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_dir", refuse)
    assert tuning.find_record(SimpleNamespace(), "fake") is None  # type: ignore[arg-type]
    assert "are not looked for" in caplog.text


@pytest.mark.usefixtures("homeless")
def test_the_conversation_goes_on_without_its_history(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command says that it is not kept."""
    paths: list[Path | None] = []

    def open_editor(*, history_path: Path | None) -> Any:
        paths.append(history_path)
        return SimpleNamespace(problem=None)

    monkeypatch.setattr(line_editor, "LineEditor", open_editor)
    monkeypatch.setattr(chat_command, "is_interactive", lambda: True)
    monkeypatch.setattr(chat_command, "converse", lambda *_arguments: None)
    chat_command._hold_conversation(SimpleNamespace(), keep_history=True)  # type: ignore[arg-type]
    assert paths == [None]
    assert "History is not kept: This user has no home folder" in capsys.readouterr().err


def test_nothing_is_downloaded_into_a_folder_called_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface-hub would make it in the current folder."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "~/.cache/huggingface/hub")
    with pytest.raises(ExportError, match=r"no home folder.*Set HF_HOME"):
        download("owner/name", revision=None, files=["config.json"])


@pytest.mark.usefixtures("homeless")
def test_tools_that_need_a_home_are_imported_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The telemetry is left out; while NNCF is imported there seems to be a home."""
    monkeypatch.delitem(sys.modules, "openvino_telemetry", raising=False)
    original = vars(Path)["home"]
    assert not has_home()
    with home_assumed():
        assert not Path.home().exists()
    assert vars(Path)["home"] is original
    leave_out_telemetry_without_home()
    assert sys.modules["openvino_telemetry"] is None


def test_with_a_home_nothing_is_changed() -> None:
    """The telemetry stays importable, and a home is what it was."""
    code = (
        "import sys, phi3ov, pathlib; from phi3ov.thirdparty.home import home_assumed\n"
        "home = pathlib.Path.home()\n"
        "with home_assumed(): assert pathlib.Path.home() == home\n"
        "print('openvino_telemetry' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "False\n"
