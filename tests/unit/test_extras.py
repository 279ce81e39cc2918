"""Names that need an extra: imported on first use, and missed by name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from phi3ov.errors import MissingDependencyError, lazy_names


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package with three modules: a sound one, and two that need what is not there."""
    folder = tmp_path / "toy_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("", encoding="utf-8")
    (folder / "sound.py").write_text("value = 7", encoding="utf-8")
    (folder / "needy.py").write_text("import no_such_extra.part", encoding="utf-8")
    (folder / "broken.py").write_text("import no_such_mistake", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "toy_package"]:
        monkeypatch.delitem(sys.modules, name)
    return "toy_package"


def test_names_are_imported_on_first_use(package: str) -> None:
    """An unknown one is an AttributeError; a missing extra says the command that installs it."""
    find = lazy_names(
        package,
        {"value": "sound", "needy": "needy", "broken": "broken"},
        needs=("no_such_extra",),
        purpose="The toy",
        extra="toy",
    )
    assert f"{package}.sound" not in sys.modules
    assert find("value") == 7
    with pytest.raises(AttributeError, match="module 'toy_package' has no attribute 'other'"):
        find("other")
    with pytest.raises(MissingDependencyError) as missing:
        find("needy")
    assert missing.value.package == "no-such-extra"
    assert missing.value.command == 'pip install "phi3ov[toy]"'
    with pytest.raises(ModuleNotFoundError, match="no_such_mistake"):
        find("broken")  # a mistake of the code itself is not hidden
