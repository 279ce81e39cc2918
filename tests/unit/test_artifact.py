"""An exported folder is what its manifest says, or it is refused with every problem."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from phi3ov.artifact.folder import Artifact, FileRecord, Manifest, hash_file, record_files
from phi3ov.artifact.ir import WeightSummary
from phi3ov.errors import ArtifactError, UnsupportedModelError
from phi3ov.prompt.chat_tokenizer import ChatTokenizer

from .fakes import MINI, SMALL_CONFIG, make_config

CONFIG_TEXT = json.dumps(SMALL_CONFIG)

WEIGHTS = WeightSummary(
    precision="int4", group_size=128, symmetric=True, layers=2, parameters=1000, size_bytes=520
)


def make_manifest(files: dict[str, FileRecord], **changes: Any) -> Manifest:
    """Return a manifest of ``files``."""
    values: dict[str, Any] = {
        "source": "microsoft/Phi-3-mini-4k-instruct",
        "revision": "main",
        "commit": "abc",
        "source_bytes": 2000,
        "recipe": {"mode": "int4", "group_size": 128, "ratio": 0.6},
        "weights": (WEIGHTS,),
        "chat_format": "phi3",
        "system_messages": "kept",
        "versions": {"phi3ov": "0.1.0", "größe": "ü"},
        "files": files,
    }
    return Manifest(**{**values, **changes})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small exported folder, with a file in a folder below."""
    path = tmp_path / "phi3"
    (path / "extra").mkdir(parents=True)
    (path / "config.json").write_text(CONFIG_TEXT, encoding="utf-8")
    (path / "openvino_model.bin").write_bytes(bytes(range(256)) * 10)
    (path / "extra" / "note.txt").write_text("note", encoding="utf-8")
    write_manifest(path, record_files(path))
    return path


def write_manifest(folder: Path, files: dict[str, FileRecord], **changes: Any) -> None:
    """Write the manifest of a folder."""
    text = make_manifest(files, **changes).to_json()
    (folder / "phi3ov.json").write_text(text, encoding="utf-8")


def problems_of(call: Callable[[], object]) -> tuple[str, ...]:
    """Return the problems of the `ArtifactError` that ``call`` raises."""
    with pytest.raises(ArtifactError) as caught:
        call()
    for problem in caught.value.problems:
        assert problem in str(caught.value)
    return caught.value.problems


def test_manifest_survives_its_json() -> None:
    """Reading what was written gives the same manifest, and the same text again."""
    manifest = make_manifest({"a/b.bin": FileRecord(size_bytes=3, sha256="00")})
    text = manifest.to_json()
    assert Manifest.from_json(text) == manifest
    assert Manifest.from_json(text).to_json() == text
    assert text.endswith("}\n")
    assert "größe" in text


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_manifest_of_another_version_is_refused(version: object) -> None:
    """The message names both versions and the ways out."""
    text = json.dumps({"format_version": version, "anything": "else"})
    with pytest.raises(ArtifactError, match=f"format_version={version!r}; this phi3ov reads 1"):
        Manifest.from_json(text)


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values.update(colour="red"),
        lambda values: values.pop("source"),
        lambda values: values.pop("format_version"),
        lambda values: values.update(files=[1]),
        lambda values: values.update(weights=[{"precision": "int4"}]),
        lambda values: values["files"].update(a={"size_bytes": 1}),
    ],
)
def test_manifest_with_other_fields_is_refused(change: Callable[[dict[str, Any]], None]) -> None:
    """Unknown, missing and misshapen fields are one clear error."""
    values = json.loads(make_manifest({}).to_json())
    change(values)
    with pytest.raises(ArtifactError, match=r"phi3ov.json cannot be read"):
        Manifest.from_json(json.dumps(values))


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "null", '"x"', "{}"])
def test_garbage_is_no_manifest(text: str) -> None:
    """Whatever stands in the file, the error is ours."""
    with pytest.raises(ArtifactError, match=r"phi3ov.json"):
        Manifest.from_json(text)


