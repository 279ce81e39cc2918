"""What each command of ``phi3ov`` takes and prints: its options, its JSON, its streams."""

from __future__ import annotations

import _thread
import io
import json
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock

from phi3ov import Artifact, Phi3Model
from phi3ov.answer.token_stream import TokenRequest
from phi3ov.artifact.folder import record_files
from phi3ov.cli import COMMANDS, build_command, main
from phi3ov.engine.protocol import ENGINES
from phi3ov.exporter.export import ExportReport
from phi3ov.integrations.ovms import OvmsModel
from phi3ov.machine.doctor import Diagnosis
from phi3ov.machine.tuner import TuningReport
from phi3ov.quality.report import QualityReport
from phi3ov.runtime.devices import DeviceInfo
from phi3ov.runtime.rope import ContextChoice
from phi3ov.runtime.settings import Setting
from phi3ov.runtime.tuning import TunedSettings, TuningKey, TuningRecord

from .fakes import MINI, SMALL_CONFIG, Answer, FakeEngine, answer_ids, make_model
from .test_artifact import WEIGHTS, write_manifest

MODEL = (
    "--adapter --cache-dir --context-tokens --device --engine --frequency-penalty --help "
    "--max-new-tokens --max-reasoning-tokens --min-p --presence-penalty --repetition-penalty "
    "--revision --seed --stop --temperature --threads --top-k --top-p -h"
)
OPTIONS = {
    "export": "--adjust --asymmetric --calibrate --group-size --help --json --log --overwrite "
    "--precision --preset --quiet --ratio --revision --target-bits -h output source",
    "chat": f"{MODEL} --cache-gb --choice --draft --file --json --json-schema --no-history "
    "--prompt-lookup --regex --system --verbose message model",
    "serve": "--adapter --allow-control-tokens --allowed-host --allowed-origin --api-key-file "
    "--cache-dir --context-tokens --default-temperature --device --drain-seconds "
    "--engine --events-per-second --help --host --ignore-unknown --max-body-bytes "
    "--max-connections --max-depth --max-running --max-tokens --max-waiting "
    "--max-waiting-tokens --model-name --no-auth --ping-seconds --port --revision --threads "
    "--timeout-seconds --write-timeout-seconds -h model",
    "batch": f"{MODEL} --actors --json --max-running --quiet --ray --timeout-seconds input model "
    "output",
    "info": "--device --help --json --revision -h model",
    "verify": "--help --json --revision -h model",
    "ovms": "--cache-gb --context-tokens --device --help --json --name --plugin-config --revision "
    "--tool-template -h model target",
    "quality": "--help --json --max-tokens --quiet --svg --text --window-tokens -h artifact source",
    "tune": "--budget --dry-run --help --json --output --own-divergence --quiet --revision "
    "--rounds --svg --text -h model",
    "doctor": "--answer-tokens --device --engine --help --json --quiet --revision --tolerance -h "
    "model",
    "devices": "--help --json -h",
    "reference": "--help --json --overwrite -h output",
}
"""Every argument of every command: public, so a change here is one for CHANGELOG."""

REPLY = {"text", "finish_reason", "usage", "timings", "seed"}
JSON_KEYS: dict[str, set[str]] = {
    "export": {
        *("path", "source_bytes", "artifact_bytes", "bits_per_weight", "recipe", "weights"),
        "notes",
        "phase_seconds",
    },
    "chat": REPLY,
    "batch": {"output", "done", "failed", "total"},
    "info": {
        *("source", "revision", "commit", "recipe", "bits_per_weight", "source_bytes"),
        *("artifact_bytes", "chat_format", "system_messages", "chat_extension", "stop_tokens"),
        *("context_tokens", "experts"),
        *("most_context_tokens", "longrope", "versions", "notes", "weights", "layers"),
    },
    "verify": {"path", "files", "problems"},
    "ovms": {
        *("name", "folder", "repository_config", "context", "linked", "copied", "notes"),
        "command",
    },
    "quality": {
        *("source", "artifact", "tokens", "window_tokens", "properties", "source_perplexity"),
        *("artifact_perplexity", "mean_kl", "p99_kl", "top1_agreement", "source_bytes"),
        *("artifact_bytes", "bits_per_weight", "kl_histogram", "samples"),
    },
    "tune": {"artifact", "record", "rows", "budget", "saved_to"},
    "doctor": {"artifact", "openvino", "tolerance_nats", "prompt_tokens", "findings"},
    "devices": {"name", "full_name", "memory_bytes", "precisions"},
    "reference": {"path"},
}
"""What each command prints with ``--json``: public, likewise."""

