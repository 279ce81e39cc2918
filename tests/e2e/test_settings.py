"""The settings that phi3ov chooses, on the reference model."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

import phi3ov
from phi3ov import Artifact, RuntimeConfig
from phi3ov.engine.logits import ExportedModel, divergence, log_probabilities
from phi3ov.engine.protocol import EngineName
from phi3ov.exporter.calibration import evaluation_text
from phi3ov.machine.tuner import Speed
from phi3ov.prompt.chat_tokenizer import ChatTokenizer
from phi3ov.runtime.huge_pages import plan_huge_pages
from phi3ov.runtime.settings import Setting
from phi3ov.runtime.tuning import TunedSettings, TuningRecord, write_record

BUDGET = 0.01
"""Most that the default's arithmetic may add, in nats: a 20th of what int4 weights cost here."""


@pytest.mark.slow
@pytest.mark.export
def test_the_default_stays_within_its_budget(reference_export: Path) -> None:
    """KL(exact || default) of the export with itself, over 1 020 predictions."""
    artifact = Artifact.open(reference_export)
    tokenizer = ChatTokenizer.from_folder(artifact.path, artifact.chat_format)
    ids = tokenizer.encode_text(evaluation_text())[:1024]
    exact = ExportedModel(reference_export, RuntimeConfig.exact())
    default = ExportedModel(reference_export, RuntimeConfig())
    kl = [
        divergence(
            log_probabilities(exact.logits(window)), log_probabilities(default.logits(window))
        )
        for window in (ids[:512], ids[512:])
    ]
    assert np.concatenate(kl).mean() < BUDGET


@pytest.mark.parametrize("engine", ["pipeline", "worker", "paged"])
def test_a_model_says_what_is_in_force(engine: EngineName, reference_export: Path) -> None:
    """Every engine was given what its settings name, and answers with it."""
    config = RuntimeConfig(threads=1)
    with phi3ov.load_model(reference_export, device="CPU", engine=engine, config=config) as model:
        said = {setting.name: (setting.value, setting.chosen_by) for setting in model.settings}
        assert model.complete("<|user|>\nHello<|end|>\n<|assistant|>\n", max_new_tokens=4).text
    assert said["INFERENCE_NUM_THREADS"] == ("1", "caller")
    assert said["KV_CACHE_PRECISION"] == ("f16", "export")
    assert {"INFERENCE_PRECISION_HINT", "DYNAMIC_QUANTIZATION_GROUP_SIZE"} <= said.keys()
    assert said["HUGE_PAGES"][1] == "phi3ov"


@pytest.mark.skipif(
    plan_huge_pages(RuntimeConfig(), "CPU").value == "off", reason="this system has no call for it"
)
@pytest.mark.parametrize("engine", ["pipeline", "paged"])
def test_weights_are_moved_into_huge_pages_and_the_settings_say_it(
    engine: EngineName, reference_export: Path
) -> None:
    """After the warm-up; again after the cache was emptied; and not if it is switched off."""

    def said(model: phi3ov.Phi3Model) -> Setting:
        for thread in threading.enumerate():
            if thread.name == "phi3ov-huge-pages":
                thread.join()
        return next(row for row in model.settings if row.name == "HUGE_PAGES")

    with phi3ov.load_model(reference_export, device="CPU", engine=engine) as model:
        moved = said(model)
        answer = model.complete("<|user|>\nHello<|end|>\n<|assistant|>\n", max_new_tokens=8)
        model.clear_cache()
        assert said(model).value == "on"
    assert moved.value == "on"
    # Some 76 MiB in a new process; less where earlier tests left memory that is used again.
    assert int(moved.reason.split("; ")[1].split()[0]) >= 8, moved
    config = RuntimeConfig(huge_pages=False)
    with phi3ov.load_model(reference_export, device="CPU", engine=engine, config=config) as model:
        assert said(model).chosen_by == "caller"
        again = model.complete("<|user|>\nHello<|end|>\n<|assistant|>\n", max_new_tokens=8)
    assert again.token_ids == answer.token_ids


@pytest.mark.slow
def test_tuning_finds_settings_and_loading_takes_them(
    reference_export: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One round on the reference: a table, a file, and a model that says what came from there."""
    file = tmp_path / "tuned.json"
    report = phi3ov.tune(reference_export, rounds=1, save=file, progress=False)
    assert report.rows[0].gain == Speed(one_chat=1.0, eight_chats=1.0, prefill=1.0)
    assert all(0 <= row.divergence < 0.1 for row in report.rows)
    assert all(row.refused for row in report.rows[1:] if row.divergence > report.budget)
    assert str(file) in str(report)
    record = TuningRecord(
        key=report.record.key,
        date="2026-11-28",
        latency=TunedSettings(threads=1, kv_cache_precision="u8", reason="measured"),
        throughput=TunedSettings(prompt_chunk_tokens=64, inference_precision="f32"),
    )
    write_record(record, file)
    for engine, expected in (
        ("pipeline", {"INFERENCE_NUM_THREADS": "1", "KV_CACHE_PRECISION": "u8"}),
        ("worker", {"INFERENCE_PRECISION_HINT": "f32"}),
    ):
        name: EngineName = "worker" if engine == "worker" else "pipeline"
        with phi3ov.load_model(reference_export, device="CPU", engine=name, tuning=file) as model:
            came = {item.name: item.value for item in model.settings if item.chosen_by == "tune"}
            assert came == expected
            assert model.complete("<|user|>\nHello<|end|>\n", max_new_tokens=4).text
    file.write_text("{", encoding="utf-8")
    with phi3ov.load_model(reference_export, device="CPU", tuning=file) as model:
        assert all(setting.chosen_by != "tune" for setting in model.settings)
    assert "are not used" in caplog.text
