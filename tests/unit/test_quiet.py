"""What other tools log goes to the file that was asked for, and nowhere louder than before."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from phi3ov.thirdparty.tool_output import quiet_tools


@pytest.mark.export
@pytest.mark.parametrize("with_log", [False, True])
def test_only_errors_reach_the_programs_own_handlers(
    with_log: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A program that logs by a root handler gets errors, no more because there is a file."""
    log = tmp_path / "tools.log" if with_log else None
    tool = logging.getLogger("optimum.exporters.openvino")
    with quiet_tools(log):
        tool.info("a detail")
        tool.warning("a warning")
        tool.error("an error")
    assert caplog.messages == ["an error"]
    if log is not None:
        lines = log.read_text(encoding="utf-8").splitlines()
        assert [line.split(" ", 4)[-1] for line in lines] == ["a detail", "a warning", "an error"]


@pytest.mark.export
@pytest.mark.parametrize("propagates", [False, True])
def test_the_loggers_are_as_they_were(propagates: bool, tmp_path: Path) -> None:
    """Levels, handlers and propagation come back, also of a tool that propagates nothing."""
    logger = logging.getLogger("nncf")
    before = logger.propagate
    logger.propagate = propagates
    try:
        state = (logger.level, list(logger.handlers), logger.propagate)
        with quiet_tools(tmp_path / "tools.log"):
            assert not logger.propagate
        assert (logger.level, list(logger.handlers), logger.propagate) == state
    finally:
        logger.propagate = before