HELLO = answer_ids("hello the user")


def parameters(command: str) -> dict[str, Any]:
    """Return what a command takes: options by each of their spellings, arguments by their names."""
    parser = build_command().commands[command]
    context = parser.make_context(command, [], resilient_parsing=True)
    return {
        name: parameter
        for parameter in parser.get_params(context)
        for name in (
            parameter.opts
            if parameter.param_type_name == "option"
            else [(parameter.metavar or parameter.name).lower()]
        )
    }


def parse(command: str, *arguments: str) -> dict[str, Any]:
    """Return the values that a command line gives."""
    values: dict[str, Any] = (
        build_command().commands[command].make_context(command, list(arguments)).params
    )
    return values


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An exported folder without a graph."""
    path = tmp_path / "phi3"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(SMALL_CONFIG), encoding="utf-8")
    (path / "tokenizer.json").write_text(MINI.tokenizer_json, encoding="utf-8")
    write_manifest(path, record_files(path))
    return path


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[TokenRequest], Answer]], None]:
    """Let commands load a model that answers by a function."""

    def use(answer: Callable[[TokenRequest], Answer]) -> None:
        def load_model(*_: Any, **__: Any) -> Phi3Model:
            return make_model(FakeEngine(answer))

        monkeypatch.setattr("phi3ov.loading.load_model", load_model)

    return use


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if a command loads a model."""
    monkeypatch.setattr("phi3ov.loading.load_model", lambda *_, **__: pytest.fail("loaded"))


@pytest.mark.parametrize("command", COMMANDS)
def test_the_options_of_every_command_are_written_down(command: str) -> None:
    """They are public; each is explained in the help."""
    found = parameters(command)
    assert sorted(found) == sorted(OPTIONS[command].split())
    assert [name for name, parameter in found.items() if not parameter.help] == []


