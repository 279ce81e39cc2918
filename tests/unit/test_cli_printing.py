"""What commands draw on a terminal, and what stays of it in a pipe."""

from __future__ import annotations

import io
import re
import sys

import pytest

from phi3ov.batch.runner import BatchProgress
from phi3ov.cli.printing import busy, make_console, write_facts, write_table
from phi3ov.cli.progress import batch_progress, export_progress
from phi3ov.exporter.progress import Phases

from .test_cli import Terminal

HEADERS = ("name", "size")
ROWS = [("a [bold]b[/bold]", "1"), ("\x1b[2J:smile:", "1,000")]


def open_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Make one terminal, which shows colours, of both output streams.

    Not a fixture: pytest puts its own streams back between the fixtures and the test.
    """
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    shown = Terminal()
    monkeypatch.setattr(sys, "stdout", shown)
    monkeypatch.setattr(sys, "stderr", shown)
    return shown


def visible(shown: Terminal) -> str:
    """Return what was written without colours and cursor moves."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.getvalue())


def test_a_table_in_a_pipe_is_columns_of_plain_text(capsys: pytest.CaptureFixture[str]) -> None:
    """With nothing behind the last column, and every character as it is."""
    write_table(HEADERS, [("a", "1"), ("bcdef", "1,000")], right="size")
    assert capsys.readouterr().out == "name    size\na          1\nbcdef  1,000\n"
    write_table(HEADERS, ROWS)
    assert "\x1b[2J:smile:" in capsys.readouterr().out


def test_a_table_on_a_terminal_has_a_frame_and_shows_its_cells_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither rich's markup nor an escape sequence in a cell is obeyed."""
    terminal = open_terminal(monkeypatch)
    write_table(HEADERS, ROWS, right="size")
    shown = visible(terminal)
    assert "━" in shown
    assert "│ a [bold]b[/bold]" in shown
    assert "\\x1b[2J:smile:" in shown
    assert "\x1b[2J" not in terminal.getvalue()


def test_facts_are_a_line_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names in bold on a terminal, and aligned in a pipe."""
    terminal = open_terminal(monkeypatch)
    write_facts({"source": "a\x1b[2J", "most context tokens": "9"})
    assert "a\\x1b[2J" in visible(terminal)
    assert "\x1b[1m" in terminal.getvalue()
    piped = io.StringIO()
    monkeypatch.setattr(sys, "stdout", piped)
    write_facts({"source": "a", "most context tokens": "9"})
    assert piped.getvalue() == f"source{' ' * 15}a\nmost context tokens  9\n"


def test_a_reader_that_goes_is_the_commands_business() -> None:
    """Rich would end the process with exit code 1; the command has 141 for that."""

    class Gone(Terminal):
        def write(self, _text: str) -> int:
            """Fail."""
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        make_console(Gone()).print("x")


def test_an_export_draws_a_bar_for_each_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    """And 100 % where it has ended."""
    terminal = open_terminal(monkeypatch)
    with export_progress(quiet=False) as progress:
        phases = Phases(progress)
        phases.begin("check")
        phases.begin("compress")
        assert list(phases.follow(range(3), "statistics")) == [0, 1, 2]
        phases.begin("verify")
    last = visible(terminal).rpartition("1/8 check")[2]
    assert re.search(r"5/8 compress.*100%", last)
    assert re.search(r"8/8 verify.*100%", last)


def test_a_batch_draws_one_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """With how many have failed."""
    terminal = open_terminal(monkeypatch)
    with batch_progress(quiet=False) as report:
        report(BatchProgress(done=1, failed=0, total=2))
        report(BatchProgress(done=2, failed=1, total=2))
    assert re.search(r"answers.*100%.*2 of 2, 1 failed", visible(terminal))


def test_progress_in_a_pipe_is_lines_and_none_when_quiet(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The first and the last of a batch, as the lines between come every ten seconds."""
    for quiet in (True, False):
        with batch_progress(quiet=quiet) as report, export_progress(quiet=quiet) as progress:
            assert progress is not quiet
            for done in range(1, 6):
                report(BatchProgress(done=done, failed=0, total=5))
    assert capsys.readouterr().err == "1 of 5 done, 0 failed\n5 of 5 done, 0 failed\n"


def test_what_takes_seconds_is_shown_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal only; escape sequences in a model's name are not obeyed."""
    terminal = open_terminal(monkeypatch)
    with busy("Loading a\x1b[2Jb"):
        pass
    assert "Loading a\\x1b[2Jb" in visible(terminal)
    piped = io.StringIO()
    monkeypatch.setattr(sys, "stderr", piped)
    with busy("Loading"):
        pass
    assert piped.getvalue() == ""
