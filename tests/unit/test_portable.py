"""Windows and macOS, as far as Linux can tell: no call of one system is reached unguarded.

mypy knows which names a system lacks (``make check`` runs it for Windows and macOS); this test
also knows calls that exist and fail there, and wants a guard around each.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import phi3ov

SOURCE = Path(phi3ov.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))

MODULES = frozenset(
    {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty", "msvcrt"}
)
"""Modules that one system has."""

_OS = """
chown chroot fchmod fchown fork forkpty geteuid getegid getgid getgroups getloadavg getpgid
getpgrp getpriority getsid getuid kill killpg lchown mkfifo mknod nice openpty posix_fadvise
posix_fallocate posix_spawn pread preadv pwrite pwritev register_at_fork sched_getaffinity
sched_setaffinity sched_yield sendfile setgid setpgid setpriority setsid setuid statvfs sync
sysconf ttyname uname wait wait3 wait4 waitpid WNOHANG O_NOFOLLOW O_DIRECTORY O_NONBLOCK startfile
"""
_SIGNAL = """
SIGALRM SIGCHLD SIGCONT SIGHUP SIGKILL SIGPIPE SIGQUIT SIGSTOP SIGTSTP SIGUSR1 SIGUSR2 alarm pause
pthread_kill pthread_sigmask setitimer sigwait CTRL_BREAK_EVENT CTRL_C_EVENT
"""
NAMES = {
    "os": frozenset(_OS.split()),
    "signal": frozenset(_SIGNAL.split()),
    "mmap": frozenset({"MADV_DONTNEED", "MADV_WILLNEED", "MAP_PRIVATE", "MAP_SHARED", "PROT_READ"}),
    "socket": frozenset({"AF_UNIX", "SO_REUSEPORT"}),
    "time": frozenset({"clock_gettime", "tzset"}),
    "select": frozenset({"poll", "epoll", "kqueue"}),
    "sys": frozenset({"getwindowsversion"}),
}
METHODS = frozenset({"add_signal_handler", "madvise", "mkfifo"})
"""Methods that a system lacks, of any object."""

EXITS = (ast.Return, ast.Raise, ast.Continue, ast.Break)


def asks_for_the_system(test: ast.expr) -> bool:
    """Whether a condition looks at the system, or at whether a name is there."""
    text = ast.unparse(test)
    return any(part in text for part in ("sys.platform", "os.name", "hasattr(", "IS_WINDOWS"))


def is_caught(handler: ast.ExceptHandler) -> bool:
    """Whether a handler takes what a missing name or call raises."""
    caught = "" if handler.type is None else ast.unparse(handler.type)
    wanted = ("AttributeError", "ImportError", "NotImplementedError")
    return any(name in caught for name in wanted)


def uses(node: ast.AST) -> str | None:
    """Return the name of a call or constant that one system lacks; None for other nodes."""
    found: Iterable[str] = ()
    if isinstance(node, ast.Import):
        found = MODULES & {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and not node.level:
        lacking = NAMES.get(node.module or "", frozenset[str]())
        found = MODULES & {node.module} or lacking & {alias.name for alias in node.names}
    elif isinstance(node, ast.Attribute):
        owner = node.value.id if isinstance(node.value, ast.Name) else ""
        found = (NAMES.get(owner, frozenset[str]()) | METHODS) & {node.attr}
    elif isinstance(node, ast.Call) and ast.unparse(node) == "ctypes.CDLL(None)":
        found = ("ctypes.CDLL(None)",)
    return next(iter(found), None)


def unguarded(body: list[ast.stmt] | ast.AST, *, guarded: bool = False) -> Iterator[str]:
    """Yield what stands without a guard: in a list of statements, or in a node."""
    if isinstance(body, list):
        for statement in body:
            yield from unguarded(statement, guarded=guarded)
            if isinstance(statement, ast.If) and asks_for_the_system(statement.test):
                guarded = guarded or isinstance(statement.body[-1], EXITS)
        return
    name = uses(body)
    if name is not None and not guarded:
        yield f"line {getattr(body, 'lineno', '?')}: {name}"
    if isinstance(body, ast.If | ast.IfExp) and asks_for_the_system(body.test):
        guarded = True
    if isinstance(body, ast.BoolOp) and any(map(asks_for_the_system, body.values)):
        guarded = True
    if isinstance(body, ast.Try) and any(map(is_caught, body.handlers)):
        guarded = True
    for _, value in ast.iter_fields(body):
        if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
            yield from unguarded(value, guarded=guarded)
        else:
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from unguarded(child, guarded=guarded)


@pytest.mark.parametrize(
    "path", FILES, ids=lambda path: path.relative_to(SOURCE).as_posix().removesuffix(".py")
)
def test_no_call_of_one_system_is_reached_unguarded(path: Path) -> None:
    """A guard asks for the system or the name, or catches its absence."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert list(unguarded(tree.body)) == []


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ("import os\nos.fork()", 1),
        ("import fcntl", 1),
        ("from signal import SIGKILL", 1),
        ("def f(loop):\n    loop.add_signal_handler(1, f)", 1),
        ("import os\nif hasattr(os, 'fork'):\n    os.fork()", 0),
        ("import os, sys\nif sys.platform != 'win32' and x:\n    os.kill(1, 2)", 0),
        (
            "def f():\n    if sys.platform == 'win32':\n        return\n    os.wait()",
            0,
        ),
        (
            "def f():\n    if sys.platform == 'win32':\n        pass\n    os.wait()",
            1,
        ),
        ("try:\n    import fcntl\nexcept ImportError:\n    fcntl = None", 0),
        ("try:\n    import fcntl\nexcept ValueError:\n    fcntl = None", 1),
        ("import os\nx = os.name == 'posix' and os.getppid()", 0),
        ("import os\nx = os.getuid() if hasattr(os, 'getuid') else 0", 0),
        ("import ctypes\nctypes.CDLL(None)", 1),
    ],
)
def test_the_check_finds_what_it_is_for(code: str, count: int) -> None:
    """And lets guarded calls through."""
    assert len(list(unguarded(ast.parse(code).body))) == count
