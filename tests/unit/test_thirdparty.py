"""What phi3ov silences and replaces in other tools holds for the thread that asked, and ends."""

from __future__ import annotations

import contextlib
import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from phi3ov.thirdparty.overrides import original_of, replaced
from phi3ov.thirdparty.tool_output import quiet_tools, quiet_warnings

from .fakes import SMALL_CONFIG


def in_another_thread(work: Callable[[], Any]) -> Any:
    """Return what ``work`` returns there; fail if it has to wait for this thread."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(work()), daemon=True)
    thread.start()
    thread.join(timeout=30)
    assert results, "the other thread waits, or failed"
    return results[0]


class Tool:
    """Something with a method, to replace."""

    def name(self, suffix: str) -> str:
        """Return its name."""
        return f"original{suffix}"


class DerivedTool(Tool):
    """Inherits the method."""


@pytest.mark.parametrize("owner", [Tool, DerivedTool])
def test_a_replaced_method_is_seen_by_this_thread_only(owner: type[Tool]) -> None:
    """Another thread finds the original, and afterwards nothing is left of the replacement."""
    before = dict(vars(owner))
    with replaced(owner, "name", lambda _tool, suffix: f"ours{suffix}"):
        assert owner().name("!") == "ours!"
        assert in_another_thread(lambda: owner().name("?")) == "original?"
        with replaced(owner, "name", lambda _tool, suffix: f"inner{suffix}"):
            assert owner().name("!") == "inner!"
        assert owner().name("!") == "ours!"
        assert original_of(owner, "name")(owner(), ".") == "original."
    assert owner().name("!") == "original!"
    assert dict(vars(owner)) == before


def test_threads_may_replace_the_same_function_at_once() -> None:
    """Each finds its own, whichever ends first, and the last one puts the original back."""
    module = ModuleType("tool")
    original = module.save = lambda: "original"  # type: ignore[attr-defined]

    @contextlib.contextmanager
    def other_thread_inside() -> Iterator[None]:
        inside, leave = threading.Event(), threading.Event()

        def work() -> None:
            with replaced(module, "save", lambda: "theirs"):
                assert module.save() == "theirs"
                inside.set()
                leave.wait(30)

        thread = threading.Thread(target=work)
        thread.start()
        assert inside.wait(30)
        yield
        leave.set()
        thread.join()

    with other_thread_inside():
        assert module.save() == "original"
        with replaced(module, "save", lambda: "ours"):
            assert module.save() == "ours"
        assert module.save() == "original"
    assert module.save is original


def test_only_this_threads_warnings_are_dropped() -> None:
    """A program hears of its own warnings while phi3ov works in another thread."""

    def warn() -> bool:
        try:
            warnings.warn("said", UserWarning, stacklevel=1)
        except UserWarning:  # the filter of these tests
            return True
        return False

    filters = list(warnings.filters)
    with quiet_warnings():
        assert not warn()
        assert in_another_thread(warn)
    assert warn()
    assert warnings.filters == filters


def test_a_replaced_class_still_answers_isinstance() -> None:
    """Code of the tool that asks about the class gets the answer for the original."""
    module = ModuleType("module")
    module.Tool = Tool  # type: ignore[attr-defined]
    with replaced(module, "Tool", lambda: "another"):
        assert module.Tool() == "another"
        assert isinstance(Tool(), module.Tool)
        assert not isinstance("another", module.Tool)


@pytest.mark.export
def test_the_bar_of_loading_weights_is_dropped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The module that draws it has imported transformers' bar under a name of its own."""
    import transformers
    from transformers.utils import logging as transformers_logging

    config = transformers.Phi3Config(**SMALL_CONFIG, vocab_size=64, pad_token_id=0)
    transformers.Phi3ForCausalLM(config).save_pretrained(tmp_path)
    monkeypatch.setattr(transformers_logging, "_tqdm_active", True)
    capsys.readouterr()
    with quiet_tools():
        transformers.Phi3ForCausalLM.from_pretrained(tmp_path)
    assert capsys.readouterr().err == ""
    transformers.Phi3ForCausalLM.from_pretrained(tmp_path)
    assert "Loading weights" in capsys.readouterr().err


@pytest.mark.export
def test_only_this_threads_log_lines_and_bars_are_dropped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And another thread need not wait to say something, nor to be silent itself."""
    from transformers.utils import logging as transformers_logging

    monkeypatch.setattr(transformers_logging, "_tqdm_active", True)
    tool = logging.getLogger("nncf.torch")
    tool.setLevel(logging.WARNING)
    log = tmp_path / "tools.log"

    def speak(name: str) -> str:
        tool.warning("a warning of %s", name)
        return type(transformers_logging.tqdm([], disable=True)).__name__

    def speak_in_peace() -> str:
        with quiet_tools():
            return speak("the silent thread")

    try:
        with quiet_tools(log):
            assert speak("this thread") == "EmptyTqdm"
            assert in_another_thread(lambda: speak("another thread")) != "EmptyTqdm"
            assert in_another_thread(speak_in_peace) == "EmptyTqdm"
    finally:
        tool.setLevel(logging.NOTSET)
    assert caplog.messages == ["a warning of another thread"]
    lines = log.read_text(encoding="utf-8").splitlines()
    assert [line.split(" ", 4)[-1] for line in lines] == ["a warning of this thread"]


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
        logging.getLogger("phi3ov").warning("phi3ov's own")
    assert caplog.messages == ["an error", "phi3ov's own"]
    if log is not None:
        lines = log.read_text(encoding="utf-8").splitlines()
        said = [line.split(" ", 4)[-1] for line in lines]
        assert said == ["a detail", "a warning", "an error", "phi3ov's own"]


@pytest.mark.export
def test_warnings_go_to_the_log(tmp_path: Path) -> None:
    """With their category and place, instead of to the terminal."""
    with quiet_tools(tmp_path / "tools.log"):
        warnings.warn("look here", DeprecationWarning, stacklevel=1)
    text = (tmp_path / "tools.log").read_text(encoding="utf-8")
    assert "py.warnings WARNING DeprecationWarning: look here (" in text


@pytest.mark.export
@pytest.mark.parametrize("propagates", [False, True])
def test_the_loggers_are_as_they_were(propagates: bool, tmp_path: Path) -> None:
    """Levels, handlers and propagation are untouched, and the class is the library's again."""
    logger = logging.getLogger("nncf")
    before = logger.propagate
    logger.propagate = propagates
    methods = (logging.Logger.handle, logging.Logger.isEnabledFor, warnings.showwarning)
    try:
        state = (logger.level, list(logger.handlers), logger.propagate)
        with quiet_tools(tmp_path / "tools.log"):
            logger.info("a detail")
        assert (logger.level, list(logger.handlers), logger.propagate) == state
    finally:
        logger.propagate = before
    after = (logging.Logger.handle, logging.Logger.isEnabledFor, warnings.showwarning)
    assert after == methods
