"""What OpenVINO is told besides what the caller configured."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import openvino
import pytest

from phi3ov import RuntimeConfig
from phi3ov.engine.protocol import EngineName
from phi3ov.runtime import properties
from phi3ov.runtime.properties import KEPT_KERNELS, device_settings
from phi3ov.runtime.settings import passed_properties

from .conftest import EXACT, LoadModel, Zoo

(NAME,) = KEPT_KERNELS


def test_a_cpu_keeps_few_kernels_unless_the_caller_says_otherwise() -> None:
    """Or memory would grow with each new length of a prompt."""
    core = openvino.Core()
    found = passed_properties(device_settings(RuntimeConfig(), core, "CPU"))
    assert found[NAME] == KEPT_KERNELS[NAME]
    mine = RuntimeConfig(properties={NAME: "7"})
    assert passed_properties(device_settings(mine, core, "CPU"))[NAME] == "7"


@pytest.mark.export
@pytest.mark.parametrize("engine", ["pipeline", "worker", "paged", "transformers"])
def test_every_engine_passes_it_on(
    engine: EngineName, zoo: Zoo, load: LoadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A value that the plugin refuses is refused by each; so each has handed it over."""
    monkeypatch.setattr(properties, "KEPT_KERNELS", {NAME: "many"})
    monkeypatch.setattr(properties, "_takes_kept_kernels", lambda _core: True)
    with pytest.raises(Exception, match=NAME):
        load(zoo.artifact("phi-3-mini-4k"), engine=engine)


def test_an_openvino_without_the_property_is_not_given_it(
    zoo: Zoo, load: LoadModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is no documented one, and may go; that is logged, and the model loads all the same."""
    monkeypatch.setattr(properties, "KEPT_KERNELS", {"CPU_PROPERTY_OF_YESTERDAY": "100"})
    found = passed_properties(device_settings(RuntimeConfig(), openvino.Core(), "CPU"))
    assert "CPU_PROPERTY_OF_YESTERDAY" not in found
    assert "CPU_PROPERTY_OF_YESTERDAY" in caplog.text
    load(zoo.artifact("phi-3-mini-4k")).complete("a", max_new_tokens=1)


@pytest.mark.export
@pytest.mark.parametrize("engine", ["pipeline", "worker", "paged", "transformers"])
def test_a_cpu_takes_a_cache_folder_and_says_where_it_is_of_no_use(
    engine: EngineName,
    zoo: Zoo,
    load: LoadModel,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """OpenVINO itself keeps the models, so no device lists it; answers stay what they are."""
    artifact, folder = zoo.artifact("phi-3-mini-4k"), tmp_path / "cache"
    answer = load(artifact, engine=engine).complete("abc", max_new_tokens=5).token_ids
    for _ in range(2):
        model = load(artifact, engine=engine, config=replace(EXACT, cache_dir=folder))
        assert model.complete("abc", max_new_tokens=5).token_ids == answer
        assert [one.suffix for one in folder.iterdir()] == [".blob"]
    assert ("makes loading longer" in caplog.text) == (engine != "transformers")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no such call")
def test_openvino_obeys_the_affinity_mask(zoo: Zoo) -> None:
    """So phi3ov leaves the threads to it there: one allowed processor gives one thread."""
    script = """
import os, sys
import openvino
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
compiled = openvino.Core().compile_model(sys.argv[1], "CPU", {"PERFORMANCE_HINT": "LATENCY"})
print(compiled.get_property("INFERENCE_NUM_THREADS"))
"""
    model = zoo.artifact("phi-3-mini-4k") / "openvino_model.xml"
    done = subprocess.run(
        [sys.executable, "-c", script, str(model)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "1"
