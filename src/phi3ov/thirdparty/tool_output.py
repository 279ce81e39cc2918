"""Keeping the bars, warnings and log lines of torch's side of the stack off the terminal."""

from __future__ import annotations

import contextlib
import logging
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_TOOLS = ("nncf", "optimum", "transformers", "openvino_tokenizers")
_ONE_AT_A_TIME = threading.RLock()
"""Held meanwhile: warning filters and log levels belong to the process, so two threads that set
and reset them in turns would leave the other's behind."""


@contextlib.contextmanager
def quiet_warnings() -> Iterator[None]:
    """Drop Python's warnings while the block runs, in one thread at a time."""
    with _ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def quiet_tools(log: str | Path | None = None) -> Iterator[None]:
    """Silence optimum, NNCF and transformers, errors excepted, while the block runs.

    One thread at a time: another one waits.

    Args:
        log: A file that gets everything instead: their log lines and Python's warnings are
            appended to it.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(quiet_warnings())
        from transformers.utils import logging as transformers_logging

        if transformers_logging.is_progress_bar_enabled():
            stack.callback(transformers_logging.enable_progress_bar)
        transformers_logging.disable_progress_bar()
        if log is None:
            handler = None
        else:
            handler = logging.FileHandler(log, encoding="utf-8")
            handler.setFormatter(
                logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s")
            )
            stack.callback(handler.close)
            warnings.simplefilter("default")
            warnings.showwarning = _logged_to(handler)
        for name in _TOOLS:
            stack.enter_context(_quiet_logger(logging.getLogger(name), handler))
        yield


@contextlib.contextmanager
def _quiet_logger(logger: logging.Logger, handler: logging.Handler | None) -> Iterator[None]:
    """Let only errors through to where ``logger`` writes, and everything to ``handler``."""
    level, propagates = logger.level, logger.propagate
    others = [(one, one.level) for one in logger.handlers]
    for one, own_level in others:
        one.setLevel(max(own_level, logging.ERROR))
    added: list[logging.Handler] = []
    if handler is None:
        logger.setLevel(logging.ERROR)
    else:
        added.append(handler)
        if propagates and logger.parent is not None:  # an ancestor's handlers ask for no level
            added.append(_ErrorsOnly(logger.parent))
        logger.setLevel(logging.INFO)
        logger.propagate = False
    for one in added:
        logger.addHandler(one)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.propagate = propagates
        for one, own_level in others:
            one.setLevel(own_level)
        for one in added:
            logger.removeHandler(one)


class _ErrorsOnly(logging.Handler):
    """Hands errors to an ancestor's handlers, as propagation does with everything."""

    def __init__(self, ancestor: logging.Logger) -> None:
        super().__init__(logging.ERROR)
        self._ancestor = ancestor

    def emit(self, record: logging.LogRecord) -> None:
        self._ancestor.callHandlers(record)


def _logged_to(handler: logging.Handler) -> Any:
    """Return a ``warnings.showwarning`` that hands the warning to ``handler``."""

    def show(message: Any, category: type[Warning], filename: str, line: int, *_: Any) -> None:
        handler.handle(
            logging.LogRecord(
                "py.warnings", logging.WARNING, filename, line,
                f"{category.__name__}: {message} ({filename}:{line})", None, None,
            )
        )  # fmt: skip

    return show
