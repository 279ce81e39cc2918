"""NPU without an NPU: what the static pipeline is given, and what is refused before that."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openvino
import openvino_genai
import pytest

import phi3ov
from phi3ov import Artifact, DeviceError, PromptLookup, RuntimeConfig
from phi3ov.answer.token_stream import TokenRequest
from phi3ov.artifact.ir import WeightSummary
from phi3ov.engine.genai.npu import plan_static
from phi3ov.engine.pipeline import PipelineEngine
from phi3ov.engine.protocol import EngineSetup
from phi3ov.engine.worker.engine import WorkerEngine
from phi3ov.runtime.rope import ContextChoice

from .conftest import Zoo


def set_up(zoo: Zoo, **weights: Any) -> EngineSetup:
    """Return a setup for an NPU, of an export whose manifest tells of one int4 matrix."""
    artifact = Artifact.open(zoo.artifact("phi-4"))
    row: dict[str, Any] = {
        "precision": "int4",
        "group_size": 128,
        "symmetric": True,
        "parameters": 8,
    }
    summary = WeightSummary(layers=1, size_bytes=4, **row | weights)
    recipe = {"mode": "int4", "ratio": 1.0}
    long = replace(artifact.config, max_position_embeddings=16384)
    manifest = replace(artifact.manifest, weights=(summary,), recipe=recipe)
    return EngineSetup(
        artifact=replace(artifact, manifest=manifest, config=long),
        device="NPU",
        config=RuntimeConfig(),
        context=ContextChoice(tokens=1000, factors="none"),
    )


@pytest.fixture
def exported(zoo: Zoo) -> Path:
    """The export that the tests load: made with the real openvino, so before it is replaced."""
    return zoo.artifact("phi-4")


@pytest.fixture
def built(exported: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A machine whose NPU takes two properties, and a pipeline that says 5, 6, 7."""
    calls: list[dict[str, Any]] = []

    class Core:
        def get_property(self, device: str, name: str) -> list[str]:
            assert (device, name) == ("NPU", "SUPPORTED_PROPERTIES")
            return ["PERFORMANCE_HINT", "CACHE_DIR"]

    class Pipeline:
        def __init__(self, *arguments: Any, **options: Any) -> None:
            assert arguments[3] == "NPU"
            calls.append(options)

        def generate(self, _prompt: Any, _config: Any, streamer: Any) -> Any:
            for token in (5, 6, 7):
                streamer.write(token)
            return SimpleNamespace(tokens=[[5, 6, 7]])

    monkeypatch.setattr(openvino, "Core", Core)
    monkeypatch.setattr(openvino_genai, "LLMPipeline", Pipeline)
    return calls


def test_the_static_pipeline_gets_its_lengths_and_no_scheduler(
    zoo: Zoo, built: list[dict[str, Any]]
) -> None:
    """The longest prompt is the context, in steps of 64; nothing counts as cached."""
    engine = PipelineEngine(set_up(zoo))
    assert built == [
        {"PERFORMANCE_HINT": "LATENCY", "MAX_PROMPT_LEN": 1024, "MIN_RESPONSE_LEN": 128}
    ]
    request = TokenRequest(prompt_ids=(1, 2, 3), max_new_tokens=3, stop_ids=frozenset())
    for _ in range(2):
        stream = engine.submit(request)
        assert [one for chunk in stream for one in chunk] == [5, 6, 7]
        assert stream.cached_tokens == 0
    engine.close()


@pytest.mark.parametrize(
    ("context", "positions", "longest"),
    [(1000, 16384, 1024), (4096, 4096, 3968), (4000, 4096, 3968), (3900, 4096, 3904)],
)
def test_prompt_and_answer_stay_within_the_models_positions(
    context: int, positions: int, longest: int, zoo: Zoo
) -> None:
    """MAX_PROMPT_LEN and MIN_RESPONSE_LEN together never exceed max_position_embeddings."""
    setup = set_up(zoo)
    config = replace(setup.artifact.config, max_position_embeddings=positions)
    plan = plan_static(
        replace(
            setup,
            artifact=replace(setup.artifact, config=config),
            context=ContextChoice(tokens=context, factors="none"),
        )
    )
    assert plan == {"MAX_PROMPT_LEN": longest, "MIN_RESPONSE_LEN": 128}
    assert sum(plan.values()) <= positions


def test_a_model_without_room_for_both_is_refused(zoo: Zoo) -> None:
    """The shortest prompt and answer that an NPU compiles are 64 and 128 tokens."""
    setup = set_up(zoo)
    config = replace(setup.artifact.config, max_position_embeddings=191)
    artifact = replace(setup.artifact, config=config)
    with pytest.raises(DeviceError, match=r"max_position_embeddings=191.*at least 192"):
        plan_static(replace(setup, artifact=artifact))


@pytest.mark.trap(
    "Lengths for an NPU (MAX_PROMPT_LEN, MIN_RESPONSE_LEN) beyond the context are refused before "
    "anything is compiled.",
    about="Machines",
)
@pytest.mark.parametrize(
    ("name", "value", "most"),
    [
        ("MAX_PROMPT_LEN", "1025", 1024),
        ("MAX_PROMPT_LEN", "0", 1024),
        ("MAX_PROMPT_LEN", "long", 1024),
        ("MIN_RESPONSE_LEN", "16384", 16320),
    ],
)
def test_lengths_beyond_the_context_are_refused(
    name: str, value: str, most: int, zoo: Zoo, built: list[dict[str, Any]]
) -> None:
    """The message names the field, the limit, and the way out."""
    config = RuntimeConfig(properties={name: value})
    said = rf"properties\['{name}'\]='{value}' must be .* from 1 to {most}: the context is 1000"
    with pytest.raises(phi3ov.OptionError, match=f"{said}.*context_tokens="):
        PipelineEngine(replace(set_up(zoo), config=config))
    assert built == []


