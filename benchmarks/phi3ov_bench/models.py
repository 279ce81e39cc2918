"""The same weights in the format of each peer, made once and kept in ``build/bench/models``.

`checkpoint` is what all come from: the small reference, or a full-size Phi-3-mini with random
weights. `openvino` is what `phi3ov export` makes, which optimum-intel and openvino-genai read as
well: int4 for 60 % of the block parameters, symmetric, groups of 128, int8 for the rest. `q4_0`
and `q4_k_m` are llama.cpp's usual four-bit formats, `ort` is what onnxruntime-genai's builder
makes of ``-p int4``. How long each took, and its peak memory, is kept in ``made.json``.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

from .memory import Peak
from .peers import PEERS, ROOT, WORK, python_of
from .session import Session

ModelName = Literal["reference", "full"]
FORMATS = ("openvino", "q4_0", "q4_k_m", "ort")


def model_path(model: ModelName, form: str) -> Path:
    """Return where a model is in one format."""
    folder = WORK / "models" / model
    return folder / (f"{form}.gguf" if form.startswith("q4") else form)


def make_model(model: ModelName, form: str, *, threads: int) -> None:
    """Make a model in one format, if it is not there.

    Raises:
        subprocess.CalledProcessError: A tool failed.
    """
    target = model_path(model, form)
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = model_path(model, "checkpoint")
    if form == "checkpoint":
        _make_checkpoint(model, target)
        return
    make_model(model, "checkpoint", threads=threads)
    if form == "openvino":
        record = run_measured(export_command("phi3ov", checkpoint, target))
    elif form == "ort":
        command: list[str | Path] = [python_of("builder"), "-m", "onnxruntime_genai.models.builder"]
        command += ["-i", checkpoint, "-o", target, "-p", "int4", "-e", "cpu"]
        record = run_measured([*command, "-c", target.parent / "cache"])
        shutil.rmtree(target.parent / "cache", ignore_errors=True)
    else:
        record = _quantize(checkpoint, target, form, threads)
    made = WORK / "models" / model / "made.json"
    records = json.loads(made.read_text(encoding="utf-8")) if made.is_file() else {}
    made.write_text(json.dumps(records | {form: record}, indent=1), encoding="utf-8")


def export_command(exporter: str, checkpoint: Path, target: Path) -> list[str | Path]:
    """Return the command of ``phi3ov`` or of ``optimum-cli``, with one and the same recipe."""
    if exporter == "phi3ov":
        command: list[str | Path] = [sys.executable, "-m", "phi3ov", "export", "--adjust"]
        return [*command, "--quiet", checkpoint, target]
    command = [python_of("optimum"), "-m", "optimum.commands.optimum_cli", "export", "openvino"]
    command += ["--model", checkpoint, "--task", "text-generation-with-past"]
    command += ["--weight-format", "int4", "--sym", "--group-size", "128", "--ratio", "0.6"]
    return [*command, "--group-size-fallback", "adjust", target]


def run_measured(command: list[str | Path]) -> dict[str, float]:
    """Run a command and return its seconds and peak memory.

    Raises:
        subprocess.CalledProcessError: It failed.
    """
    log = WORK / "logs" / "made.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            [str(part) for part in command], stdout=output, stderr=output, cwd=ROOT
        )
        peak = Peak(process.pid)
        code = process.wait()
    record = peak.stop()
    if code:
        raise subprocess.CalledProcessError(code, [str(part) for part in command])
    return record


def _make_checkpoint(model: ModelName, target: Path) -> None:
    if model == "full":
        from export_full_size import build_checkpoint

        build_checkpoint(target)
        return
    from phi3ov.reference.build import build_reference

    build_reference(target)


def _quantize(checkpoint: Path, target: Path, form: str, threads: int) -> dict[str, float]:
    """Write a float16 GGUF, let llama.cpp quantize it, and keep it while others need it."""
    source = target.with_name("f16.gguf")
    if not source.exists():
        run_measured(
            [sys.executable, "-c", "import sys; from pathlib import Path; "
             "from phi3ov_bench.gguf_writer import write_gguf; "
             "write_gguf(Path(sys.argv[1]), Path(sys.argv[2]))", checkpoint, source]
        )  # fmt: skip
    session = Session(PEERS[f"llama-{form}"], target, threads=threads)
    peak = Peak(session.process_id)
    try:
        session.start()
        session.request("quantize", source=str(source), target=str(target), kind=form.upper())
    finally:
        record = peak.stop()
        session.close()
    if all(target.with_name(f"{form}.gguf").exists() for form in ("q4_0", "q4_k_m")):
        source.unlink()
    return record


def weight_bytes(model: ModelName, form: str) -> dict[str, int]:
    """Return the size of the weights on disk, and how many bytes of them one token reads."""
    target = model_path(model, form)
    config = json.loads((model_path(model, "checkpoint") / "config.json").read_text())
    tied = config["tie_word_embeddings"]
    values = config["vocab_size"] * config["hidden_size"]
    if form.startswith("q4"):
        from .gguf_writer import bytes_per_token

        return {"on_disk": target.stat().st_size, "per_token": bytes_per_token(target)}
    if form == "openvino":
        weights: list[dict[str, Any]] = json.loads((target / "phi3ov.json").read_text())["weights"]
        total = sum(kind["size_bytes"] for kind in weights)
        table = values + 3 * config["vocab_size"]  # int8, a float16 scale and a zero point a row
    else:
        total = sum(file.stat().st_size for file in target.glob("*.onnx.data"))
        table = 4 * values  # the builder keeps a table of its own in float32
    return {"on_disk": total, "per_token": total - (0 if tied else table)}
