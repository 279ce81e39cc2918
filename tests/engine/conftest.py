"""Checkpoints and exports that the tests of this folder share, made when first asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import phi3ov
from tests.conftest import MadeOnce

from .checkpoints import FAMILY, build_checkpoint

EXACT = replace(phi3ov.RuntimeConfig.exact(), threads=2)
"""Settings under which OpenVINO's fp32 and torch's agree token for token."""

LOCK = ".made.phi3ov-lock"
"""What stays beside the target ``made`` of an export: the empty file of its lock."""


def left_in(folder: Path) -> list[str]:
    """Return the names of what lies in a folder in which ``made`` was exported, but the lock."""
    return sorted(path.name for path in folder.iterdir() if path.name != LOCK)


LoadModel = Callable[..., phi3ov.Phi3Model]


@pytest.fixture(scope="session", autouse=True)
def _quiet_and_single() -> None:
    """One torch thread is the fastest for models this small; bars would fill the log."""
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()


class Zoo:
    """The family's tiny checkpoints and their fp16 exports."""

    def __init__(self, made_once: MadeOnce) -> None:
        self._made_once = made_once

    def checkpoint(self, name: str) -> Path:
        """Return the checkpoint of the row ``name``."""
        return self._made_once(name, lambda folder: build_checkpoint(folder, FAMILY[name]))

    def artifact(self, name: str) -> Path:
        """Return the fp16 export of the row ``name``."""
        return self._made_once(
            f"{name}-fp16",
            lambda folder: phi3ov.export_model(
                self.checkpoint(name), folder, compression="fp16", progress=False
            ),
        )


@pytest.fixture(scope="session")
def zoo(made_once: MadeOnce) -> Zoo:
    """The family, made once for all tests."""
    return Zoo(made_once)


@pytest.fixture
def load() -> Iterator[LoadModel]:
    """`phi3ov.load_model` on the CPU in fp32; what it loads is closed after the test."""
    with ExitStack() as stack:
        defaults: dict[str, Any] = {"device": "CPU", "config": EXACT}

        def load_exact(path: Path, **options: Any) -> phi3ov.Phi3Model:
            return stack.enter_context(phi3ov.load_model(path, **defaults | options))

        yield load_exact
