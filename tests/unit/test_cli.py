"""What every command of ``phi3ov`` has in common: help, exit codes, colours, completion."""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
from importlib import import_module

import pytest

from phi3ov.cli import COMMANDS, devices, main
from phi3ov.cli.printing import bold, print_json
from phi3ov.errors import OptionError


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Say so."""
        return True


def fail_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``phi3ov devices`` raise."""

    def run(_options: argparse.Namespace) -> None:
        raise error

    monkeypatch.setattr(devices, "run", run)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_ends_with_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A command's help shows how it is called, by its own name, with arguments that it takes."""
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    module = import_module(f"phi3ov.cli.{command}")
    said = capsys.readouterr().out
    assert said.endswith(f"\nExample: {module.EXAMPLE}\n"), "as it is to be typed, on one line"
    assert module.EXAMPLE.startswith(f"phi3ov {command}")


def test_a_named_error_is_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the library refuses is one line on stderr; --debug adds the traceback."""
    fail_with(OptionError("x=1 is wrong."), monkeypatch)
    assert main(["devices"]) == 1
    assert capsys.readouterr() == ("", "phi3ov: x=1 is wrong.\n")
    assert main(["--debug", "devices"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("Traceback")
    assert said.endswith("\nphi3ov: x=1 is wrong.\n")


def test_wrong_usage_is_exit_code_2() -> None:
    """An unknown command or option is argparse's 2."""
    with pytest.raises(SystemExit) as stopped:
        main(["devices", "--jsno"])
    assert stopped.value.code == 2


def test_a_defect_is_exit_code_3_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An error that nobody foresaw says how to see its traceback; --debug shows it."""
    fail_with(KeyError("odd"), monkeypatch)
    assert main(["devices"]) == 3
    said = capsys.readouterr().err
    assert said.startswith("phi3ov: unexpected KeyError: 'odd'.")
    assert "--debug" in said
    assert "Traceback" not in said
    assert main(["--debug", "devices"]) == 3
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_is_exit_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends a command as it ends others."""
    fail_with(KeyboardInterrupt(), monkeypatch)
    assert main(["devices"]) == 130


def test_a_reader_that_goes_is_exit_code_141() -> None:
    """``phi3ov ... | head`` ends without a word when ``head`` has seen enough."""
    code = (
        "import sys; from phi3ov.cli import main; input(); sys.exit(main(['completion', 'bash']))"
    )
    pytest.importorskip("shtab")
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    process.stdin.write("go\n")
    process.stdin.close()
    said = process.stderr.read()
    process.stderr.close()
    assert (process.wait(timeout=60), said) == (141, "")


def test_emphasis_is_for_terminals_that_want_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Escape codes go to a terminal only, and not where NO_COLOR or TERM=dumb says otherwise."""
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WT_SESSION", "1")  # on Windows: a terminal that shows them
    assert bold("x", Terminal()) == "\x1b[1mx\x1b[0m"
    assert bold("x", io.StringIO()) == "x"
    monkeypatch.setenv("TERM", "dumb")
    assert bold("x", Terminal()) == "x"
    monkeypatch.delenv("TERM")
    monkeypatch.setenv("NO_COLOR", "1")
    assert bold("x", Terminal()) == "x"


def test_json_refuses_what_has_no_form_in_it() -> None:
    """A value that JSON does not know is an error, not its repr."""
    with pytest.raises(TypeError, match="object has no form in JSON"):
        print_json({"x": object()})


def test_completion_knows_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    """The script for bash is one that bash reads, and holds the commands."""
    pytest.importorskip("shtab")
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert f"_subparsers=({' '.join(COMMANDS)})" in script
    if shell := shutil.which("bash"):
        subprocess.run([shell, "-n"], input=script.encode(), check=True, timeout=60)


def test_completion_without_its_package_names_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without shtab the error says what to install."""
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 1
    assert 'pip install "phi3ov[completion]"' in capsys.readouterr().err
