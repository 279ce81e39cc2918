"""Loading an artifact that is not as it was exported, or with what cannot be had."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import phi3ov
from phi3ov import ArtifactError, DeviceError, OptionError, Phi3OVError, load_model
from phi3ov.artifact.folder import MODEL_BIN, MODEL_XML
from phi3ov.engine.protocol import EngineName

from .conftest import EXACT, LoadModel, Zoo
from .truth import prompt_text

ROW = "phi-3-mini-4k"


# Loading what is not as it was exported.


@pytest.fixture
def copy(zoo: Zoo, tmp_path: Path) -> Path:
    """A copy of an artifact, to be damaged."""
    folder = tmp_path / "copy"
    shutil.copytree(zoo.artifact(ROW), folder)
    return folder


@pytest.mark.parametrize("name", [MODEL_BIN, MODEL_XML, "tokenizer.json", "config.json"])
def test_a_missing_file_is_named(name: str, copy: Path) -> None:
    """Without any hashing."""
    (copy / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name}: missing") as caught:
        load_model(copy, device="CPU", verify=False)
    assert len(caught.value.problems) == 1


def test_every_problem_is_listed(copy: Path) -> None:
    """One message for all that is wrong."""
    (copy / "tokenizer.json").unlink()
    os.truncate(copy / MODEL_BIN, 1000)
    with pytest.raises(ArtifactError) as caught:
        load_model(copy, device="CPU")
    assert len(caught.value.problems) == 2


def test_a_file_that_was_cut_short_is_named(copy: Path) -> None:
    """Its size is enough to tell, so this holds without verify too."""
    os.truncate(copy / MODEL_BIN, (copy / MODEL_BIN).stat().st_size - 1)
    with pytest.raises(ArtifactError, match=rf"{MODEL_BIN}: \d+ bytes instead of \d+"):
        load_model(copy, device="CPU", verify=False)


def test_one_changed_byte_is_noticed_unless_told_not_to_look(copy: Path) -> None:
    """OpenVINO itself loads a damaged model without a word."""
    with (copy / MODEL_BIN).open("r+b") as file:
        file.seek(100_000)
        byte = file.read(1)
        file.seek(100_000)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(ArtifactError, match=f"{MODEL_BIN}: its content has changed"):
        load_model(copy, device="CPU")
    load_model(copy, device="CPU", verify=False).close()


def test_a_damaged_graph_is_explained_by_the_damage(copy: Path) -> None:
    """Where the compilation fails too, the message is still the one about the file."""
    path = copy / MODEL_XML
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(ArtifactError, match=f"{MODEL_XML}: its content has changed"):
        load_model(copy, device="CPU")


def test_a_checkpoint_is_no_artifact(zoo: Zoo) -> None:
    """The message says what to do with it."""
    with pytest.raises(ArtifactError, match="It holds a checkpoint: export it first"):
        load_model(zoo.checkpoint(ROW))


@pytest.mark.parametrize("device", ["TPU", "CPU.7", "AUTO:GPU,CPU", ()])
def test_an_unknown_device_is_refused(device: str | tuple[str, ...], zoo: Zoo) -> None:
    """Naming what was asked and what is there."""
    with pytest.raises(DeviceError, match="device="):
        load_model(zoo.artifact(ROW), device=device)


def test_a_gpu_that_is_not_there_is_refused_and_a_preference_falls_back(
    zoo: Zoo, load: LoadModel
) -> None:
    """Alone it is an error that lists the CPU; before the CPU it is the reason."""
    if any(name.startswith("GPU") for name in phi3ov.list_devices()):
        pytest.skip("this machine has a GPU")
    with pytest.raises(DeviceError, match=r"GPU\.0 is not there.*CPU"):
        load_model(zoo.artifact(ROW), device="GPU.0")
    model = load(zoo.artifact(ROW), device=("GPU.0", "CPU"))
    assert model.device.selected == "CPU"
    assert "GPU.0 is not there" in model.device.reason


def test_an_unknown_engine_is_refused(zoo: Zoo) -> None:
    """The message lists those there are."""
    with pytest.raises(OptionError, match="engine='vllm' is not one of 'pipeline'"):
        load_model(zoo.artifact(ROW), engine="vllm")  # type: ignore[arg-type]


@pytest.mark.parametrize("engine", ["pipeline", "transformers"])
def test_an_openvino_property_that_does_not_exist_is_refused(engine: Any, zoo: Zoo) -> None:
    """Nothing that the caller sets is ignored."""
    config = phi3ov.RuntimeConfig(properties={"NO_SUCH_PROPERTY": "1"})
    with pytest.raises(Phi3OVError, match="NO_SUCH_PROPERTY"):
        load_model(zoo.artifact(ROW), device="CPU", config=config, engine=engine)


def test_a_sampled_answer_is_repeatable_with_its_seed(zoo: Zoo, load: LoadModel) -> None:
    """The seed that a reply records gives the same answer again."""
    model = load(zoo.artifact(ROW), config=EXACT)
    first = model.complete(prompt_text(30), max_new_tokens=24, temperature=1.5)
    assert first.seed is not None
    again = model.complete(prompt_text(30), max_new_tokens=24, temperature=1.5, seed=first.seed)
    assert again.token_ids == first.token_ids


@pytest.mark.trap(
    "A checkpoint's generation_config.json does not change answers: the call's options alone do.",
    about="Answers",
)
@pytest.mark.parametrize("engine", ["pipeline", "worker", "paged", "transformers"])
def test_foreign_generation_settings_do_not_change_an_answer(
    engine: EngineName, zoo: Zoo, copy: Path, load: LoadModel
) -> None:
    """Beams, repetition rules and lengths of the checkpoint's file decide nothing."""
    options: phi3ov.Options = {
        "max_new_tokens": 24,
        "repetition_penalty": 0.5,
    }  # repeats what it may
    expected = load(zoo.artifact(ROW), engine=engine).complete(prompt_text(20), **options)
    path = copy / "generation_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    settings |= {
        "no_repeat_ngram_size": 1,
        "min_new_tokens": 20,
        "num_beams": 3,
        "repetition_penalty": 9.0,
        "do_sample": True,
        "temperature": 2.0,
    }
    path.write_text(json.dumps(settings), encoding="utf-8")
    manifest = copy / "phi3ov.json"
    kept = json.loads(manifest.read_text(encoding="utf-8"))
    kept["files"]["generation_config.json"] = {
        "size_bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    manifest.write_text(json.dumps(kept), encoding="utf-8")
    assert load(copy, engine=engine).complete(prompt_text(20), **options).token_ids == (
        expected.token_ids
    )