def test_lengths_within_the_context_are_taken(zoo: Zoo, built: list[dict[str, Any]]) -> None:
    """They are compiled in, once, and the longest prompt is the caller's."""
    lengths = {"MAX_PROMPT_LEN": "512", "MIN_RESPONSE_LEN": "15800"}
    engine = PipelineEngine(replace(set_up(zoo), config=RuntimeConfig(properties=lengths)))
    assert built == [
        {"PERFORMANCE_HINT": "LATENCY", "MAX_PROMPT_LEN": 512, "MIN_RESPONSE_LEN": 15800}
    ]
    request = TokenRequest(prompt_ids=(1,) * 513, max_new_tokens=1, stop_ids=frozenset())
    with pytest.raises(phi3ov.PromptError, match=r"513 tokens.* 512"):
        engine.submit(request)
    engine.close()
    with pytest.raises(phi3ov.OptionError, match="from 1 to 584"):
        PipelineEngine(
            replace(
                set_up(zoo),
                config=RuntimeConfig(properties=lengths | {"MAX_PROMPT_LEN": "585"}),
            )
        )


def test_a_prompt_beyond_the_compiled_length_is_refused(
    zoo: Zoo, built: list[dict[str, Any]]
) -> None:
    """Before genai reads it; the message names both lengths and the way out."""
    engine = PipelineEngine(set_up(zoo))
    request = TokenRequest(prompt_ids=(1,) * 1025, max_new_tokens=1, stop_ids=frozenset())
    with pytest.raises(phi3ov.PromptError, match=r"1025 tokens.* 1024.*device='CPU'"):
        engine.submit(request)
    engine.submit(replace(request, prompt_ids=(1,) * 1024)).cancel()
    engine.close()
    assert len(built) == 1


@pytest.mark.parametrize(
    ("group_size", "parameters", "advice"),
    [
        (0, 3_800_000_000, "groups of 128 up to about 5 billion"),
        (128, 3_800_000_000, None),
        (128, 14_000_000_000, "one scale per row above 5 billion"),
        (0, 14_000_000_000, None),
    ],
)
def test_a_recipe_beside_the_guide_is_logged(
    group_size: int,
    parameters: int,
    advice: str | None,
    zoo: Zoo,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An NPU takes both; OpenVINO's guide recommends one by the model's size."""
    plan_static(set_up(zoo, group_size=group_size, parameters=parameters))
    assert (advice is None and not caplog.text) or (advice is not None and advice in caplog.text)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"precision": "int8"}, "takes int4 weights, and .* has none"),
        ({"symmetric": False}, "symmetric int4 weights only"),
        ({"group_size": 64}, r"rows or groups of 128, not \[64\]"),
    ],
)
def test_a_recipe_that_an_npu_does_not_take_is_refused(
    weights: dict[str, Any], message: str, zoo: Zoo, built: list[dict[str, Any]]
) -> None:
    """Before anything is compiled, with the way out."""
    with pytest.raises(DeviceError, match=f"{message}.*Int4Compression.npu"):
        PipelineEngine(set_up(zoo, **weights))
    assert built == []


def test_a_ratio_and_options_that_an_npu_does_not_take_are_refused(zoo: Zoo) -> None:
    """All problems at once; groups of 128 and rows are both taken."""
    setup = set_up(zoo, group_size=0)
    assert plan_static(setup)["MAX_PROMPT_LEN"] == 1024
    mixed = replace(setup.artifact.manifest, recipe={"ratio": 0.6})
    setup = replace(setup, artifact=replace(setup.artifact, manifest=mixed), cache_bytes=9)
    with pytest.raises(DeviceError, match=r"ratio=1\.0, not 0\.6.*cache_bytes=9 needs paged"):
        plan_static(setup)
    with pytest.raises(DeviceError, match=r"speculation=PromptLookup.* it takes a DraftModel"):
        plan_static(replace(set_up(zoo), speculation=PromptLookup()))
    with pytest.raises(DeviceError, match=r"adapter=.* needs a LoRA pipeline"):
        plan_static(replace(set_up(zoo), adapter=phi3ov.LoraAdapter(path="adapter")))


def test_a_draft_runs_on_the_npu_too_with_the_same_lengths(
    zoo: Zoo, built: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As openvino-genai recommends."""
    drafts: list[tuple[str, dict[str, Any]]] = []

    def draft_model(_folder: str, device: str, **properties: Any) -> str:
        drafts.append((device, properties))
        return "the draft"

    monkeypatch.setattr(openvino_genai, "draft_model", draft_model)
    draft = phi3ov.DraftModel(zoo.artifact("phi-4"))
    engine = PipelineEngine(replace(set_up(zoo), speculation=draft))
    [options] = built
    assert options["draft_model"] == "the draft"
    assert drafts == [
        ("NPU", {"PERFORMANCE_HINT": "LATENCY", "MAX_PROMPT_LEN": 1024, "MIN_RESPONSE_LEN": 128})
    ]
    engine.close()


def test_the_worker_does_not_run_on_an_npu(zoo: Zoo) -> None:
    """It says so before it starts a process; the next preferred device gets its chance."""
    with pytest.raises(phi3ov.DeviceError, match=r"does not have\. Use engine='pipeline' there"):
        WorkerEngine(set_up(zoo))
