"""What an NPU wants before anything is compiled for it: a recipe, and shapes fixed in advance.

openvino-genai runs a static pipeline there, without paged attention: the longest prompt and the
shortest room for an answer are compiled in, and each prompt is read whole. The authors have no
NPU: this was tested with a pipeline that only notes what it is given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import DeviceError

if TYPE_CHECKING:
    from ...artifact.folder import Artifact
    from ..protocol import EngineSetup

_STEP_TOKENS = 64
_ANSWER_TOKENS = 128
"""Room for an answer beside the longest prompt, which is as long as the context."""


def is_npu(device: str) -> bool:
    """Whether ``device`` is an NPU."""
    return device.partition(".")[0] == "NPU"


def plan_static(setup: EngineSetup) -> dict[str, int]:
    """Return what the static pipeline is compiled with, once recipe and options fit an NPU.

    Raises:
        DeviceError: They do not; another of the preferred devices may take them.
    """
    problems = _recipe_problems(setup.artifact)
    problems += [
        f"{name}={value!r} needs paged attention, which it does not have"
        for name in ("cache_bytes", "speculation", "adapter")
        if (value := getattr(setup, name)) is not None
    ]
    if problems:
        raise DeviceError(f"device={setup.device!r}: {'; '.join(problems)}.")
    longest = -(-setup.context.tokens // _STEP_TOKENS) * _STEP_TOKENS
    return {"MAX_PROMPT_LEN": longest, "MIN_RESPONSE_LEN": _ANSWER_TOKENS}


def _recipe_problems(artifact: Artifact) -> list[str]:
    """Say what in the export an NPU does not take: symmetric int4 in rows or groups of 128."""
    way_out = "export it with Int4Compression.npu()"
    packed = [one for one in artifact.manifest.weights if one.precision == "int4"]
    if not packed:
        return [f"an NPU takes int4 weights, and {artifact.path} has none; {way_out}"]
    problems = []
    if not all(one.symmetric for one in packed):
        problems.append(f"an NPU takes symmetric int4 weights only; {way_out}")
    sizes = {one.group_size for one in packed} - {0, 128}  # 0 is a whole row
    if sizes:
        problems.append(f"an NPU takes rows or groups of 128, not {sorted(sizes)}; {way_out}")
    ratio = artifact.manifest.recipe.get("ratio")
    if ratio not in (None, 1, 1.0):
        problems.append(f"an NPU takes all layers in int4 (ratio=1.0, not {ratio}); {way_out}")
    return problems
