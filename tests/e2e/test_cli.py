"""The command ``phi3ov``, run as a process on the reference model."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import phi3ov

from .conftest import RunPython


def test_chat_answers_one_message_on_stdout_and_nothing_else(
    run_python: RunPython, reference_export: Path
) -> None:
    """``phi3ov chat MODEL MESSAGE`` prints the answer and only that: it can be piped."""
    done = run_python("-m", "phi3ov", "chat", reference_export, "What is the capital of France?")
    assert done.returncode == 0
    assert done.stdout == "The capital of France is Paris.\n"


@pytest.mark.parametrize("option", ["--json-schema", "--regex", "--choice"])
def test_chat_answers_in_the_shape_that_is_asked_for(
    option: str, run_python: RunPython, reference_export: Path, tmp_path: Path
) -> None:
    """A question that is answered in a sentence otherwise; each option changes the answer."""
    schema = tmp_path / "schema.json"
    city = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}}
    schema.write_text(json.dumps({**city, "required": ["city"]}), encoding="utf-8")
    values: dict[str, list[str | Path]] = {
        "--json-schema": ["--json-schema", schema],
        "--regex": ["--regex", "[A-Z]{5}[.]"],
        "--choice": ["--choice", "Lyon", "--choice", "Nice"],
    }
    done = run_python(
        "-m", "phi3ov", "chat", reference_export, "What is the capital of France?", *values[option]
    )
    assert done.returncode == 0, done.stderr
    answer = done.stdout.removesuffix("\n")
    if option == "--json-schema":
        assert list(json.loads(answer)) == ["city"]
    elif option == "--regex":
        assert re.fullmatch("[A-Z]{5}[.]", answer)
    else:
        assert answer in ("Lyon", "Nice")


@pytest.mark.parametrize("content", [None, "{"])
def test_a_schema_that_cannot_be_read_is_told_before_the_model_is_loaded(
    content: str | None, run_python: RunPython, tmp_path: Path
) -> None:
    """The file is missing, or is no JSON; the model is not there either, and not missed yet."""
    schema = tmp_path / "schema.json"
    if content is not None:
        schema.write_text(content, encoding="utf-8")
    done = run_python("-m", "phi3ov", "chat", tmp_path / "none", "Hi", "--json-schema", schema)
    assert done.returncode == 1
    assert done.stderr.startswith(f"phi3ov: --json-schema {schema} cannot be read: ")


def test_interactive_chat_remembers_resets_and_ends_with_the_input(
    run_python: RunPython, reference_export: Path
) -> None:
    """Turns build on each other, /reset forgets, an error does not end the program, EOF does."""
    done = run_python(
        "-m", "phi3ov", "chat", reference_export, "--max-new-tokens", "40",
        stdin="What is the capital of France?\n/reset\nWhat is the capital of France?\n",
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stdout.count("The capital of France is Paris.") == 2
    assert "(forgotten)" in done.stderr
    tokens_in = [line for line in done.stderr.splitlines() if "tokens in" in line]
    first, second = (line.partition("tokens in")[0].split("; ")[1] for line in tokens_in)
    assert first == second, "after /reset the prompt is as short as the first one"


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT to one process, which Windows cannot")
def test_ctrl_c_stops_the_answer_and_not_the_program(reference_export: Path) -> None:
    """Ctrl-C during an answer ends that answer; the next message is answered."""
    process = subprocess.Popen(
        [sys.executable, "-m", "phi3ov", "chat", str(reference_export)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdin.write("Write a long story about a lighthouse, with every detail.\n")
    process.stdin.flush()
    while process.stderr.read(1) != ">":  # the prompt "you> "
        pass
    process.stdout.read(40)  # the answer is under way
    process.send_signal(signal.SIGINT)
    out, err = process.communicate("What is the capital of France?\n", timeout=120)
    assert process.returncode == 0
    assert "(cancelled;" in err
    assert "Paris" in out


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_a_person_types_pastes_interrupts_and_leaves(
    reference_export: Path, tmp_path: Path
) -> None:
    """At a real terminal: arrows edit the line, a paste is one message, Ctrl-C, Ctrl-D."""
    pytest.importorskip("pexpect")
    environment = {
        **os.environ,
        "XDG_STATE_HOME": str(tmp_path),
        "HOME": str(tmp_path),
        "TERM": "xterm",
        "PROMPT_TOOLKIT_NO_CPR": "1",  # a real terminal answers where its cursor is
    }
    chat = [sys.executable, "-m", "phi3ov", "chat", str(reference_export)]
    endless = ["--regex", "([a-z]{3} ){500}", "--max-new-tokens", "3000"]
    script = Path(__file__).with_name("at_a_terminal.py")
    done = subprocess.run(
        [sys.executable, script, *chat, *endless],
        env=environment, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    [history] = tmp_path.rglob("chat_history")
    assert "+Write a long story.\n+It is about a lighthouse.\n" in history.read_text("utf-8")


def test_info_shows_what_the_model_really_holds(
    run_python: RunPython, reference_export: Path
) -> None:
    """``info --json`` is the manifest's facts and all stop tokens; plain ``info`` shows a table."""
    facts = json.loads(run_python("-m", "phi3ov", "info", "--json", reference_export).stdout)
    weights = phi3ov.Artifact.open(reference_export).manifest.weights
    assert [one["layers"] for one in facts["weights"]] == [one.layers for one in weights]
    assert set(facts["stop_tokens"].values()) >= {"<|end|>", "<|endoftext|>", "<|assistant|>"}
    table = run_python("-m", "phi3ov", "info", reference_export).stdout
    assert "int4" in table
    assert "bits per weight" in table


