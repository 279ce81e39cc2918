"""``phi3ov chat``: what is typed, pasted or piped, and what a terminal shows of the answer."""

from __future__ import annotations

import io
import json
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from phi3ov import LoraAdapter, Phi3Chat, Phi3Model
from phi3ov.answer.token_stream import TokenRequest
from phi3ov.cli import main
from phi3ov.cli.conversation import converse
from phi3ov.cli.line_editor import LineEditor
from phi3ov.cli.printing import escape_controls
from phi3ov.runtime.settings import Setting

from .fakes import MINI, Answer, FakeEngine, answer_ids, make_model
from .test_cli import Terminal

HELLO = answer_ids("hello the user")
EVIL = "\x1b]0;title\x07 \x1b]52;c;aGk=\x07 \x1b[2A \r\x9b1m \u202e over"
"""Sets the window's title, writes the clipboard, moves the cursor, turns the text around."""

Load = Callable[..., list[dict[str, Any]]]


class Stdin(io.TextIOWrapper):
    """Piped bytes."""

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="utf-8", errors="surrogateescape")


class Script:
    """An editor that returns lines and raises errors in turn, then ends."""

    def __init__(self, *steps: str | BaseException) -> None:
        self.multiline = False
        self._steps = iter([*steps, EOFError()])

    def read(self, _question: str) -> str:
        """Take the next step."""
        step = next(self._steps)
        if isinstance(step, BaseException):
            raise step
        return step


@contextmanager
def editor(history_path: Path | None = None) -> Iterator[tuple[LineEditor, PipeInput]]:
    """An editor, and the keyboard in front of it."""
    with create_pipe_input() as keyboard:
        yield (
            LineEditor(
                history_path=history_path,
                terminal_input=keyboard,
                terminal_output=DummyOutput(),
            ),
            keyboard,
        )


def typed(keys: str, history_path: Path | None = None, *, multiline: bool = False) -> str:
    """Return the message that keys make."""
    with editor(history_path) as (line_editor, keyboard):
        line_editor.multiline = multiline
        keyboard.send_text(keys)
        return line_editor.read("you> ")


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """Let the command load a model that answers by a function; returns what it was asked for."""

    def use(answer: Callable[[TokenRequest], Answer] = lambda _: Answer(HELLO)) -> Any:
        asked: list[dict[str, Any]] = []

        def load_model(_path: str, **options: Any) -> Phi3Model:
            asked.append(options)
            return make_model(FakeEngine(answer))

        monkeypatch.setattr("phi3ov.loading.load_model", load_model)
        return asked

    return use


@pytest.fixture
def prompts(load: Load) -> list[str]:
    """The messages that a model is asked, as text; it greets each time."""
    seen: list[str] = []

    def answer(request: TokenRequest) -> Answer:
        text = MINI.official.decode(list(request.prompt_ids), skip_special_tokens=False)
        seen.append(text.rpartition("<|user|>")[2].partition("<|end|>")[0].strip())
        return Answer(HELLO)

    load(answer)
    return seen


# --------------------------------------------------------------------------- typing
@pytest.mark.trap(
    "Arrow keys move the cursor; they are not sent as text.",
    about="Terminal",
)
def test_arrows_move_the_cursor() -> None:
    """Left, left, a letter, Home, another letter."""
    assert typed("wold\x1b[D\x1b[Dr\x1b[HA \r") == "A world"


@pytest.mark.trap(
    "A text that is pasted at the terminal is one message, with its line breaks and of any "
    "length; nothing is cut at 4 095 bytes.",
    about="Terminal",
)
@pytest.mark.parametrize("size", [1, 30_000])
def test_a_pasted_text_is_one_message_of_any_length(size: int) -> None:
    """With its line breaks; nothing is cut at the 4 095 bytes of a terminal's line."""
    text = "line one\r\nline two\n" + "x" * size
    assert typed(f"\x1b[200~{text}\x1b[201~\r") == text.replace("\r\n", "\n")


