"""Public names of 0.1 that have moved: each works, warns, and stands in the migration notes."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import phi3ov
from phi3ov.moved import MOVED, REMOVED_IN

NOTES = (Path(__file__).parents[2] / "docs" / "migrating.md").read_text(encoding="utf-8")
IN_0_1 = """
artifact.FileRecord artifact.Manifest batch.Conversation batch.ReportProgress chat_format.Role
compression.Compression engine.EngineName generation.JsonSchema generation.OverflowPolicy
generation.QueuePolicy generation.TimeoutPolicy ir.Precision ir.WeightLayer ir.WeightSummary
progress.ProgressCallback quality_plot.draw_histogram reply.FinishReason rope.ContextChoice
rope.RopeFactors
"""
"""What tests/typing/api.txt of 0.1.0 listed beside the names of ``phi3ov`` itself."""
NAMES = [(module, name) for module, names in MOVED.items() for name in names]


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_a_moved_name_works_and_warns(module: str, name: str) -> None:
    """It is the same object as in the new place, which the warning names."""
    place = f"phi3ov.{MOVED[module][name]}"
    former = import_module(f"phi3ov.{module}")
    public = "phi3ov" if name in phi3ov.__all__ else place
    with pytest.deprecated_call(match=rf"use {public}\.{name}\. The old.*{REMOVED_IN}") as caught:
        value = getattr(former, name)
    assert value is getattr(import_module(place), name)
    assert caught[0].filename == __file__, "the warning points at the caller"


def test_every_public_name_of_0_1_is_there() -> None:
    """None was forgotten; those of ``phi3ov`` itself are compared in test_package.py."""
    assert {f"{module}.{name}" for module, name in NAMES} >= set(IN_0_1.split())


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_the_notes_say_what_to_write_instead(module: str, name: str) -> None:
    """Both places, in one line."""
    line = next(line for line in NOTES.splitlines() if f"`phi3ov.{module}.{name}`" in line)
    public = f"`phi3ov.{name}`" if name in phi3ov.__all__ else f"`phi3ov.{MOVED[module][name]}"
    assert public in line


@pytest.mark.parametrize("module", sorted(MOVED))
def test_a_misspelt_name_is_an_attribute_error(module: str) -> None:
    """As everywhere in Python."""
    with pytest.raises(AttributeError, match="no attribute 'Nmae'"):
        _ = import_module(f"phi3ov.{module}").Nmae


def test_both_forms_of_import_work() -> None:
    """In a new process, where nothing has been imported yet."""
    code = (
        "import phi3ov, phi3ov.reply\n"
        "from phi3ov.rope import RopeFactors\n"
        "from phi3ov.engine import EngineName\n"
        "print(phi3ov.reply.FinishReason, 'reply' in dir(phi3ov))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("False\n")
