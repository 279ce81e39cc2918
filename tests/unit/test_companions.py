"""The files beside the model: gathered and converted first, and no stranger's business in them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from phi3ov.artifact.folder import Manifest
from phi3ov.exporter.checkpoint import Checkpoint
from phi3ov.exporter.companions import convert_tokenizer_pair, gather_files, load_tokenizer

from .fakes import MINI, SMALL_CONFIG, make_config
from .test_artifact import make_manifest
from .test_prompt_parity import rewritten


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint's files beside its weights."""
    path = tmp_path / "checkpoint"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(SMALL_CONFIG), encoding="utf-8")
    (path / "tokenizer.json").write_text(MINI.tokenizer_json, encoding="utf-8")
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "eos_token": "<|endoftext|>"}
    (path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (path / "chat_template.jinja").write_text(MINI.template, encoding="utf-8")
    return path


def gathered(folder: Path) -> Path:
    """Return what an artifact of the checkpoint would keep."""
    made = folder.parent / "made"
    made.mkdir()
    gather_files(Checkpoint(path=folder, config=make_config(), source=str(folder)), made)
    return made


@pytest.mark.parametrize("home", ["/home/alice/secret", r"C:\\Users\\alice\\secret"])
def test_no_folder_of_this_machine_is_kept(home: str, folder: Path) -> None:
    """Transformers wrote them into configs; a hub id stays, and so does everything else."""
    config = SMALL_CONFIG | {"_name_or_path": home, "auto_map": {"x": "y"}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    settings = {"name_or_path": "microsoft/phi", "tokenizer_file": home, "eos_token": "ü"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    made = gathered(folder)
    assert not [path for path in made.iterdir() if "alice" in path.read_text(encoding="utf-8")]
    kept = json.loads((made / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert kept == {"name_or_path": "microsoft/phi", "eos_token": "ü"}
    kept = json.loads((made / "config.json").read_text(encoding="utf-8"))
    assert kept == SMALL_CONFIG | {"auto_map": {"x": "y"}}
    assert (made / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


@pytest.mark.export
def test_the_pair_of_a_rewritten_tokenizer_is_the_released_one(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whichever program reads the artifact, the ids are the same."""
    import openvino
    import openvino_tokenizers  # noqa: F401 - its operations

    (folder / "tokenizer.json").write_text(rewritten("first"), encoding="utf-8")
    made = gathered(folder)
    assert "tokenizer.json was rewritten by a tool" in caplog.text
    tokenizer = load_tokenizer(made, "x")
    assert convert_tokenizer_pair(tokenizer, made) is None
    compiled = openvino.Core().compile_model(made / "openvino_tokenizer.xml", "CPU")
    prompt = "<|user|>\nHello<|end|>\n<|assistant|>\n"
    expected = MINI.chat.encode_raw(prompt)
    assert compiled([prompt])["input_ids"][0].tolist() == expected
    assert tokenizer(prompt, add_special_tokens=False).input_ids == expected


@pytest.mark.trap(
    "A tokenizer that openvino-tokenizers cannot convert is tried first, in seconds; the export "
    "goes on, and report and manifest say what is missing, why, and who needs it.",
    about="Tokenizers",
)
@pytest.mark.export
def test_a_tokenizer_that_cannot_be_converted_is_told(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The reason is openvino-tokenizers' own, and nothing half-written is left."""
    definition = json.loads(MINI.tokenizer_json)
    definition["normalizer"]["normalizers"].insert(0, {"type": "Nmt"})
    (folder / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
    made = gathered(folder)
    note = convert_tokenizer_pair(load_tokenizer(made, "x"), made)
    assert note is not None
    assert note.startswith("openvino_tokenizer.xml and openvino_detokenizer.xml are missing: ")
    assert "Nmt" in note
    assert "OpenVINO Model Server do." in note
    assert note in caplog.text
    assert not list(made.glob("openvino_*"))
    manifest = make_manifest({}, notes=(note,))
    assert Manifest.from_json(manifest.to_json()).notes == (note,)


@pytest.mark.export
def test_a_pair_that_encodes_otherwise_is_not_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong tokenizer is worse than none."""
    made = gathered(folder)
    tokenizer = load_tokenizer(made, "x")
    real = type(tokenizer).__call__

    def shifted(self: object, text: str) -> object:
        encoded = real(self, text)
        encoded["input_ids"] = [number + 1 for number in encoded["input_ids"]]
        return encoded

    monkeypatch.setattr(type(tokenizer), "__call__", shifted)
    note = convert_tokenizer_pair(tokenizer, made)
    assert note is not None
    assert "instead of" in note
    assert not list(made.glob("openvino_*"))