@pytest.mark.parametrize("command", ["chat", "batch"])
def test_the_command_offers_every_engine(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An engine is added in one place."""
    files = [] if command == "chat" else ["in", "out"]
    for engine in ENGINES:
        assert parse(command, "m", *files, "--engine", engine)["engine"] == engine
    with pytest.raises(SystemExit):
        main([command, "m", *files, "--engine", "toy"])
    said = " ".join(capsys.readouterr().err.split())
    assert f"is not one of {', '.join(map(repr, ENGINES))}." in said


@pytest.mark.parametrize("command", sorted(JSON_KEYS))
def test_the_json_of_every_reporting_command_is_written_down(
    command: str,
    folder: Path,
    tmp_path: Path,
    *,
    load: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One value on stdout and nothing else; its names are public."""
    artifact = Artifact.open(folder)
    report = ExportReport(
        artifact=artifact, source_bytes=1, artifact_bytes=1, weights=(WEIGHTS,), phase_seconds={}
    )
    numbers: dict[str, Any] = dict.fromkeys(QualityReport.__slots__, 1)
    device = DeviceInfo(name="CPU", full_name="a CPU", memory_bytes=None, precisions=())
    monkeypatch.setattr("phi3ov.exporter.export.export_model", lambda *_, **__: report)
    monkeypatch.setattr("phi3ov.quality.compare", lambda *_, **__: QualityReport(**numbers))
    key = TuningKey(processor="a CPU", features=(), cpus=1, openvino="1", weights="1")
    own = TunedSettings()
    record = TuningRecord(key=key, date="2026-11-28", latency=own, throughput=own)
    tuned = TuningReport(artifact="a", record=record, rows=(), budget=0.01, saved_to=None)
    monkeypatch.setattr("phi3ov.machine.tuner.tune", lambda *_, **__: tuned)
    healthy = Diagnosis(
        artifact="a", openvino="1", tolerance_nats=2.0, prompt_tokens=(), findings=()
    )
    monkeypatch.setattr("phi3ov.machine.doctor.diagnose", lambda *_, **__: healthy)
    monkeypatch.setattr("phi3ov.cli.devices.describe_devices", lambda: (device,))
    monkeypatch.setattr("phi3ov.reference.build_reference", lambda path, **_: path)
    served = OvmsModel(
        name="a",
        folder=tmp_path,
        repository_config=tmp_path,
        context=ContextChoice(tokens=1, factors="none"),
        linked=(),
        copied=(),
        notes=(),
        command="ovms",
    )
    monkeypatch.setattr("phi3ov.integrations.ovms.write_ovms_model", lambda *_, **__: served)
    load(lambda _request: Answer(HELLO))
    lines = tmp_path / "in.jsonl"
    lines.write_text('{"prompt": "a"}\n', encoding="utf-8")
    arguments: dict[str, list[Any]] = {
        "export": ["a", "b"],
        "chat": [folder, "hi"],
        "batch": [folder, lines, tmp_path / "out.jsonl", "--quiet"],
        "info": [folder],
        "verify": [folder],
        "ovms": [folder, tmp_path / "served"],
        "quality": ["a", "b"],
        "tune": ["a"],
        "doctor": ["a"],
        "devices": [],
        "reference": ["a"],
    }
    assert main([command, *map(str, arguments[command]), "--json"]) == 0
    out, err = capsys.readouterr()
    value = json.loads(out)
    assert set(value[0] if command == "devices" else value) == JSON_KEYS[command]
    assert err == ""


def test_info_shows_the_settings_of_a_device(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each with who chose it and why, as `Phi3Model.settings` would; on request only."""
    setting = Setting(name="NUM_STREAMS", value="1", chosen_by="phi3ov", reason="one chat")
    asked: list[str] = []

    def settings_of(_config: object, _core: object, device: str, **_: object) -> Any:
        asked.append(device)
        return (setting,)

    monkeypatch.setattr("phi3ov.runtime.properties.device_settings", settings_of)
    assert main(["info", str(folder), "--device", "CPU", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert set(facts) == JSON_KEYS["info"] | {"settings"}
    assert facts["settings"][0] == asdict(setting)
    assert [row["name"] for row in facts["settings"][1:]] == ["HUGE_PAGES"]
    assert main(["info", str(folder), "--device", "CPU"]) == 0
    [row] = [row for row in capsys.readouterr().out.splitlines() if "NUM_STREAMS" in row]
    assert row.split() == ["NUM_STREAMS", "1", "phi3ov", "one", "chat"]
    assert asked == ["CPU", "CPU"]
    assert main(["info", str(folder)]) == 0
    assert "NUM_STREAMS" not in capsys.readouterr().out


@pytest.mark.parametrize("command", ["info", "verify"])
def test_a_hub_id_is_downloaded(
    command: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As `load_model` does; a revision goes with a hub id only."""
    asked: list[tuple[str, str | None]] = []

    def fetch(repo_id: str, *, revision: str | None, needs_chat: bool) -> Artifact:
        asked.append((repo_id, revision))
        return Artifact.open(folder, needs_chat=needs_chat)

    monkeypatch.setattr("phi3ov.loading.fetch_artifact", fetch)
    assert main([command, "owner/name", "--revision", "main"]) == 0
    assert asked == [("owner/name", "main")]
    assert main([command, str(folder), "--revision", "main"]) == 1
    assert "goes with a hub id" in capsys.readouterr().err


def test_every_command_that_has_json_is_listed() -> None:
    """Every command reports something, except the one that runs until it is ended."""
    assert {name for name in COMMANDS if "--json" in OPTIONS[name]} == set(JSON_KEYS)
    assert set(COMMANDS) - {"serve"} == set(JSON_KEYS)


@pytest.mark.parametrize(
    ("spoil", "files", "problem"),
    [
        (lambda path: (path / "tokenizer.json").unlink(), None, "tokenizer.json: missing"),
        (lambda path: (path / "phi3ov.json").write_text("{"), None, "phi3ov.json cannot be read"),
        (lambda path: (path / "phi3ov.json").unlink(), None, "openvino_model.xml|has no phi3ov"),
        (
            lambda path: (path / "config.json").write_bytes(
                b"x" * (path / "config.json").stat().st_size
            ),
            None,
            "config.json",
        ),
        (
            lambda path: (path / "config.json").write_bytes(
                (path / "config.json").read_bytes().replace(b'": ', b'" :')
            ),
            2,
            "config.json: its content has changed",
        ),
    ],
)
def test_verify_prints_json_whatever_is_wrong(
    spoil: Callable[[Path], object],
    files: int | None,
    problem: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also where the folder cannot be opened; the number of files is unknown then."""
    spoil(folder)
    assert main(["verify", str(folder), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["path"] == str(folder)
    assert found["files"] == files
    assert any(one for one in found["problems"] if any(p in one for p in problem.split("|")))


@pytest.mark.parametrize(
    "arguments",
    [
        ["m", "--temperature", "0.5", "hello"],
        ["m", "hello", "--temperature", "0.5"],
        ["--temperature", "0.5", "m", "hello"],
        ["--temperature", "0.5", "m", "--", "hello"],
    ],
)
def test_options_may_stand_between_model_and_message(arguments: list[str]) -> None:
    """In any order, and behind two dashes."""
    values = parse("chat", *arguments)
    given = (values["model"], values["message"], values["temperature"])
    assert given == ("m", "hello", 0.5)


def test_a_message_may_begin_with_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    """Behind two dashes; a second message is one too many in whatever order."""
    assert parse("chat", "m", "--", "-x")["message"] == "-x"
    for arguments in (["m", "a", "b"], ["m", "a", "--threads", "1", "b"]):
        with pytest.raises(SystemExit) as stopped:
            main(["chat", *arguments])
        assert stopped.value.code == 2
    assert re.search(r"unexpected extra argument.* \(b\)", capsys.readouterr().err)


def test_what_a_terminal_cannot_show_is_replaced(
    load: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer in a console of another encoding is an answer with question marks."""
    load(lambda _request: Answer(answer_ids("größe")))
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii", newline="\n"))
    assert main(["chat", "m", "hi"]) == 0
    assert shown.getvalue() == b"gr??e\n"


def test_the_question_of_a_chat_is_no_result(
    load: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In a pipe, stdout holds the answers and nothing else."""
    load(lambda _request: Answer(HELLO))
    monkeypatch.setattr(sys, "stdin", io.StringIO("hi\n\nagain\n"))
    assert main(["chat", "m"]) == 0
    out, err = capsys.readouterr()
    assert out == "hello the user\nhello the user\n"
    assert err.count("you> ") == 4, "the empty line and the end are asked for, too"


def test_ctrl_c_in_a_single_answer_is_exit_code_130(
    load: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """A script must see that the answer was cut off; what there was of it has been printed."""

    def answer(_request: TokenRequest) -> Answer:
        while signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            time.sleep(0.001)
        _thread.interrupt_main()
        return Answer(endless=True)

    load(answer)
    assert main(["chat", "m", "hi"]) == 130
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert main(["chat", "m", "hi", "--json"]) == 130
    out = capsys.readouterr().out
    assert json.loads(out.strip())["finish_reason"] == "cancelled"


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("size", ["nan", "inf", "0", "-1"])
def test_a_cache_must_have_a_size(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Said before the model is loaded, by the option's name and its value."""
    assert main(["chat", "m", "hi", f"--cache-gb={size}"]) == 1
    assert f"phi3ov: --cache-gb={float(size)} must be" in capsys.readouterr().err


@pytest.mark.usefixtures("no_model")
def test_json_of_a_conversation_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """It is one value, of one answer."""
    with pytest.raises(SystemExit) as stopped:
        main(["chat", "m", "--json"])
    assert stopped.value.code == 2
    assert "--json goes with a MESSAGE only" in capsys.readouterr().err


def test_a_schema_may_begin_with_a_mark(
    load: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Windows' editors put one before UTF-8; the value of the answer is in the JSON."""
    schema = tmp_path / "schema.json"
    schema.write_bytes(b'\xef\xbb\xbf{"type": "integer"}')
    load(lambda _request: Answer(answer_ids("7")))
    assert main(["chat", "m", "hi", "--json-schema", str(schema), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parsed"] == 7


@pytest.mark.parametrize("name", ["no/such/folder.svg", "."])
def test_a_picture_that_cannot_be_written_is_told_before_the_comparison(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Which takes minutes."""
    monkeypatch.setattr("phi3ov.quality.compare", lambda *_, **__: pytest.fail("compared"))
    assert main(["quality", "a", "b", "--svg", str(tmp_path / name)]) == 1
    assert "cannot be written" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_picture_is_not_touched_before_there_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A comparison that fails leaves the old picture, and none where there was none."""

    def fail(*_: object, **__: object) -> None:
        raise OSError("no disk")

    monkeypatch.setattr("phi3ov.quality.compare", fail)
    old = tmp_path / "old.svg"
    old.write_text("old", encoding="utf-8")
    for path in (old, tmp_path / "new.svg"):
        assert main(["quality", "a", "b", "--svg", str(path)]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["old.svg"]
    assert old.read_text(encoding="utf-8") == "old"


@pytest.mark.usefixtures("no_model")
def test_an_output_that_another_process_writes_is_told_before_the_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Loading takes a minute."""
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"prompt": "a"}\n', encoding="utf-8")
    with FileLock(tmp_path / ".out.jsonl.lock"):
        assert main(["batch", "m", str(source), str(target)]) == 1
    assert "Another process is writing" in capsys.readouterr().err


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--actors", "2"], "--actors 2 has no effect without --ray"),
        (["--ray", "auto", "--engine", "pipeline"], "--engine pipeline does not go with --ray"),
        (["--ray", "auto", "--actors", "0"], "actors=0"),
    ],
)
def test_options_of_a_cluster_are_checked_before_it_is_asked(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Connecting takes seconds."""
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "a"}\n', encoding="utf-8")
    assert main(["batch", "m", str(source), str(tmp_path / "out.jsonl"), *options]) == 1
    assert message in capsys.readouterr().err


def test_an_error_of_the_system_is_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A full disk is no defect of the library."""

    def fail() -> SimpleNamespace:
        raise OSError(28, "No space left on device", "out.jsonl")

    monkeypatch.setattr("phi3ov.cli.devices.describe_devices", fail)
    assert main(["devices"]) == 1
    assert capsys.readouterr().err == "phi3ov: [Errno 28] No space left on device: 'out.jsonl'\n"


def test_ovms_says_what_it_wrote(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The command that starts the server and each note; options reach the library."""
    given: dict[str, Any] = {}

    def write(model: str, target: Path, **options: Any) -> OvmsModel:
        given.update(options, model=model, target=target)
        return OvmsModel(
            name="a",
            folder=tmp_path / "a",
            repository_config=tmp_path / "config.json",
            context=ContextChoice(tokens=4096, factors="short"),
            linked=("openvino_model.bin",),
            copied=("config.json",),
            notes=("Pinned.",),
            command="ovms --config_path config.json",
        )

    monkeypatch.setattr("phi3ov.integrations.ovms.write_ovms_model", write)
    config = ["--plugin-config", '{"NUM_STREAMS": 1}']
    assert main(["ovms", str(folder), str(tmp_path), "--context-tokens", "9", *config]) == 0
    assert (given["context_tokens"], given["properties"]) == (9, {"NUM_STREAMS": 1})
    out = capsys.readouterr().out
    assert "ovms --config_path config.json" in out
    assert "- Pinned." in out
    for wrong in ("{", "[]"):
        with pytest.raises(SystemExit):
            main(["ovms", str(folder), str(tmp_path), "--plugin-config", wrong])
        assert "--plugin-config" in capsys.readouterr().err