def test_enter_and_alt_enter_change_their_places_in_multi_line_mode() -> None:
    """One of them sends, the other breaks the line."""
    assert typed("a\x1b\rb\r") == "a\nb"
    assert typed("a\rb\x1b\r", multiline=True) == "a\nb"


def test_ctrl_d_ends_and_ctrl_c_interrupts() -> None:
    """As in any shell."""
    with pytest.raises(EOFError):
        typed("\x04")
    with pytest.raises(KeyboardInterrupt):
        typed("half a line\x03")


def test_the_next_conversation_finds_what_was_typed(tmp_path: Path) -> None:
    """The arrow up brings it back; the file is for its owner alone."""
    path = tmp_path / "state" / "phi3ov" / "history"
    assert typed("first\r", path) == "first"
    assert typed("\x1b[200~two\nlines\x1b[201~\r", path) == "two\nlines"
    assert typed("\x1b[A\r", path) == "two\nlines"
    if os.name != "nt":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        path.chmod(0o644)
        assert typed("again\r", path) == "again"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_history_that_cannot_be_kept_is_reported_and_does_not_stop_anything(
    tmp_path: Path,
) -> None:
    """A read-only home, a full disk, a byte that is not UTF-8."""
    (tmp_path / "file").write_text("", encoding="utf-8")
    with editor(tmp_path / "file" / "history") as (line_editor, keyboard):
        assert "file" in str(line_editor.problem)
        keyboard.send_text("hi\r")
        assert line_editor.read("you> ") == "hi"
    path = tmp_path / "history"
    with editor(path) as (line_editor, keyboard):
        assert line_editor.problem is None
        path.unlink()
        path.mkdir()
        keyboard.send_text("hi\r")
        assert line_editor.read("you> ") == "hi"
    with editor(tmp_path / "other") as (line_editor, keyboard):
        keyboard.send_bytes(b"caf\xe9\r")
        assert line_editor.read("you> ") == "caf\udce9"


def converse_by(*steps: str | BaseException, answers: Any = None) -> Script:
    """Hold a conversation by a script."""
    script = Script(*steps)
    with make_model(FakeEngine(answers or (lambda _: Answer(HELLO)))) as model:
        converse(Phi3Chat(model), script)  # type: ignore[arg-type]
    return script


def test_ctrl_c_at_the_question_keeps_the_conversation(capsys: pytest.CaptureFixture[str]) -> None:
    """It gives up the line only."""
    converse_by("hi", KeyboardInterrupt(), "hi again")
    out, err = capsys.readouterr()
    assert out == "hello the user\n" * 2
    assert "(Ctrl-D ends)" in err


