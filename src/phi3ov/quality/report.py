"""Measures the quality loss of an export against its source, token by token.

`compare` runs both over the same text and returns a `QualityReport`. The source runs in
float32 in transformers. The export runs in OpenVINO with float32 arithmetic, a float32 KV cache
and no dynamic quantization of activations, so that **only the weights differ**. Pass a
`RuntimeConfig` to `compare` to include the loss of faster arithmetic. ``plot.py`` draws the
pictures.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artifact.folder import Artifact
from ..engine.logits import ExportedModel, Logits, divergence, log_probabilities
from ..errors import ExportError, MissingDependencyError, OptionError, Phi3OVError
from ..exporter.calibration import evaluation_text
from ..exporter.checkpoint import Checkpoint
from ..prompt.chat_tokenizer import ChatTokenizer
from ..prompt.messages import Message
from ..runtime.config import RuntimeConfig
from .logits import SourceModel

if TYPE_CHECKING:
    pass

PROMPTS = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "Give me three tips for better sleep.",
)
"""Default prompts of the sample answers."""

KL_EDGES = tuple(10.0 ** (exponent / 2) for exponent in range(-12, 5))
"""Upper edges, in nats, of the bars of ``kl_histogram``; the last bar is open."""

_ROWS = 16
"""Number of tokens whose probabilities are held in memory at once, as float64."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleAnswer:
    """Greedy answers of source and export to one prompt, cut off after some tokens."""

    prompt: str
    source: str
    artifact: str


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityReport:
    """Result of `compare`. ``print(report)`` shows it as a table.

    Attributes:
        source: The source checkpoint.
        artifact: The exported folder.
        tokens: Number of compared predictions.
        window_tokens: Length of the windows of text, each read from an empty context.
        properties: The OpenVINO properties that the export was computed with.
        source_perplexity: Perplexity of the source on the text: exp of the mean negative
            log-likelihood.
        artifact_perplexity: Perplexity of the export on the text.
        mean_kl: Mean of KL(source || artifact) over the predictions, in nats.
        p99_kl: Its 99th percentile, interpolated linearly.
        top1_agreement: Share of predictions with the same most likely token, 0 to 1.
        source_bytes: Bytes of the checkpoint's weights.
        artifact_bytes: Bytes of the exported folder.
        bits_per_weight: Average bits per parameter, scales and zero points included.
        kl_histogram: Number of predictions up to each edge of `KL_EDGES`, and above the last.
        samples: Paired answers.
    """

    source: str
    artifact: str
    tokens: int
    window_tokens: int
    properties: Mapping[str, str]
    source_perplexity: float
    artifact_perplexity: float
    mean_kl: float
    p99_kl: float
    top1_agreement: float
    source_bytes: int
    artifact_bytes: int
    bits_per_weight: float
    kl_histogram: tuple[int, ...]
    samples: tuple[SampleAnswer, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        rows = [
            ("", "source", "artifact"),
            ("bytes", f"{self.source_bytes:,}", f"{self.artifact_bytes:,}"),
            ("bits per weight", "", f"{self.bits_per_weight:.2f}"),
            ("perplexity", f"{self.source_perplexity:.3f}", f"{self.artifact_perplexity:.3f}"),
            ("KL mean (nats)", "", f"{self.mean_kl:.5f}"),
            ("KL 99th percentile", "", f"{self.p99_kl:.5f}"),
            ("same first choice", "", f"{self.top1_agreement:.2%}"),
        ]
        lines = [f"{name:20}{source:>16}{artifact:>16}" for name, source, artifact in rows]
        lines.append(f"over {self.tokens:,} predictions in windows of {self.window_tokens} tokens")
        said = ", ".join(f"{name}={value}" for name, value in self.properties.items())
        lines.append(f"the artifact computed with {said}")
        for sample in self.samples:
            lines += ["", f"> {sample.prompt}"]
            lines += [f"  source:   {_one_line(sample.source)}"]
            lines += [f"  artifact: {_one_line(sample.artifact)}"]
        return "\n".join(lines)


def compare(
    source: str | Path,
    artifact: str | Path,
    *,
    text: str | None = None,
    window_tokens: int = 512,
    max_tokens: int = 8192,
    prompts: Sequence[str] = PROMPTS,
    config: RuntimeConfig | None = None,
    progress: bool = True,
) -> QualityReport:
    """Measure the quality loss of ``artifact`` against ``source``.

    The text is cut into windows that are read one by one, so memory is bounded by the two models
    and one window of logits. The weights of a source above 1 GiB stay in their own precision in
    memory and are widened layer by layer.

    Args:
        source: The checkpoint: a folder or a hub id.
        artifact: The folder that was exported from the checkpoint.
        text: The text to read; None for `calibration.evaluation_text`, which shares no
            paragraph with the default calibration text.
        window_tokens: Tokens per window; an incomplete last window is dropped.
        max_tokens: Maximum number of tokens to read.
        prompts: User messages for the sample answers; empty for none.
        config: OpenVINO's settings for the export on the CPU; None for the most exact ones.
            ``RuntimeConfig()`` is the arithmetic of answers by default.
        progress: Print a line per window to stderr.

    Raises:
        OptionError: A number is out of range, the text is too short, or the two tokenizers
            encode the text differently.
        ArtifactError: The exported folder is incomplete or changed.
        ExportError: The source cannot be used, or a tool failed.
        UnsupportedModelError: The source is not a Phi-3 that phi3ov supports.
        MissingDependencyError: ``phi3ov[export]`` is not installed.

    Example:
        >>> print(compare("microsoft/Phi-3-mini-4k-instruct", "phi3"))  # doctest: +SKIP
    """
    _require_tools()
    exported = Artifact.open(artifact)
    if exported.has_checksums:
        exported.verify()
    manifest = exported.manifest
    same = str(source) == manifest.source  # then compare with the exported commit
    checkpoint = Checkpoint.resolve(source, revision=manifest.commit if same else None)
    tokenizer = ChatTokenizer.from_folder(exported.path, exported.chat_format)
    text = evaluation_text() if text is None else text
    ids = tokenizer.encode_text(text)
    if ids != ChatTokenizer.from_folder(checkpoint.path, exported.chat_format).encode_text(text):
        raise OptionError(
            f"source={str(source)!r} and artifact={str(artifact)!r} encode the text differently, "
            "so the one was not exported from the other, and their tokens cannot be compared.",
            option="source",
        )
    windows = _cut_windows(ids, window_tokens, max_tokens, checkpoint)
    prompt_ids = [tokenizer.encode_prompt([Message("user", prompt)]) for prompt in prompts]
    try:
        left = SourceModel(checkpoint.path)
        right = ExportedModel(exported.path, config or RuntimeConfig.exact())
        tally = Tally()
        for number, window in enumerate(windows, start=1):
            tally.add(left.logits(window), right.logits(window), window)
            if progress and sys.stderr is not None:  # None as under pythonw.exe
                sys.stderr.write(f"phi3ov quality [{number}/{len(windows)}] {tally.summary()}\n")
                sys.stderr.flush()
        samples = tuple(
            SampleAnswer(
                prompt=prompt,
                source=_answer(left, ids, tokenizer),
                artifact=_answer(right, ids, tokenizer),
            )
            for prompt, ids in zip(prompts, prompt_ids, strict=True)
        )
    except Phi3OVError:
        raise
    except Exception as error:
        raise ExportError(
            f"Comparing {source} with {artifact} failed: {type(error).__name__}: {error}"
        ) from error
    return QualityReport(
        source=str(source),
        artifact=str(artifact),
        window_tokens=window_tokens,
        properties=right.properties,
        source_bytes=checkpoint.weights_bytes,
        artifact_bytes=exported.size_bytes,
        bits_per_weight=exported.bits_per_weight,
        samples=samples,
        **tally.result(),
    )


def _require_tools() -> None:
    for module in ("torch", "transformers"):
        try:
            __import__(module)
        except ImportError as error:
            raise MissingDependencyError(
                module, purpose="phi3ov.quality.compare()", command='pip install "phi3ov[export]"'
            ) from error


def _cut_windows(
    ids: list[int], window_tokens: int, max_tokens: int, checkpoint: Checkpoint
) -> list[list[int]]:
    longest = checkpoint.config.max_position_embeddings
    if not 2 <= window_tokens <= longest:
        raise OptionError(
            f"window_tokens={window_tokens} must be at least 2 and at most the model's {longest}.",
            option="window_tokens",
        )
    if max_tokens < window_tokens:
        raise OptionError(
            f"max_tokens={max_tokens} is less than window_tokens={window_tokens}.",
            option="max_tokens",
        )
    count = min(len(ids), max_tokens) // window_tokens
    if not count:
        raise OptionError(
            f"text has {len(ids)} tokens, less than window_tokens={window_tokens}. Give more text, "
            "or a smaller window."
        )
    return [ids[at * window_tokens : (at + 1) * window_tokens] for at in range(count)]


class Tally:
    """Accumulates windows of logits: keeps one float per prediction and no logits.

    Example:
        >>> import numpy as np
        >>> tally = Tally()
        >>> tally.add(np.zeros((3, 5)), np.zeros((3, 5)), [0, 1, 2])
        >>> tally.result()["tokens"], tally.result()["mean_kl"]
        (2, 0.0)
    """

    def __init__(self) -> None:
        self._kl: list[float] = []
        self._source_loss = self._artifact_loss = 0.0
        self._agreed = 0

    def add(self, source: Logits, artifact: Logits, ids: Sequence[int]) -> None:
        """Compare the predictions of all tokens of a window except the first."""
        import numpy as np

        for start in range(0, len(ids) - 1, _ROWS):
            rows = slice(start, min(start + _ROWS, len(ids) - 1))
            after = np.asarray(ids[start + 1 : rows.stop + 1])[:, None]
            p, q = log_probabilities(source[rows]), log_probabilities(artifact[rows])
            self._kl += divergence(p, q).tolist()
            self._source_loss -= float(np.take_along_axis(p, after, axis=1).sum())
            self._artifact_loss -= float(np.take_along_axis(q, after, axis=1).sum())
            self._agreed += int((p.argmax(axis=1) == q.argmax(axis=1)).sum())

    def summary(self) -> str:
        """Return the mean divergence so far as text."""
        return f"KL {math.fsum(self._kl) / len(self._kl):.5f} over {len(self._kl)} predictions"

    def result(self) -> dict[str, Any]:
        """Return the figures as the fields of `QualityReport` that they fill."""
        import numpy as np

        count = len(self._kl)
        bars = np.bincount(np.searchsorted(KL_EDGES, self._kl), minlength=len(KL_EDGES) + 1)
        return {
            "tokens": count,
            "source_perplexity": math.exp(self._source_loss / count),
            "artifact_perplexity": math.exp(self._artifact_loss / count),
            "mean_kl": math.fsum(self._kl) / count,
            "p99_kl": float(np.percentile(self._kl, 99)),
            "top1_agreement": self._agreed / count,
            "kl_histogram": tuple(bars.tolist()),
        }


def _answer(
    model: SourceModel | ExportedModel, ids: Sequence[int], tokenizer: ChatTokenizer
) -> str:
    """Return the greedy answer, cut off after 48 tokens."""
    said: list[int] = []
    for token in model.continuation(ids):
        if token in tokenizer.stop_tokens or len(said) == 48:
            break
        said.append(token)
    return tokenizer.decode(said)


def _one_line(text: str) -> str:
    return " ".join(text.split())
