"""Which Python runs the worker, whatever program this process is."""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path

import pytest

from phi3ov.engine.worker.interpreter import find_interpreter
from phi3ov.errors import OptionError


@pytest.fixture
def no_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An embedding program: nothing that it says of itself is a Python; return its prefix."""
    program = tmp_path / "editor"
    program.touch()
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr("multiprocessing.spawn._python_exe", os.fsencode(program))
    for name in ("prefix", "base_prefix"):
        monkeypatch.setattr(sys, name, str(tmp_path))
    return tmp_path


def test_a_python_runs_itself() -> None:
    """The usual case."""
    assert find_interpreter() == sys.executable


def test_what_multiprocessing_was_told_counts(no_python: Path) -> None:
    """It is the standard library's own way to say where Python is."""
    named = no_python / "anything"
    multiprocessing.set_executable(str(named))
    assert find_interpreter() == str(named)


@pytest.mark.skipif(os.name == "nt", reason="interpreters have other places there")
def test_the_interpreter_of_the_same_version_is_found(no_python: Path) -> None:
    """One of another version would load packages that are not built for it."""
    binaries = no_python / "bin"
    binaries.mkdir()
    (binaries / "python2.7").touch()
    same = binaries / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    same.touch()
    assert find_interpreter() == str(same)


def test_where_there_is_none_the_error_names_what_to_set(no_python: Path) -> None:
    """And the engine that needs none."""
    with pytest.raises(
        OptionError, match=r"set_executable\(path\), or use engine='pipeline'"
    ) as no:
        find_interpreter()
    assert repr(str(no_python / "editor")) in str(no.value)
