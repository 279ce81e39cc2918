"""What a quality report says of the reference checkpoint and of its exports."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from phi3ov import (
    ArtifactError,
    ExportError,
    OptionError,
    RuntimeConfig,
    UnsupportedModelError,
    export_model,
)
from phi3ov.cli import main
from phi3ov.quality.report import PROMPTS, QualityReport, compare

from ..processor import rounds_activations


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """More torch threads than free cores wait for each other, thirty times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def int4(reference_checkpoint: Path, reference_export: Path) -> QualityReport:
    """The report of the int4 export."""
    return measure(reference_checkpoint, reference_export)


def measure(source: Path, artifact: Path, *, config: RuntimeConfig | None = None) -> QualityReport:
    """Return a report over few tokens."""
    return compare(
        source,
        artifact,
        window_tokens=256,
        max_tokens=256,
        prompts=PROMPTS[:1],
        config=config,
        progress=False,
    )


def test_int4_costs_something_and_the_model_still_speaks(int4: QualityReport) -> None:
    """The figures are those of a model that is damaged a little."""
    assert int4.tokens == 255
    assert sum(int4.kl_histogram) == int4.tokens
    assert 0.01 < int4.mean_kl < 1 < int4.p99_kl / int4.mean_kl
    assert int4.source_perplexity < int4.artifact_perplexity < 2 * int4.source_perplexity
    assert 0.5 < int4.top1_agreement < 1
    assert int4.artifact_bytes < int4.source_bytes
    assert int4.samples[0].prompt == "What is the capital of France?"
    assert "Paris" in int4.samples[0].source
    assert all(one.source and one.artifact for one in int4.samples)


@pytest.mark.slow
def test_int8_loses_less_than_int4_and_fp16_nothing(
    int4: QualityReport, reference_checkpoint: Path, commands: Path, tmp_path: Path
) -> None:
    """The order that everybody expects, and 0 where the weights are the same.

    Rounded activations lose something on top, more in larger groups.
    """
    export_model(reference_checkpoint, tmp_path / "fp16", compression="fp16", progress=False)
    int8 = measure(reference_checkpoint, commands / "small-int8")
    fp16 = measure(reference_checkpoint, tmp_path / "fp16")
    assert fp16.mean_kl < 1e-6 < int8.mean_kl < int4.mean_kl / 5
    assert fp16.p99_kl < 1e-5
    assert fp16.artifact_perplexity == pytest.approx(fp16.source_perplexity, rel=1e-4)
    assert fp16.top1_agreement > 0.995
    assert int8.top1_agreement > int4.top1_agreement
    assert [one.source for one in fp16.samples] == [one.artifact for one in fp16.samples]

    def rounded(size: int) -> QualityReport:
        config = RuntimeConfig(
            inference_precision="f32",
            kv_cache_precision="f32",
            dynamic_quantization_group_size=size,
        )
        return measure(reference_checkpoint, commands / "small-int8", config=config)

    assert rounded(0).mean_kl == int8.mean_kl
    fine, coarse = rounded(32), rounded(128)
    if rounds_activations():
        assert int8.mean_kl < fine.mean_kl < coarse.mean_kl < int4.mean_kl
    else:
        assert int8.mean_kl == fine.mean_kl == coarse.mean_kl
    assert coarse.properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] == "128"
    assert "DYNAMIC_QUANTIZATION_GROUP_SIZE=128" in str(coarse)


def test_the_command_prints_json_and_draws(
    reference_checkpoint: Path,
    reference_export: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """JSON on stdout, progress on stderr, the picture in its file."""
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 40, encoding="utf-8")
    picture = tmp_path / "kl.svg"
    arguments = ["quality", str(reference_checkpoint), str(reference_export)]
    arguments += ["--text", str(text), "--window-tokens", "64", "--max-tokens", "128"]
    assert main([*arguments, "--json", "--svg", str(picture)]) == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert report["tokens"] == 2 * 63
    assert report["bits_per_weight"] == pytest.approx(6.27, abs=0.1)
    assert "[2/2]" in printed.err
    assert len(report["samples"]) == len(PROMPTS)
    assert ET.parse(picture).getroot().tag.endswith("svg")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"window_tokens": 1}, "window_tokens=1 "),
        ({"window_tokens": 10**6}, "window_tokens=1000000 "),
        ({"max_tokens": 100}, "max_tokens=100 "),
        ({"text": "Too short."}, "text has"),
    ],
)
def test_bad_options_are_named(
    options: dict[str, object], named: str, reference_checkpoint: Path, reference_export: Path
) -> None:
    """Before either model is loaded."""
    with pytest.raises(OptionError, match=named):
        compare(reference_checkpoint, reference_export, **options)  # type: ignore[arg-type]


def test_folders_that_cannot_be_compared_are_refused(
    reference_checkpoint: Path, reference_export: Path, tmp_path: Path
) -> None:
    """No source, no artifact, a changed artifact, another tokenizer, another architecture."""
    with pytest.raises(ExportError, match="neither a folder nor a hub id"):
        compare(tmp_path / "nothing", reference_export)
    with pytest.raises(ArtifactError, match=r"phi3ov\.export_model"):
        compare(reference_checkpoint, reference_checkpoint)
    other = tmp_path / "other"
    shutil.copytree(reference_checkpoint, other)
    tokenizer = other / "tokenizer.json"
    definition = json.loads(tokenizer.read_text(encoding="utf-8"))
    tokenizer.write_text(json.dumps(definition | {"normalizer": {"type": "Lowercase"}}), "utf-8")
    with pytest.raises(OptionError, match="encode the text differently"):
        compare(other, reference_export)
    config = json.loads((other / "config.json").read_text(encoding="utf-8"))
    (other / "config.json").write_text(json.dumps(config | {"model_type": "llama"}), "utf-8")
    with pytest.raises(UnsupportedModelError, match="llama"):
        compare(other, reference_export)
    changed = tmp_path / "changed"
    shutil.copytree(reference_export, changed)
    with (changed / "openvino_model.bin").open("r+b") as file:
        file.seek(1000)
        file.write(b"\0\1\2\3")
    with pytest.raises(ArtifactError, match="SHA-256"):
        compare(reference_checkpoint, changed)
