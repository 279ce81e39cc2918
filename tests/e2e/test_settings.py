"""The settings that phi3ov chooses, on the reference model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import phi3ov
from phi3ov import Artifact, RuntimeConfig
from phi3ov.engine.logits import ExportedModel, divergence, log_probabilities
from phi3ov.engine.protocol import EngineName
from phi3ov.exporter.calibration import evaluation_text
from phi3ov.prompt.chat_tokenizer import ChatTokenizer

BUDGET = 0.01
"""Most that the default's arithmetic may add, in nats: a 20th of what int4 weights cost here."""


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