@pytest.mark.trap(
    "A byte that is not text is an error of that message; the conversation goes on.",
    about="Terminal",
)
def test_an_undecodable_byte_at_a_terminal_is_an_error_of_that_message(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The terminal hands it on as half a character; the next message is answered."""
    converse_by("caf\udce9", "hi")
    out, err = capsys.readouterr()
    assert out == "hello the user\n"
    assert err.startswith("phi3ov: ")


def test_the_commands_of_a_conversation(capsys: pytest.CaptureFixture[str]) -> None:
    """They are not messages; /multiline goes there and back, /exit ends."""
    assert converse_by("/multiline").multiline
    assert not converse_by("/multiline", "/multiline").multiline
    assert capsys.readouterr().out == ""
    converse_by("/help", " /reset ", "/exit", "never asked")
    out, err = capsys.readouterr()
    assert out == ""
    for name in ("/help", "/reset", "/multiline", "/exit", "(forgotten)"):
        assert name in err


def test_ctrl_c_cancels_the_answer_however_often_it_is_pressed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The partial answer stays in the conversation, which goes on."""

    def answer(request: TokenRequest) -> Answer:
        if len(request.prompt_ids) > 24:  # the second turn
            return Answer(HELLO)
        while signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            time.sleep(0.001)
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)
        return Answer(HELLO[:-1], endless=True)

    with make_model(FakeEngine(answer)) as model:
        chat = Phi3Chat(model)
        converse(chat, Script("a long question, with many words", "hi"))  # type: ignore[arg-type]
    assert len(chat.messages) == 4
    assert "(cancelled;" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_answers_outside_the_main_thread_need_no_signal_handler(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A program may run the command on a thread, where Python allows no handler."""
    thread = threading.Thread(target=converse_by, args=("hi",))
    thread.start()
    thread.join(30)
    assert capsys.readouterr().out == "hello the user\n"


# --------------------------------------------------------------------------- pipes and files
def test_a_pipe_is_one_message_a_line_of_any_length(
    prompts: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mark before UTF-8 and Windows' line ends are not part of it."""
    long = "a b " * 500
    monkeypatch.setattr(sys, "stdin", Stdin(f"\ufeffone\r\n{long}\n/multiline\nend".encode()))
    assert main(["chat", "m"]) == 0
    assert prompts == ["one", long.strip(), "end"]
    assert capsys.readouterr().out == "hello the user\n" * 3


def test_a_line_that_is_not_text_is_a_clean_error(
    prompts: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What came before it has been answered; the exit code is that of a user's error."""
    monkeypatch.setattr(sys, "stdin", Stdin(b"one\ncaf\xe9\n"))
    assert main(["chat", "m"]) == 1
    assert prompts == ["one"]
    assert "phi3ov: stdin has a line that is not utf-8 text" in capsys.readouterr().err


def test_a_message_comes_from_a_file_or_from_stdin(
    prompts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a whole, alone or behind the message of the command line."""
    file = tmp_path / "question.txt"
    file.write_text("two\n\nparagraphs\n", encoding="utf-8")
    piped = b"from\na pipe\n"
    for arguments in (
        ["--file", str(file)],
        ["Sum up:", "--file", str(file)],
        ["-"],
        ["--file", "-"],
        ["Sum up:", "--file=-"],
        ["-", "--file", str(file)],
    ):
        monkeypatch.setattr(sys, "stdin", Stdin(piped))
        assert main(["chat", "m", *arguments]) == 0
    assert prompts == [
        "two\n\nparagraphs",
        "Sum up:\n\ntwo\n\nparagraphs",
        "from\na pipe",
        "from\na pipe",
        "Sum up:\n\nfrom\na pipe",
        "from\na pipe\n\n\ntwo\n\nparagraphs",
    ]


@pytest.mark.parametrize("arguments", [["-"], ["--file", "-"], ["--file", "bad.txt"]])
def test_a_file_that_is_not_text_is_a_clean_error(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Found before the model is loaded."""
    monkeypatch.setattr("phi3ov.loading.load_model", lambda *_, **__: pytest.fail("loaded"))
    monkeypatch.chdir(tmp_path)
    Path("bad.txt").write_bytes(b"caf\xe9")
    monkeypatch.setattr(sys, "stdin", Stdin(b"caf\xe9"))
    assert main(["chat", "m", *arguments]) == 1
    assert "cannot be read as" in capsys.readouterr().err


def test_two_messages_from_one_stdin_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong usage."""
    with pytest.raises(SystemExit) as stopped:
        main(["chat", "m", "-", "--file", "-"])
    assert stopped.value.code == 2
    assert "cannot both be -" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options", [["--regex", "a", "--choice", "b"], ["--prompt-lookup", "--draft", "d"]]
)
def test_options_that_exclude_each_other_are_wrong_usage(options: list[str]) -> None:
    """Each names a shape, or a proposer; there can be one."""
    with pytest.raises(SystemExit) as stopped:
        main(["chat", "m", "hi", *options])
    assert stopped.value.code == 2


# --------------------------------------------------------------------------- options
def test_every_sampling_option_reaches_the_engine(load: Load) -> None:
    """By its own name and value."""
    asked: list[TokenRequest] = []

    def answer(request: TokenRequest) -> Answer:
        asked.append(request)
        return Answer(HELLO)

    load(answer)
    numbers = {
        "temperature": 0.5,
        "top_p": 0.75,
        "top_k": 7,
        "min_p": 0.25,
        "seed": 3,
        "repetition_penalty": 1.25,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "max_new_tokens": 9,
    }
    options = [f"--{name.replace('_', '-')}={value}" for name, value in numbers.items()]
    assert main(["chat", "m", "hi", *options]) == 0
    [request] = asked
    sampling = getattr(request, "sampling", request)
    found = {name: getattr(sampling, name, getattr(request, name, None)) for name in numbers}
    assert found == numbers


def test_a_stop_text_ends_the_answer(load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    """The first that comes, without it."""
    load()
    assert main(["chat", "m", "hi", "--stop", "user", "--stop", " the"]) == 0
    assert capsys.readouterr().out == "hello\n"


def test_a_sampling_option_that_would_do_nothing_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing is accepted and ignored."""
    assert main(["chat", "m", "hi", "--top-p", "0.5"]) == 1
    assert "temperature" in capsys.readouterr().err


def test_options_of_loading_reach_the_loader(load: Load) -> None:
    """Those that are given; the rest is the loader's own choice."""
    asked = load()
    assert main(["chat", "m", "hi"]) == 0
    options = ["--adapter=poet", "--cache-dir=cache", "--context-tokens=9", "--threads=2"]
    assert main(["chat", "m", "hi", "--engine=worker", "--device=GPU.1", *options]) == 0
    plain, chosen = asked
    assert (plain["adapter"], plain["config"].cache_dir) == (None, None)
    assert chosen["adapter"] == LoraAdapter(path=Path("poet"))
    assert (chosen["config"].cache_dir, chosen["config"].threads) == (Path("cache"), 2)
    assert (chosen["context_tokens"], chosen["engine"]) == (9, "worker")
    assert chosen["device"] == ("GPU.1",)


def test_verbose_adds_settings_and_figures_on_stderr(
    load: Load, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The answer alone is on stdout."""
    load()
    setting = Setting(name="NUM_STREAMS", value="1", chosen_by="phi3ov", reason="one chat")
    monkeypatch.setattr(Phi3Model, "settings", (setting,))
    assert main(["chat", "m", "hi"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["chat", "m", "hi", "--verbose"]) == 0
    out, err = capsys.readouterr()
    assert out == "hello the user\n"
    assert "CPU: fake" in err
    assert "NUM_STREAMS=1 (one chat)" in err
    assert "tokens/s" in err


# --------------------------------------------------------------------------- what is shown
@pytest.mark.trap(
    "Escape sequences in an answer (window title, clipboard, cursor) are shown on a terminal and "
    "not obeyed; pipes and JSON have the exact text.",
    about="Terminal",
)
def test_a_terminal_shows_what_a_model_says_and_does_not_obey_it(
    load: Load, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a pipe and in JSON it is exact."""
    load(lambda _request: Answer(answer_ids(EVIL)))
    assert main(["chat", "m", "hi"]) == 0
    assert capsys.readouterr().out == f"{EVIL}\n"
    assert main(["chat", "m", "hi", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == EVIL
    shown = Terminal()
    monkeypatch.setattr(sys, "stdout", shown)
    assert main(["chat", "m", "hi"]) == 0
    assert shown.getvalue() == (
        "\\x1b]0;title\\x07 \\x1b]52;c;aGk=\\x07 \\x1b[2A \\x0d\\x9b1m \\u202e over\n"
    )


def test_a_file_name_does_not_reach_the_terminal_raw(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors name values of others."""
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    assert main(["verify", "no\x1b[2Jfolder"]) == 1
    assert "\x1b" not in shown.getvalue()
    assert "no\\x1b[2Jfolder" in shown.getvalue()


@given(st.text())
def test_only_what_acts_on_a_terminal_is_escaped(text: str) -> None:
    """Line feeds, tabs and every visible character stay; no control character does."""
    shown = escape_controls(text)
    assert not any((ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0) and c not in "\n\t" for c in shown)
    printable = "".join(c for c in text if c.isprintable() or c in "\n\t")
    assert escape_controls(printable) == printable
