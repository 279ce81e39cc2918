"""A conversation in a terminal or a pipe: reads messages and prints the answers."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..errors import OptionError, Phi3OVError
from .printing import write_line, write_text

if TYPE_CHECKING:
    from ..answer.reply import Reply
    from ..answer.stream import ReplyStream
    from ..chat import Phi3Chat
    from .line_editor import LineEditor

ReadMessage = Callable[[str], str]
"""Asks a question and returns a message; raises `EOFError` at the end of the input."""

_QUESTION = "\nyou> "
_COMMANDS = {
    "/help": "this list",
    "/reset": "forget the conversation; the system message stays",
    "/multiline": "Enter breaks the line and Alt-Enter sends; again: the other way round",
    "/exit": "end, as Ctrl-D does",
}


def is_interactive() -> bool:
    """Return whether the user can type: stdin is a terminal, and so is stdout or stderr."""
    return sys.stdin.isatty() and (sys.stdout.isatty() or sys.stderr.isatty())


def converse(chat: Phi3Chat, editor: LineEditor | None) -> None:
    """Read messages and answer them until the input ends.

    Args:
        chat: The conversation.
        editor: Reads from a terminal; None reads a message from each line of stdin.

    Raises:
        OptionError: A line of stdin is not text.
        KeyboardInterrupt: Ctrl-C while stdin is read without an editor.
    """
    read = read_piped_line if editor is None else editor.read
    while True:
        try:
            message = read(_QUESTION).strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            if editor is None:
                raise
            _note("(Ctrl-D ends)")
            continue
        if message == "/exit":
            return
        if message in _COMMANDS:
            _obey(message, chat, editor)
        elif message:
            try:
                reply = answer(chat, message)
            except Phi3OVError as error:
                write_line(f"phi3ov: {error}", stream=sys.stderr)
                continue
            _note(describe_reply(reply))


def _obey(command: str, chat: Phi3Chat, editor: LineEditor | None) -> None:
    if command == "/reset":
        chat.reset()
        _note("(forgotten)")
    elif command == "/help":
        for name, does in _COMMANDS.items():
            _note(f"{name:12} {does}")
    elif editor is None:
        _note("(/multiline is for a terminal: in a pipe each line is a message)")
    else:
        editor.multiline = not editor.multiline
        _note("(Alt-Enter sends)" if editor.multiline else "(Enter sends)")


def read_piped_line(question: str) -> str:
    """Return the next line of stdin; the question goes to stderr, because stdout is for answers.

    Raises:
        EOFError: stdin has ended.
        OptionError: The line is not text in stdin's encoding.
    """
    print(question, end="", file=sys.stderr, flush=True)
    stdin = getattr(sys.stdin, "buffer", sys.stdin)  # bytes: an error concerns one line only
    line: bytes | str = stdin.readline()
    if not line:
        raise EOFError
    if isinstance(line, str):
        return line
    encoding = sys.stdin.encoding
    try:
        return line.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise OptionError(
            f"stdin has a line that is not {encoding} text: {error}. Convert the input, or set "
            "PYTHONIOENCODING to its encoding."
        ) from error


def answer(chat: Phi3Chat, message: str, *, show: bool = True) -> Reply:
    """Stream one answer to stdout; Ctrl-C ends the answer and keeps its partial text."""
    stream = chat.stream(message)
    with _ctrl_c_cancels(stream):
        for piece in stream:
            if show:
                write_text(piece)
    if show:
        print()
    return stream.reply


@contextmanager
def _ctrl_c_cancels(stream: ReplyStream) -> Iterator[None]:
    """Let Ctrl-C cancel the answer, also if pressed repeatedly.

    `KeyboardInterrupt` is not raised during this time, because it could lose tokens in a read.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    before = signal.signal(signal.SIGINT, lambda *_: stream.cancel(keep=True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def describe_reply(reply: Reply) -> str:
    """Return an answer's figures on one line."""
    dropped = f", {reply.dropped_turns} oldest turns dropped" if reply.dropped_turns else ""
    accepted = ""
    if reply.usage.accepted_tokens:
        accepted = f", {reply.usage.tokens_per_pass:.2f} tokens per pass"
    return (
        f"({reply.finish_reason}; {reply.usage.prompt_tokens} tokens in, "
        f"{reply.usage.cached_tokens} of them cached, {reply.usage.completion_tokens} out; "
        f"first token after {reply.timings.first_token_seconds:.2f} s, "
        f"{reply.timings.tokens_per_second:.1f} tokens/s{accepted}{dropped})"
    )


def _note(text: str) -> None:
    write_line(text, style="dim", stream=sys.stderr)
