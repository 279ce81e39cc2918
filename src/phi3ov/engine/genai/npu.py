"""NPU requirements: a supported recipe, and static shapes that are chosen before compilation.

openvino-genai runs a static pipeline on an NPU, without paged attention. The maximum prompt length
and the minimum room for an answer are compiled in, and each prompt is read whole. No NPU was
available for tests; they use a pipeline that only records its arguments.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ...errors import DeviceError, OptionError
from ...runtime.speculation import PromptLookup

if TYPE_CHECKING:
    from ...artifact.folder import Artifact
    from ..protocol import EngineSetup

_LOGGER = logging.getLogger("phi3ov")

MAX_PROMPT, MIN_ANSWER = "MAX_PROMPT_LEN", "MIN_RESPONSE_LEN"
"""genai's names of the two lengths that are compiled in."""

_STEP_TOKENS = 64
_ANSWER_TOKENS = 128
"""Tokens reserved for an answer, in addition to the longest prompt."""
_GROUPED_PARAMETERS = 5_000_000_000
"""OpenVINO's NPU guide recommends group size 128 up to about this size, and whole rows above."""


def is_npu(device: str) -> bool:
    """Whether ``device`` is an NPU."""
    return device.partition(".")[0] == "NPU"


def plan_static(setup: EngineSetup) -> dict[str, int]:
    """Check that recipe and options fit an NPU; return the properties of the static pipeline.

    Prompt and answer together stay within the model's maximum positions. If the context uses all
    positions, the maximum prompt is the context minus the room for an answer.
    `RuntimeConfig.properties` may set other lengths within those limits.

    Raises:
        DeviceError: Recipe or options do not fit; another preferred device may support them.
        OptionError: The caller's lengths are not numbers, or exceed the context.
    """
    problems = _recipe_problems(setup.artifact)
    problems += _option_problems(setup)
    if problems:
        raise DeviceError(f"device={setup.device!r}: {'; '.join(problems)}.")
    _advise(setup.artifact)
    longest = -(-setup.context.tokens // _STEP_TOKENS) * _STEP_TOKENS
    positions = setup.artifact.config.max_position_embeddings
    answer = _read_length(setup, MIN_ANSWER, default=_ANSWER_TOKENS, most=positions - _STEP_TOKENS)
    room = (positions - answer) // _STEP_TOKENS * _STEP_TOKENS
    if room < _STEP_TOKENS:
        least = _ANSWER_TOKENS + _STEP_TOKENS
        raise DeviceError(
            f"device={setup.device!r}: max_position_embeddings={positions} of {setup.artifact.path}"
            f" has no room for a prompt of {_STEP_TOKENS} and an answer of {_ANSWER_TOKENS} tokens:"
            f" at least {least} are needed. Load it on another device."
        )
    most = min(longest, positions - answer)
    prompt = _read_length(setup, MAX_PROMPT, default=min(longest, room), most=most)
    return {MAX_PROMPT: prompt, MIN_ANSWER: answer}


def _option_problems(setup: EngineSetup) -> list[str]:
    """Return the options that openvino-genai's pipelines for an NPU do not take."""
    problems = []
    for name in ("cache_bytes", "adapter"):
        if (value := getattr(setup, name)) is not None:
            reason = "needs paged attention" if name == "cache_bytes" else "needs a LoRA pipeline"
            problems.append(f"{name}={value!r} {reason}, which it does not have")
    if isinstance(setup.speculation, PromptLookup):
        problems.append(
            f"speculation={setup.speculation!r} needs paged attention, which it does not have; it "
            "takes a DraftModel"
        )
    return problems


def _read_length(setup: EngineSetup, name: str, *, default: int, most: int) -> int:
    """Return a length that the caller set in `RuntimeConfig.properties`, or the default.

    Raises:
        OptionError: It is not a number, or prompt and answer do not fit the context.
    """
    value = setup.config.properties.get(name)
    if value is None:
        return default
    if not (value.isascii() and value.isdigit() and 1 <= int(value) <= most):
        raise OptionError(
            f"properties[{name!r}]={value!r} must be a number of tokens from 1 to {most}: the "
            f"context is {setup.context.tokens} tokens, the model knows "
            f"{setup.artifact.config.max_position_embeddings} positions, and prompt and answer "
            "share them. Give a smaller number, or a larger context_tokens=.",
            option="properties",
        )
    return int(value)


def _advise(artifact: Artifact) -> None:
    """Log a warning if the export differs from the recommendations of OpenVINO's NPU guide."""
    weights = artifact.manifest.weights
    parameters = sum(kind.parameters for kind in weights)
    sizes = {kind.group_size for kind in weights if kind.precision == "int4"}
    small = parameters <= _GROUPED_PARAMETERS
    if small and 0 in sizes:
        better = "groups of 128 up to about 5 billion: Int4Compression.npu()"
    elif not small and 128 in sizes:
        better = f"one scale per row above 5 billion: Int4Compression.npu({parameters})"
    else:
        return
    _LOGGER.warning(
        "%s: for an NPU and %.1f billion parameters OpenVINO's guide recommends %s.",
        artifact.path,
        parameters / 1e9,
        better,
    )


def _recipe_problems(artifact: Artifact) -> list[str]:
    """Return the properties of the export that an NPU does not support.

    An NPU supports symmetric int4 with one scale per row or per group of 128.
    """
    way_out = "export it with Int4Compression.npu()"
    packed = [kind for kind in artifact.manifest.weights if kind.precision == "int4"]
    if not packed:
        return [f"an NPU takes int4 weights, and {artifact.path} has none; {way_out}"]
    problems = []
    if not all(kind.symmetric for kind in packed):
        problems.append(f"an NPU takes symmetric int4 weights only; {way_out}")
    sizes = {kind.group_size for kind in packed} - {0, 128}  # 0 is a whole row
    if sizes:
        problems.append(f"an NPU takes rows or groups of 128, not {sorted(sizes)}; {way_out}")
    ratio = artifact.manifest.recipe.get("ratio")
    if ratio not in (None, 1, 1.0):
        problems.append(f"an NPU takes all layers in int4 (ratio=1.0, not {ratio}); {way_out}")
    return problems
