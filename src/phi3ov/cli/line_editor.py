"""Reads messages from a terminal with prompt_toolkit: line editing, history and paste."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import Output, create_output

from ..runtime.user_folders import user_folder


class LineEditor:
    """Reads messages from a terminal.

    A pasted text is one message, with its line breaks. Enter sends and Alt-Enter breaks the line;
    in multi-line mode the two are swapped.

    Attributes:
        multiline: Whether Enter breaks the line.
        problem: Why the history is not saved; None if it is.
    """

    def __init__(
        self,
        *,
        history_path: Path | None,
        terminal_input: Input | None = None,
        terminal_output: Output | None = None,
    ) -> None:
        """Prepare the terminal.

        Args:
            history_path: The history file; None keeps the history until the program ends.
            terminal_input: Source of keys; None for stdin.
            terminal_output: Output of the edited line; None for stdout, or for stderr if stdout is
                not a terminal.
        """
        self.multiline = False
        self.problem: str | None = None
        if terminal_output is None and not sys.stdout.isatty():
            terminal_output = create_output(stdout=sys.stderr)
        self._session: PromptSession[str] = PromptSession(
            history=InMemoryHistory() if history_path is None else self._open(history_path),
            multiline=Condition(lambda: self.multiline),
            key_bindings=self._bind_keys(),
            prompt_continuation="...  ",
            input=terminal_input,
            output=terminal_output,
        )

    def read(self, question: str) -> str:
        """Return what the user typed or pasted.

        Raises:
            EOFError: Ctrl-D on an empty line, or the terminal was closed.
            KeyboardInterrupt: Ctrl-C.
        """
        return self._session.prompt(question)

    def _open(self, path: Path) -> History:
        history = _OwnerOnlyHistory(path)
        try:
            history.prepare()
        except OSError as error:
            self.problem = str(error)
            return InMemoryHistory()
        return history

    def _bind_keys(self) -> KeyBindings:
        bindings = KeyBindings()

        @bindings.add("escape", "enter", filter=Condition(lambda: not self.multiline))
        def break_line(event: KeyPressEvent) -> None:
            event.current_buffer.newline(copy_margin=False)

        return bindings


class _OwnerOnlyHistory(FileHistory):
    """History file that only its owner can read, on POSIX.

    A message that cannot be written stays in memory: a full disk must not end a conversation.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._path = path

    def prepare(self) -> None:
        """Create the file and its folder.

        Raises:
            OSError: They cannot be created or written.
        """
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path.touch(mode=0o600)
        self._path.chmod(0o600)  # an existing file may be readable by others
        self._path.open("ab").close()

    def load_history_strings(self) -> Iterable[str]:
        """Yield the messages, the newest first."""
        try:
            yield from super().load_history_strings()
        except OSError:
            return

    def store_string(self, string: str) -> None:
        """Append a message."""
        try:
            super().store_string(string)
        except (OSError, UnicodeEncodeError):  # the latter: input that is not UTF-8
            return


def default_history_path() -> Path:
    """Return the history file in the user's state folder.

    Raises:
        OptionError: The user has no home folder.
    """
    return user_folder("state") / "chat_history"
