"""A person at a terminal: types, pastes, interrupts and leaves. Run by ``test_cli.py``.

It is a program of its own because pexpect forks: a process that has PyTorch and OpenVINO loaded,
as pytest has, must not fork (its child dies by SIGSEGV before it runs anything).
"""

from __future__ import annotations

import sys

import pexpect


def main(command: list[str]) -> None:
    """Hold one conversation with ``command`` at a pseudo-terminal; any surprise is an error."""
    person = pexpect.spawn(
        command[0], command[1:], encoding="utf-8", timeout=120, dimensions=(50, 200)
    )
    person.expect("you>")
    person.send("/reet\x1b[D\x1b[Ds\r")  # two steps to the left, then a letter: /reset
    person.expect_exact("(forgotten)")
    person.expect("you>")
    person.send("\x1b[200~Write a long story.\nIt is about a lighthouse.\x1b[201~\r")
    person.expect_exact("\x1b[?2004l")  # the line is sent
    person.expect(r"\w+ \w+ \w+ \w+")  # the answer is under way
    person.send("\x03")
    person.expect(r"\(cancelled; \d+ tokens in")
    person.expect("you>")
    person.send("half a line\x03")
    person.expect_exact("(Ctrl-D ends)")
    person.expect("you>")
    person.send("\x04")
    person.expect(pexpect.EOF)
    person.close()
    assert person.exitstatus == 0


if __name__ == "__main__":
    main(sys.argv[1:])
