"""What is compared: a row per file of weights, and how that file is made."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from phi3ov_bench.gguf_writer import write_gguf
from phi3ov_bench.peers import PEERS, Peer, python_of
from phi3ov_bench.session import Session, surroundings

import phi3ov
from phi3ov.artifact.folder import Artifact
from phi3ov.exporter.recipes import Compression, read_recipe
from phi3ov.family import Phi3Config

from .dequantize import (
    Weights,
    gguf_types,
    read_gguf,
    read_onnx,
    tensor_names,
    write_checkpoint,
)
from .importance import save_importance
from .measure import Model, open_checkpoint, open_export
from .recipes import RECIPES, WITHOUT_GRID
from .texts import calibration_samples, open_tokenizer

OPENVINO = "OpenVINO, float32"
DEQUANTIZED = "weights only: dequantized, torch, float32"


@dataclass(frozen=True)
class Place:
    """Where files are made, and from what.

    Attributes:
        checkpoint: The source of every file.
        folder: Everything that is made is kept here.
        threads: For every tool.
    """

    checkpoint: Path
    folder: Path
    threads: int

    @cached_property
    def samples(self) -> Sequence[list[int]]:
        """Calibration samples as token ids, the same for every stack."""
        longest = Phi3Config.read(self.checkpoint / "config.json").max_position_embeddings
        return calibration_samples(open_tokenizer(self.checkpoint), longest)


class Row(Protocol):
    """One file of weights.

    Attributes:
        name: Key in the results.
        title: For the report.
        stack: Whose format it is.
        computed: How its logits are computed.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def title(self) -> str: ...  # noqa: D102
    @property
    def stack(self) -> str: ...  # noqa: D102
    @property
    def computed(self) -> str: ...  # noqa: D102

    def settings(self) -> dict[str, Any]:
        """Return how the file is made, as JSON values; an entry with other settings is stale."""
        ...

    def path(self, place: Place) -> Path:
        """Return the file or folder that the stack loads."""
        ...

    def make(self, place: Place) -> None:
        """Make the file, replacing an older one."""
        ...

    def weights_file(self, place: Place) -> Path:
        """Return the file whose bytes count."""
        ...

    def details(self, place: Place) -> dict[str, Any]:
        """Return what the file holds."""
        ...

    @contextmanager
    def open(self, place: Place) -> Iterator[Model]:
        """Open it for the comparison."""
        ...

    def peer(self) -> Peer:
        """Return who decodes it for the measurement of speed."""
        ...


@dataclass(frozen=True)
class Phi3OVRow:
    """An export by phi3ov."""

    name: str
    recipe: Compression
    stack = "phi3ov"
    computed = OPENVINO

    @property
    def title(self) -> str:
        """As in the report."""
        return f"phi3ov {self.name}"

    def settings(self) -> dict[str, Any]:
        """Return the recipe as the manifest records it."""
        return dict(json.loads(json.dumps(read_recipe(self.recipe).describe())))

    def path(self, place: Place) -> Path:
        """Return the exported folder."""
        return place.folder / _slug(self.name)

    def make(self, place: Place) -> None:
        """Export."""
        phi3ov.export_model(
            place.checkpoint,
            self.path(place),
            compression=self.recipe,
            overwrite=self.path(place).exists(),
            progress=False,
        )

    def weights_file(self, place: Place) -> Path:
        """Return the IR's weights."""
        return self.path(place) / "openvino_model.bin"

    def details(self, place: Place) -> dict[str, Any]:
        """Return the matrices by precision and group size."""
        return describe_export(self.path(place))

    @contextmanager
    def open(self, place: Place) -> Iterator[Model]:
        """Open in OpenVINO."""
        yield open_export(self.path(place), threads=place.threads)

    def peer(self) -> Peer:
        """Return phi3ov's default engine."""
        return _decoder(self.name, "phi3ov")