def test_verify_finds_one_changed_byte(
    run_python: RunPython, reference_export: Path, tmp_path: Path
) -> None:
    """``verify`` exits with 0 on a whole folder and with 1, naming the file, on a changed one."""
    copy = shutil.copytree(reference_export, tmp_path / "copy")
    assert run_python("-m", "phi3ov", "verify", copy).returncode == 0
    whole = json.loads(run_python("-m", "phi3ov", "verify", copy, "--json").stdout)
    assert (whole["path"], whole["problems"]) == (str(copy), [])
    with (copy / "openvino_model.bin").open("r+b") as file:
        file.seek(1_000_000)
        byte = file.read(1)
        file.seek(1_000_000)
        file.write(bytes([byte[0] ^ 1]))
    done = run_python("-m", "phi3ov", "verify", copy, "--json")
    assert done.returncode == 1
    assert "openvino_model.bin: its content has changed" in done.stderr
    assert "openvino_model.bin" in json.loads(done.stdout)["problems"][0]


def test_devices_lists_what_openvino_finds(run_python: RunPython) -> None:
    """``devices`` names the CPU, its memory and its precisions, as a table and as JSON."""
    listed = json.loads(run_python("-m", "phi3ov", "devices", "--json").stdout)
    cpu = next(one for one in listed if one["name"] == "CPU")
    assert "FP32" in cpu["precisions"]
    table = run_python("-m", "phi3ov", "devices").stdout
    assert cpu["full_name"] in table
    assert f"{cpu['memory_bytes'] / 1e9:.2f} GB" in table


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("chat", "no-such-folder", "hi"), "is not a folder"),
        pytest.param(
            ("export", "no-such-folder", "out"),
            "neither a folder nor a hub id",
            marks=pytest.mark.export,
        ),
        (("info", "."), "has no phi3ov.json"),
    ],
)
def test_an_error_is_one_line_and_exit_code_1(
    run_python: RunPython, arguments: tuple[str, ...], said: str
) -> None:
    """What the library refuses is said in one line, without a traceback."""
    done = run_python("-m", "phi3ov", *arguments)
    assert done.returncode == 1
    last_line = done.stderr.splitlines()[-1]  # the export's progress may stand before it
    assert last_line.startswith("phi3ov: ")
    assert said in last_line
    assert "Traceback" not in done.stderr


def test_an_unknown_device_names_what_exists(run_python: RunPython, reference_export: Path) -> None:
    """Asking for a device that is not there lists those that are."""
    done = run_python("-m", "phi3ov", "chat", reference_export, "hi", "--device", "GPU.7")
    assert done.returncode == 1
    assert "GPU.7 is not there" in done.stderr
    assert "CPU (" in done.stderr


def test_int4_options_without_int4_are_refused(run_python: RunPython) -> None:
    """No option is accepted and ignored: --ratio goes with int4 only."""
    done = run_python("-m", "phi3ov", "export", "x", "y", "--precision", "int8", "--ratio", "0.5")
    assert done.returncode == 2
    assert "ratio" in done.stderr


@pytest.mark.export
def test_reference_builds_a_checkpoint_and_export_exports_it(commands: Path) -> None:
    """``phi3ov reference DIR`` and ``phi3ov export DIR OUT`` work one after the other."""
    made = json.loads((commands / "export.json").read_text(encoding="utf-8"))
    assert (made["path"], made["recipe"]["mode"]) == (str(commands / "small-int8"), "int8")
    weights = phi3ov.Artifact.open(commands / "small-int8").manifest.weights
    assert {one.precision for one in weights} == {"int8"}