def test_whole_folder_opens_and_verifies(folder: Path) -> None:
    """An unchanged folder gives manifest, config, size and bits per weight."""
    artifact = Artifact.open(folder)
    artifact.verify()
    assert artifact.config == make_config()
    assert artifact.manifest.weights == (WEIGHTS,)
    assert artifact.size_bytes == len(CONFIG_TEXT) + 2560 + 4
    assert artifact.bits_per_weight == pytest.approx(520 * 8 / 1000)
    assert (artifact.chat_format.name, artifact.chat_format.system_messages) == ("phi3", "kept")
    assert Artifact.open(str(folder)) == artifact


def test_every_file_is_recorded_but_the_manifest(folder: Path) -> None:
    """Records hold forward slashes, sizes and SHA-256."""
    records = record_files(folder)
    assert list(records) == ["config.json", "extra/note.txt", "openvino_model.bin"]
    assert records["extra/note.txt"] == FileRecord(
        size_bytes=4, sha256=hashlib.sha256(b"note").hexdigest()
    )


def test_hash_of_a_large_file_is_that_of_the_whole(tmp_path: Path) -> None:
    """A file longer than one read hashes as one."""
    content = b"0123456789abcdef" * (600 * 1024)
    (tmp_path / "large").write_bytes(content)
    assert hash_file(tmp_path / "large") == hashlib.sha256(content).hexdigest()


def test_missing_and_shortened_files_are_listed_together(folder: Path) -> None:
    """Opening names every problem at once, verifying too."""
    artifact = Artifact.open(folder)
    (folder / "extra" / "note.txt").unlink()
    (folder / "openvino_model.bin").write_bytes(b"short")
    expected = ("extra/note.txt: missing", "openvino_model.bin: 5 bytes instead of 2560")
    assert problems_of(lambda: Artifact.open(folder)) == expected
    assert problems_of(artifact.verify) == expected


def test_changed_byte_is_found_by_verify_only(folder: Path) -> None:
    """One changed byte passes `open`, which looks at sizes, and fails `verify`."""
    content = bytearray((folder / "openvino_model.bin").read_bytes())
    content[1000] ^= 1
    (folder / "openvino_model.bin").write_bytes(content)
    artifact = Artifact.open(folder)
    assert problems_of(artifact.verify) == (
        "openvino_model.bin: its content has changed (SHA-256 differs)",
    )


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/hostname", "a/../../secret", "..\\secret", "C:/secret", "C:secret"]
)
def test_manifest_cannot_lead_out_of_the_folder(folder: Path, name: str) -> None:
    """A name with a path out of the folder is refused, whether the file is there or not."""
    (folder.parent / "secret").write_text("x", encoding="utf-8")
    digest = hashlib.sha256(b"x").hexdigest()
    write_manifest(folder, {name: FileRecord(size_bytes=1, sha256=digest)})
    assert problems_of(lambda: Artifact.open(folder)) == (f"{name}: leads out of the folder",)


@pytest.mark.parametrize("name", ["", ".", "extra"])
def test_folder_is_no_file(folder: Path, name: str) -> None:
    """A record of a folder is a missing file."""
    write_manifest(folder, {name: FileRecord(size_bytes=1, sha256="00")})
    assert problems_of(lambda: Artifact.open(folder)) == (f"{name}: missing",)


@pytest.mark.parametrize("name", ["no-such-folder", "a-file"])
def test_what_is_no_folder_is_refused(tmp_path: Path, name: str) -> None:
    """A missing folder, and a file, point at the export."""
    (tmp_path / "a-file").write_text("x", encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"is not a folder\. Export a checkpoint.*export_model"):
        Artifact.open(tmp_path / name)


@pytest.mark.parametrize(
    ("names", "hint"),
    [
        (["config.json"], "It holds a checkpoint: export it first"),
        ([], "Export the checkpoint with"),
    ],
)
def test_folder_without_manifest_gets_the_fitting_hint(
    tmp_path: Path, names: list[str], hint: str
) -> None:
    """A checkpoint is told from a folder that holds nothing of the kind."""
    for name in names:
        (tmp_path / name).write_text("{}", encoding="utf-8")
    with pytest.raises(ArtifactError, match=f"has no phi3ov.json. {hint}"):
        Artifact.open(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("phi3ov.json", b"\xff\xfe\x00", "is not UTF-8"),
        ("config.json", CONFIG_TEXT.replace(":", "!").encode(), "cannot be read"),
    ],
)
def test_damaged_json_is_an_artifact_error(
    folder: Path, name: str, content: bytes, message: str
) -> None:
    """Damage that keeps the size is our error, not the JSON parser's."""
    (folder / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=message):
        Artifact.open(folder)


