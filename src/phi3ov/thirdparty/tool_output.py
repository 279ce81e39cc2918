"""Redirects warnings, log lines and progress bars of optimum, NNCF and transformers.

They are dropped or written to a file while phi3ov uses these tools, in the calling thread only.
Output of other threads appears as before, and no thread waits for another.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .overrides import original_of, replaced

_TOOLS = frozenset({"nncf", "optimum", "transformers", "openvino_tokenizers"})


class _ThisThread:
    """Warning filter pattern that matches every warning of the thread that created it."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    def match(self, _text: str) -> bool:
        """Tell Python's warning machinery whether the filter applies."""
        return threading.get_ident() == self._thread


@contextlib.contextmanager
def quiet_warnings() -> Iterator[None]:
    """Drop this thread's Python warnings while the block runs."""
    with _warning_action("ignore"):
        yield


@contextlib.contextmanager
def _warning_action(action: str) -> Iterator[None]:
    """Put a filter for this thread's warnings before all others."""
    entry: Any = (action, _ThisThread(), Warning, None, 0)
    warnings.filters.insert(0, entry)  # type: ignore[attr-defined]
    _forget_seen_warnings()
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # another thread may have restored its own list
            warnings.filters.remove(entry)  # type: ignore[attr-defined]
        _forget_seen_warnings()


def _forget_seen_warnings() -> None:
    """Make Python apply the filters again to warnings that it has already shown."""
    with warnings.catch_warnings():
        pass


_OWNERS_OF_BARS = ("transformers.utils.logging", "transformers.core_model_loading")
"""Modules of transformers with a name ``tqdm`` of their own. The first defines ``EmptyTqdm``."""


@contextlib.contextmanager
def quiet_tools(log: str | Path | None = None) -> Iterator[None]:
    """Silence optimum, NNCF and transformers, except for errors, in this thread.

    Args:
        log: A file to which their log lines and all Python warnings are appended; None drops
            them.
    """
    with contextlib.ExitStack() as stack:
        handler = None
        if log is not None:
            handler = logging.FileHandler(log, encoding="utf-8")
            handler.setFormatter(
                logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s")
            )
            stack.callback(handler.close)
        stack.enter_context(_warnings_to(handler))
        stack.enter_context(_log_lines_to(handler))
        owners = [importlib.import_module(name) for name in _OWNERS_OF_BARS]
        for owner in owners:
            stack.enter_context(replaced(owner, "tqdm", owners[0].EmptyTqdm))
        yield


@contextlib.contextmanager
def _warnings_to(handler: logging.Handler | None) -> Iterator[None]:
    if handler is None:
        with quiet_warnings():
            yield
        return

    def show(message: Any, category: type[Warning], filename: str, line: int, *_: Any) -> None:
        handler.handle(
            logging.LogRecord(
                "py.warnings", logging.WARNING, filename, line,
                f"{category.__name__}: {message} ({filename}:{line})", None, None,
            )
        )  # fmt: skip

    with _warning_action("default"), replaced(warnings, "showwarning", show):
        yield


@contextlib.contextmanager
def _log_lines_to(handler: logging.Handler | None) -> Iterator[None]:
    """Send the tools' log lines to ``handler``, and only errors to the previous handlers.

    phi3ov's own lines go to both.
    """
    original_handle = original_of(logging.Logger, "handle")
    original_enabled = original_of(logging.Logger, "isEnabledFor")
    least = logging.ERROR if handler is None else logging.INFO

    def is_enabled(logger: logging.Logger, level: int) -> bool:
        if _is_tool(logger.name):
            return level >= least and not logger.disabled
        return bool(original_enabled(logger, level))

    def handle(logger: logging.Logger, record: logging.LogRecord) -> None:
        ours = logger.name == "phi3ov"
        if not (_is_tool(logger.name) or ours):
            original_handle(logger, record)
            return
        if handler is not None:
            handler.handle(record)
        if ours or record.levelno >= logging.ERROR:
            original_handle(logger, record)

    with (
        replaced(logging.Logger, "isEnabledFor", is_enabled),
        replaced(logging.Logger, "handle", handle),
    ):
        yield


def _is_tool(logger_name: str) -> bool:
    return logger_name.partition(".")[0] in _TOOLS
