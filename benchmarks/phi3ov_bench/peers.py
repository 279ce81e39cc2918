"""Peers: an environment each, with pinned versions, made by one command.

An environment holds what a user of that peer would install, so its size counts as one of the
results. phi3ov's own is the base install of the built wheel: no torch, no transformers.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from .processor import processor_features

ROOT = Path(__file__).resolve().parents[2]
WORK = Path(os.environ.get("PHI3OV_BENCH_WORK", ROOT / "build" / "bench"))
REQUIREMENTS = ROOT / "benchmarks" / "requirements"

ENVIRONMENTS = ("phi3ov", "genai", "optimum", "llama", "ort", "builder")
"""``builder`` makes onnxruntime-genai's model and runs nothing."""

_WITH_TORCH = ("optimum", "builder")

_LLAMA_OPTIONS = {
    "fma": "GGML_FMA",
    "f16c": "GGML_F16C",
    "bmi2": "GGML_BMI2",
    "avx2": "GGML_AVX2",
    "avx_vnni": "GGML_AVX_VNNI",
    "avx512f": "GGML_AVX512",
    "avx512vbmi": "GGML_AVX512_VBMI",
    "avx512_vnni": "GGML_AVX512_VNNI",
    "avx512_bf16": "GGML_AVX512_BF16",
}
"""llama.cpp's build option for each instruction set, as Linux names it. AMX is not among them."""


def llama_build(instructions: Collection[str]) -> str:
    """Return the options with which llama.cpp is compiled for a processor, without images.

    ``GGML_NATIVE=ON`` would compile tile instructions in wherever the compiler sees AMX. A virtual
    machine may show AMX and not permit it, and then llama.cpp dies at the first token.

    Args:
        instructions: The processor's features, as ``/proc/cpuinfo`` names them.
    """
    chosen = {option: name in instructions for name, option in _LLAMA_OPTIONS.items()}
    flags = [f"-D{option}={'ON' if has else 'OFF'}" for option, has in chosen.items()]
    return " ".join(["-DGGML_NATIVE=OFF", "-DLLAVA_BUILD=OFF", *flags])


@dataclass(frozen=True, slots=True)
class Peer:
    """One row of the results.

    Attributes:
        name: Of the row.
        environment: Which of `ENVIRONMENTS` it runs in.
        adapter: Which module of ``adapters`` runs it.
        variant: What that module shall do: an engine (and a size for the groups in which
            activations are rounded), an attention back end.
        weights: Which of `models.FORMATS` it reads.
        title: For the report.
    """

    name: str
    environment: str
    adapter: str
    variant: str
    weights: str
    title: str


PEERS = {
    peer.name: peer
    for peer in (
        Peer("phi3ov", "phi3ov", "phi3ov", "pipeline", "openvino", "phi3ov"),
        Peer(
            "phi3ov-128",
            "phi3ov",
            "phi3ov",
            "pipeline 128",
            "openvino",
            "phi3ov, activations in groups of 128",
        ),
        Peer("phi3ov-worker", "phi3ov", "phi3ov", "worker", "openvino", "phi3ov, worker engine"),
        Peer("optimum", "optimum", "optimum", "", "openvino", "optimum-intel"),
        Peer("genai-pa", "genai", "genai", "PA", "openvino", "genai LLMPipeline, PA"),
        Peer("genai-sdpa", "genai", "genai", "SDPA", "openvino", "genai LLMPipeline, SDPA"),
        Peer("genai-cb", "genai", "genai", "CB", "openvino", "genai continuous batching"),
        Peer("llama-q4_0", "llama", "llama", "", "q4_0", "llama.cpp Q4_0"),
        Peer("llama-q4_k_m", "llama", "llama", "", "q4_k_m", "llama.cpp Q4_K_M"),
        Peer("ort", "ort", "ort", "", "ort", "onnxruntime-genai int4"),
    )
}


COMPARED = tuple(name for name in PEERS if name != "phi3ov-128")
"""Peers of a run by default; ``phi3ov-128`` sets what `RuntimeConfig` chooses by itself by now."""


def python_of(environment: str) -> Path:
    """Return the interpreter of an environment."""
    folder = WORK / f"env-{environment}"
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def install(environment: str) -> None:
    """Make an environment, if it is not there.

    Raises:
        subprocess.CalledProcessError: pip failed; its output says why.
    """
    folder = WORK / f"env-{environment}"
    done = folder / ".installed"
    if environment == "phi3ov":
        done.unlink(missing_ok=True)  # the code of this tree, whatever was measured before
    if done.is_file():
        return
    venv.create(folder, clear=True, with_pip=True)
    build = (
        {"CMAKE_ARGS": llama_build(processor_features())} if environment.startswith("llama") else {}
    )

    def pip(*arguments: str | Path) -> None:
        command = [python_of(environment), "-m", "pip", "install", "--quiet", *arguments]
        subprocess.run(
            [str(part) for part in command],
            check=True,
            cwd=ROOT,
            env={**os.environ, **build, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        )

    if environment == "phi3ov":
        wheel = _build_wheel(folder / "wheel")
        pip("--constraint", ROOT / "requirements" / "dev.txt", wheel)
    else:
        if environment in _WITH_TORCH:
            pip("--requirement", ROOT / "requirements" / "torch.txt")
        pip("--no-deps", "--requirement", REQUIREMENTS / f"{environment}.txt")
    done.write_text("ok\n", encoding="ascii")


def _build_wheel(folder: Path) -> Path:
    """Build phi3ov's wheel with the interpreter that runs this (it has hatchling)."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True)
    return next(folder.glob("phi3ov-*.whl"))


def installed_bytes(environment: str) -> int:
    """Return the size of an environment's packages, pip and setuptools left out."""
    packages = next((WORK / f"env-{environment}").rglob("site-packages"))
    own = ("pip", "setuptools", "_distutils_hack", "pkg_resources")
    return sum(
        file.stat().st_size
        for folder in packages.iterdir()
        if not folder.name.startswith(own)
        for file in (folder.rglob("*") if folder.is_dir() else [folder])
        if file.is_file()
    )


def installed_versions(environment: str) -> dict[str, str]:
    """Return the versions of an environment's packages."""
    command = [str(python_of(environment)), "-m", "pip", "list", "--format", "freeze"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    pairs = (line.split("==", 1) for line in listed.splitlines() if "==" in line)
    return {name: version for name, version in pairs if name not in ("pip", "setuptools")}