@dataclass(frozen=True)
class OptimumRow:
    """An export by optimum-intel with the recipe that it keeps for a model of the family."""

    model_id: str
    stack = "optimum-intel"
    computed = OPENVINO

    @property
    def name(self) -> str:
        """As in the results."""
        return f"optimum {self.model_id.rpartition('/')[2]}"

    @property
    def title(self) -> str:
        """As in the report."""
        model = self.model_id.rpartition("/")[2].removesuffix("-instruct")
        return f"optimum-intel's default for {model}"

    def settings(self) -> dict[str, Any]:
        """Return whose recipe it is; optimum-intel's version is among the results' versions."""
        return {"model_id": self.model_id}

    def path(self, place: Place) -> Path:
        """Return the exported folder."""
        return place.folder / _slug(self.name)

    def make(self, place: Place) -> None:
        """Export in optimum-intel's environment, with the calibration samples as its data set."""
        target = self.path(place)
        shutil.rmtree(target, ignore_errors=True)
        tokenizer = open_tokenizer(place.checkpoint)
        asked = {
            "checkpoint": str(place.checkpoint.resolve()),
            "target": str(target.resolve()),
            "model_id": self.model_id,
            "texts": [tokenizer.decode(sample) for sample in place.samples],
        }
        recipe = _run_in("optimum", "optimum_export", place, stdin=json.dumps(asked))
        (target / "recipe.json").write_text(recipe.splitlines()[-1], encoding="utf-8")

    def weights_file(self, place: Place) -> Path:
        """Return the IR's weights."""
        return self.path(place) / "openvino_model.bin"

    def details(self, place: Place) -> dict[str, Any]:
        """Return optimum-intel's recipe and the matrices by precision and group size."""
        recipe = json.loads((self.path(place) / "recipe.json").read_text(encoding="utf-8"))
        return {"recipe": recipe, **describe_export(self.path(place))}

    @contextmanager
    def open(self, place: Place) -> Iterator[Model]:
        """Open in OpenVINO."""
        yield open_export(self.path(place), threads=place.threads)

    def peer(self) -> Peer:
        """Return phi3ov's engine: the weights are compared, not the loop around them."""
        return _decoder(self.name, "phi3ov")


@dataclass(frozen=True)
class GgufRow:
    """A file that llama.cpp's quantizer writes."""

    kind: str
    importance: bool
    stack = "llama.cpp"
    computed = DEQUANTIZED

    @property
    def name(self) -> str:
        """As in the results."""
        return f"{self.kind}{' imatrix' if self.importance else ''}"

    @property
    def title(self) -> str:
        """As in the report."""
        return f"llama.cpp {self.kind}{', imatrix' if self.importance else ''}"

    def settings(self) -> dict[str, Any]:
        """Return the arguments of the quantizer."""
        return {"kind": self.kind, "importance_matrix": self.importance, "from": "float32"}

    def path(self, place: Place) -> Path:
        """Return the file."""
        return place.folder / f"{_slug(self.name)}.gguf"

    def make(self, place: Place) -> None:
        """Quantize a float32 GGUF, so that nothing is rounded twice."""
        source, matrix = place.folder / "f32.gguf", place.folder / "importance.npz"
        if not source.exists():
            unfinished = source.with_name("unfinished-f32.gguf")
            write_gguf(place.checkpoint, unfinished, exact=True)
            unfinished.replace(source)
        if self.importance:
            save_importance(place.checkpoint, place.samples, matrix)
        target = self.path(place)
        target.unlink(missing_ok=True)
        session = Session(self.peer(), target, threads=place.threads)
        try:
            session.start()
            session.request(
                "quantize",
                source=str(source.resolve()),
                target=str(target.resolve()),
                kind=self.kind,
                importance=str(matrix.resolve()) if self.importance else None,
            )
        finally:
            session.close()

    def weights_file(self, place: Place) -> Path:
        """Return the file, which holds no tokenizer."""
        return self.path(place)

    def details(self, place: Place) -> dict[str, Any]:
        """Return how many matrices have each type."""
        return {"matrices": gguf_types(self.path(place))}

    @contextmanager
    def open(self, place: Place) -> Iterator[Model]:
        """Open the dequantized weights in torch."""
        names = tensor_names(place.checkpoint)
        with dequantized(read_gguf(self.path(place), names), place.checkpoint) as model:
            yield model

    def peer(self) -> Peer:
        """Return llama.cpp."""
        return _decoder(self.name, "llama-q4_0")


