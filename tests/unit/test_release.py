"""What a release depends on: the tag, the versions in several files, workflows and lock file."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CHANGELOG = """# Changelog

## [Unreleased]

## [1.2.0] - 2026-11-28

### Added

- This.

## [1.1.0] - 2026-11-01

- That.
"""


def release_script() -> ModuleType:
    """Load scripts/release_notes.py."""
    spec = importlib.util.spec_from_file_location("made", ROOT / "scripts" / "release_notes.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def steps_of(path: Path) -> list[dict[str, Any]]:
    """Return every step of a workflow."""
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    return [step for job in jobs.values() for step in job["steps"]]


def test_the_notes_are_the_section_of_the_version() -> None:
    """Not more and not less."""
    notes = release_script().release_notes("v1.2.0", version="1.2.0", changelog=CHANGELOG)
    assert notes == "### Added\n\n- This."


@pytest.mark.parametrize(
    ("tag", "version", "says"),
    [
        ("v1.2.1", "1.2.0", "The tag is v1.2.1, and pyproject.toml has version 1.2.0"),
        ("1.2.0", "1.2.0", "The tag is 1.2.0"),
        ("v1.3.0", "1.3.0", r"no heading '## \[1.3.0\]"),
    ],
)
def test_a_wrong_tag_stops_the_release(tag: str, version: str, says: str) -> None:
    """Before anything is built."""
    with pytest.raises(ValueError, match=says):
        release_script().release_notes(tag, version=version, changelog=CHANGELOG)


def test_a_section_without_text_stops_the_release() -> None:
    """A heading alone says nothing to a user."""
    with pytest.raises(ValueError, match="is empty"):
        release_script().release_notes(
            "v1.2.0",
            version="1.2.0",
            changelog="## [1.2.0] - 2026-01-01\n\n## [1.1.0] - 2026-01-01\n",
        )


def test_the_citation_names_this_version() -> None:
    """The version and the licence of pyproject.toml."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])


def test_the_tested_pythons_are_those_of_the_classifiers() -> None:
    """On each of the three systems."""
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    matrix = jobs["jobs"]["base"]["strategy"]["matrix"]
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert matrix["python"] == named
    assert matrix["os"] == ["ubuntu-latest", "windows-latest", "macos-latest"]
    assert PROJECT["requires-python"] == f">={named[0]}"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_the_steps_are_the_makefiles_targets(path: Path) -> None:
    """So what fails there can be run by hand; exceptions have a name that says what they do."""
    targets = set(
        re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    )
    for step in steps_of(path):
        for command in step.get("run", "").splitlines():
            if command.startswith("make "):
                called = [word for word in command.split()[1:] if "=" not in word]
                assert set(called) <= targets, command
            else:
                assert "name" in step, f"{path.name}: {command}"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_do_nothing_by_default(path: Path) -> None:
    """Each job names what it needs, and a time limit; no secret is read."""
    text = path.read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {}
    for name, job in workflow["jobs"].items():
        assert job["permissions"], name
        assert job["timeout-minutes"], name
    assert "secrets." not in text


def test_only_the_job_that_publishes_has_pypis_identity() -> None:
    """The environment ``pypi`` and the identity are in one job, which runs nothing of ours."""
    path = ROOT / ".github" / "workflows" / "release.yml"
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    assert [name for name, job in jobs.items() if "environment" in job] == ["publish"]
    assert all("run" not in step for step in jobs["publish"]["steps"])


def test_the_lock_has_our_pins_hashes_and_no_host() -> None:
    """``make lock`` keeps the versions that are tested, and can be used with any index."""
    text = (ROOT / "requirements" / "lock.txt").read_text(encoding="utf-8")
    assert "://" not in text
    entries = re.findall(
        r"^([\w.-]+)==([^\s;]+)[^\n]*\\\n((?:\s+--hash=.*\n?)+)", text, re.MULTILINE
    )
    assert len(entries) == len(re.findall(r"^[\w.-]+==", text, re.MULTILINE))
    locked = {_canonical(name): version for name, version, _ in entries}
    pins = dict(
        line.split("==")
        for line in (ROOT / "requirements" / "dev.txt").read_text(encoding="utf-8").split()
    )
    shared = {name: version for name, version in pins.items() if _canonical(name) in locked}
    assert len(shared) > 100
    for name, version in shared.items():
        assert locked[_canonical(name)] == version, name


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
