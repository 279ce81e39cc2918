"""Keeping the bars, warnings and log lines of torch's side of the stack off the terminal."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_tools() -> Iterator[None]:
    """Silence optimum, NNCF and transformers, errors excepted, while the block runs.

    What other threads print to stdout meanwhile is lost too: Python has one stdout.
    """
    from transformers.utils import logging as transformers_logging

    names = ("nncf", "optimum", "transformers", "openvino_tokenizers")
    levels = {name: logging.getLogger(name).level for name in names}
    bars = transformers_logging.is_progress_bar_enabled()
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        transformers_logging.disable_progress_bar()
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()
