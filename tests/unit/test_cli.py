"""What every command of ``phi3ov`` has in common: help, exit codes, colours, completion."""

from __future__ import annotations

import ast
import io
import os
import shutil
import subprocess
import sys
from importlib import import_module

import pytest

from phi3ov.cli import COMMANDS, devices, main
from phi3ov.cli.printing import print_json, write_line
from phi3ov.errors import OptionError


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Say so."""
        return True


def fail_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``phi3ov devices`` raise."""

    def run() -> None:
        """Raise."""
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
    """An unknown command or option is exit code 2."""
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
        "import sys; from phi3ov.cli import devices, main; input();"
        "devices.describe_devices = lambda: (); sys.exit(main(['devices']))"
    )
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

    def written_to(stream: io.StringIO) -> str:
        write_line("x", style="bold", stream=stream)
        return stream.getvalue()

    assert written_to(Terminal()) == "\x1b[1mx\x1b[0m\n"
    assert written_to(io.StringIO()) == "x\n"
    monkeypatch.setenv("TERM", "dumb")
    assert written_to(Terminal()) == "x\n"
    monkeypatch.delenv("TERM")
    monkeypatch.setenv("NO_COLOR", "1")
    assert written_to(Terminal()) == "x\n"


@pytest.mark.parametrize("no_color", ["", "1"])
def test_help_and_usage_errors_are_plain_text_in_a_pipe_and_with_no_color(
    no_color: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames and colours are for a terminal that shows them; both streams count."""
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", "xterm")
    streams = {"stdout": Terminal(), "stderr": Terminal()}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    for arguments in (["--help"], ["devices", "--help"], ["devices", "--jsno"]):
        with pytest.raises(SystemExit):
            main(arguments)
    for stream in streams.values():
        assert ("─" in stream.getvalue()) is (no_color == "")
        assert stream.getvalue().isascii() is (no_color == "1")
    piped = io.StringIO()
    monkeypatch.setattr(sys, "stdout", piped)
    with pytest.raises(SystemExit):
        main(["devices", "--help"])
    assert piped.getvalue().isascii()


def test_the_help_explains_positional_arguments_once(capsys: pytest.CaptureFixture[str]) -> None:
    """In any pair of typer and click, of which some lose the text and some write it twice."""
    with pytest.raises(SystemExit):
        main(["batch", "--help"])
    assert capsys.readouterr().out.count("the JSONL file to write or to continue") == 1


def test_missing_streams_are_not_a_defect() -> None:
    """Under ``pythonw`` or with a closed descriptor, Python sets a stream to None."""
    code = (
        "import sys; sys.stdin = sys.stdout = sys.stderr = None;"
        "from phi3ov.cli import main; sys.exit(main(['verify', 'no-such-folder']))"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert done.returncode == 1


def test_the_library_and_the_help_import_only_what_they_need() -> None:
    """The library imports nothing of the command, and help in a pipe neither rich nor OpenVINO."""
    code = (
        "import sys, phi3ov; library = {*sys.modules}; from phi3ov.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print(sorted(library), sorted(sys.modules), sep='\\n')"
    )
    command = [sys.executable, "-c", code]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    library, helping = (set(ast.literal_eval(line)) for line in said.splitlines()[-2:])
    assert not library & {"typer", "rich", "click", "prompt_toolkit"}
    assert not helping & {"rich", "prompt_toolkit", "openvino", "torch", "transformers", "numpy"}


def test_json_refuses_what_has_no_form_in_it() -> None:
    """A value that JSON does not know is an error, not its repr."""
    with pytest.raises(TypeError, match="object has no form in JSON"):
        print_json({"x": object()})


def complete(*arguments: str, **environment: str) -> str:
    """Run the command as a shell's completion does, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "phi3ov", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout


def test_completion_knows_every_command() -> None:
    """The script for bash asks the command itself, which answers with its commands."""
    asked = {"_PHI3OV_COMPLETE": "complete_bash", "COMP_CWORD": "1"}
    assert tuple(complete(COMP_WORDS="phi3ov ", **asked).split()) == COMMANDS
    asked["COMP_CWORD"] = "3"
    assert complete(COMP_WORDS="phi3ov export --preset a", **asked).split() == ["accurate"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_script_for_completion_is_one_that_bash_reads() -> None:
    """``phi3ov --show-completion`` prints it."""
    script = complete("--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert "complete -o default" in script
    subprocess.run(["bash", "-n"], input=script.encode(), check=True, timeout=60)