@dataclass(frozen=True)
class OnnxRow:
    """What onnxruntime-genai's builder makes of ``-p int4``."""

    name = "ort int4"
    title = "onnxruntime-genai int4"
    stack = "onnxruntime-genai"
    computed = DEQUANTIZED

    def settings(self) -> dict[str, Any]:
        """Return the arguments of the builder."""
        return {"precision": "int4", "execution_provider": "cpu"}

    def path(self, place: Place) -> Path:
        """Return the built folder."""
        return place.folder / "ort-int4"

    def make(self, place: Place) -> None:
        """Run the builder in its environment."""
        target = self.path(place)
        shutil.rmtree(target, ignore_errors=True)
        with tempfile.TemporaryDirectory() as cache:
            command: list[str | Path] = [
                python_of("builder"),
                "-m",
                "onnxruntime_genai.models.builder",
            ]
            command += ["-i", place.checkpoint.resolve(), "-o", target.resolve(), "-p", "int4"]
            _run([*command, "-e", "cpu", "-c", cache], place)

    def weights_file(self, place: Place) -> Path:
        """Return the graph's external data."""
        return self.path(place) / "model.onnx.data"

    def details(self, place: Place) -> dict[str, Any]:  # noqa: ARG002
        """Return what `adapters.onnx_weights` checks while it reads."""
        return {"matrices": "int4 without zero points, float32 scales, the table included"}

    @contextmanager
    def open(self, place: Place) -> Iterator[Model]:
        """Open the dequantized weights in torch."""
        names = tensor_names(place.checkpoint)
        with tempfile.TemporaryDirectory() as folder:
            dumped = Path(folder) / "weights.npz"
            _run_in("builder", "onnx_weights", place, self.path(place) / "model.onnx", dumped)
            with dequantized(read_onnx(dumped, names), place.checkpoint) as model:
                yield model

    def peer(self) -> Peer:
        """Return onnxruntime-genai."""
        return _decoder(self.name, "ort")


_KINDS = ("Q4_0", "Q4_K_S", "Q4_K_M", "Q5_K_M")
_MODELS = ("microsoft/Phi-3-mini-4k-instruct", "microsoft/Phi-4-mini-instruct")

_ALL: tuple[Row, ...] = (
    *(Phi3OVRow(name, recipe) for name, recipe in RECIPES.items()),
    *(GgufRow(kind, importance) for kind in _KINDS for importance in (False, True)),
    OnnxRow(),
    *(OptimumRow(model_id) for model_id in _MODELS),
)

ROWS = {row.name: row for row in _ALL}
"""Every row by its name, in the order in which they are measured."""

DITHERED_ROWS = (
    *WITHOUT_GRID,
    *(f"{kind}{end}" for kind in ("Q4_0", "Q4_K_M", "Q5_K_M") for end in ("", " imatrix")),
    OnnxRow.name,
)
"""Rows that are measured on the source without its grid; enough to tell what the grid does."""


@contextmanager
def dequantized(weights: Weights, checkpoint: Path) -> Iterator[Model]:
    """Open weights in torch through a temporary float32 checkpoint."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        written = Path(folder) / "checkpoint"
        write_checkpoint(weights, checkpoint, written)
        yield open_checkpoint(written)


def describe_export(folder: Path) -> dict[str, Any]:
    """Return how many matrices of an OpenVINO export have each precision and group size."""
    counts = {}
    for kind in Artifact.open(folder).manifest.weights:
        sign = (
            "" if kind.precision not in ("int4", "int8") else " sym" if kind.symmetric else " asym"
        )
        group = f", groups of {kind.group_size}" if kind.group_size else ""
        counts[f"{kind.precision}{sign}{group}"] = kind.layers
    return {"matrices": counts}


def _decoder(name: str, peer: str) -> Peer:
    """Return a peer with a log file of its own."""
    model = PEERS[peer]
    return Peer(f"quality-{_slug(name)}", model.environment, model.adapter, model.variant, "", name)


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _run_in(environment: str, adapter: str, place: Place, *arguments: Path, stdin: str = "") -> str:
    """Run a script of ``adapters`` in another stack's environment; return what it prints."""
    module = f"quality_at_size.adapters.{adapter}"
    return _run([python_of(environment), "-m", module, *arguments], place, stdin=stdin)


def _run(command: Sequence[str | Path], place: Place, *, stdin: str = "") -> str:
    """Run a command of another stack; its messages go to stderr.

    Raises:
        FileNotFoundError: The environment is missing.
        subprocess.CalledProcessError: The command failed.
    """
    if not Path(command[0]).exists():
        raise FileNotFoundError(f"{command[0]} is missing. `make bench-peers` makes it.")
    done = subprocess.run(
        [str(part) for part in command],
        check=True,
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=sys.stderr if sys.stderr and hasattr(sys.stderr, "fileno") else None,
        text=True,
        env=surroundings(place.threads),
    )
    return done.stdout