def test_config_outside_the_manifest_must_be_there(folder: Path) -> None:
    """A manifest that forgot config.json does not make its absence another error."""
    (folder / "config.json").unlink()
    write_manifest(folder, record_files(folder))
    with pytest.raises(ArtifactError, match=r"config.json cannot be read"):
        Artifact.open(folder)


@pytest.mark.parametrize("changes", [{"chat_format": "alpaca"}, {"system_messages": "doubled"}])
def test_unknown_chat_format_is_refused(folder: Path, changes: dict[str, str]) -> None:
    """A manifest of a newer phi3ov names a format that this one cannot write."""
    write_manifest(folder, record_files(folder), **changes)
    with pytest.raises(ArtifactError, match="is unknown to this phi3ov"):
        _ = Artifact.open(folder).chat_format


def test_artifact_is_frozen(folder: Path) -> None:
    """What was checked stays what was checked."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        Artifact.open(folder).path = folder.parent  # type: ignore[misc]


def test_a_config_that_is_no_object_is_refused(folder: Path) -> None:
    """Whatever reads the config later may ask it for its fields."""
    (folder / "config.json").write_text("[]", encoding="utf-8")
    write_manifest(folder, record_files(folder))
    with pytest.raises(UnsupportedModelError, match=r"config.json holds a list, not an object"):
        Artifact.open(folder)


IR = (
    '<net><layers><layer name="self.model.embed_tokens.weight" type="Const">'
    '<data element_type="f16" shape="4, 4" size="32"/></layer></layers></net>'
)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{", "config.json cannot be read: JSONDecodeError"),
        ("config.json", "[" * 100_000, "config.json cannot be read: RecursionError"),
        ("config.json", "[]", "config.json holds a list, not an object"),
        ("config.json", '{"model_type": "llama"}', "model_type='llama'"),
        ("config.json", '{"model_type": "phi3"}', "hidden_size=None must be a positive integer"),
        ("openvino_model.xml", "", "openvino_model.xml cannot be read: ParseError"),
        ("openvino_model.xml", "<net>", "openvino_model.xml cannot be read: ParseError"),
        ("openvino_model.xml", IR.replace("size=", "sizes="), "cannot be read: KeyError"),
        ("openvino_model.xml", IR.replace("4, 4", "four"), "cannot be read: ValueError"),
        ("openvino_model.xml", "<net/>", "holds no weights of a language model"),
        ("tokenizer.json", "{}", "openvino-genai cannot use its tokenizer .*: no such op"),
    ],
)
def test_a_foreign_folder_that_is_damaged_is_refused_by_the_file(
    name: str, content: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stranger's export may hold anything; what is wrong with it is the library's error."""
    for file, text in (
        ("config.json", CONFIG_TEXT),
        ("openvino_model.xml", IR),
        ("openvino_model.bin", ""),
        ("tokenizer.json", "{}"),
    ):
        (tmp_path / file).write_text(content if file == name else text, encoding="utf-8")

    def refuse(_folder: str) -> None:
        raise RuntimeError("no such op")

    monkeypatch.setattr("openvino_genai.Tokenizer", refuse)
    with pytest.raises((ArtifactError, UnsupportedModelError), match=message):
        Artifact.open(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", None),
        ("tokenizer.json", '{"added_tokens": [{}]}'),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", "{"),
        ("generation_config.json", "[]"),
        ("generation_config.json", '{"eos_token_id": 1.5}'),
    ],
)
def test_damaged_files_of_a_tokenizer_are_refused(
    name: str, content: str | None, tmp_path: Path
) -> None:
    """Each of the files that tokenizer and stop tokens come from."""
    (tmp_path / "tokenizer.json").write_text(MINI.tokenizer_json, encoding="utf-8")
    ChatTokenizer.from_folder(tmp_path, MINI.chat.format)
    (tmp_path / name).unlink(missing_ok=True)
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(UnsupportedModelError, match="the files of its tokenizer cannot be read"):
        ChatTokenizer.from_folder(tmp_path, MINI.chat.format)
