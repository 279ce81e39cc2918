"""The transformers engine: optimum-intel's `OVModelForCausalLM` and transformers' ``generate()``.

This is the path that most scripts take by hand, behind phi3ov's protocol: for comparison, and
for those who need transformers' own decoding. It reads the whole prompt for each answer.

optimum-intel's Phi-3 class drops the KV cache when a sequence passes the original context, to
let the graph change its LongRoPE factors, and fails doing so. phi3ov has pinned the factors in
the graph, so the class is told that the border is the end of the context.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import DeviceError, MissingDependencyError
from ..quiet import quiet_tools
from .pinned import open_pinned
from .serial import SerialEngine

if TYPE_CHECKING:
    from ..artifact import Artifact
    from ..rope import ContextChoice
    from ..runtime import RuntimeConfig
    from . import TokenRequest, TokenStream


class TransformersEngine(SerialEngine):
    """Generates with optimum-intel and transformers."""

    def __init__(
        self, artifact: Artifact, *, device: str, config: RuntimeConfig, context: ContextChoice
    ) -> None:
        """Compile the artifact's model for ``device``.

        Raises:
            MissingDependencyError: optimum-intel is not installed.
            DeviceError: OpenVINO could not compile the model for the device.
            OptionError: A property was set that the device does not take.
            UnsupportedModelError: The rope factors of ``context`` cannot be had.
        """
        self._model = _load(artifact, device=device, config=config, context=context)
        super().__init__(_Runner(self._model).run, name="transformers")


def _load(artifact: Artifact, *, device: str, config: RuntimeConfig, context: ContextChoice) -> Any:
    try:
        from optimum.intel import OVModelForCausalLM
        from transformers import AutoConfig
    except ImportError as error:
        raise MissingDependencyError(
            "optimum-intel",
            purpose="engine='transformers'",
            command='pip install "phi3ov[export]"',
        ) from error
    import openvino

    core = openvino.Core()
    properties = config.to_properties(core.get_property(device, "SUPPORTED_PROPERTIES"))
    pinned = open_pinned(artifact, context)
    model_config = AutoConfig.from_pretrained(artifact.path, local_files_only=True)
    model_config.original_max_position_embeddings = context.tokens
    try:
        with quiet_tools():
            model = OVModelForCausalLM.from_pretrained(
                artifact.path,
                device=device,
                ov_config=properties,
                config=model_config,
                compile=False,
                local_files_only=True,
            )
            if context.factors != "none":
                model.model = core.read_model(pinned.xml.encode(), pinned.weights)
                model.phi3ov_pinned = pinned  # its weights must outlive the compiled model
            model.compile()
    except RuntimeError as error:
        raise DeviceError(
            f"OpenVINO could not compile {artifact.path} for device={device!r}: {error}"
        ) from error
    return model


class _Runner:
    """Owns the model; lives on the engine's thread once it is built."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def run(self, stream: TokenStream) -> None:
        """Generate for one stream; called on the engine's thread."""
        import torch
        import transformers

        request = stream.request
        if request.seed is not None:
            torch.manual_seed(request.seed)
        prompt = torch.tensor([request.prompt_ids])
        self._model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            generation_config=transformers.GenerationConfig(**_generation_options(request)),
            streamer=_Streamer(stream),
            stopping_criteria=transformers.StoppingCriteriaList([_cancelled(stream)]),
        )


def _generation_options(request: TokenRequest) -> dict[str, Any]:
    options: dict[str, Any] = {
        "max_new_tokens": request.max_new_tokens,
        "eos_token_id": sorted(request.stop_ids),
        "pad_token_id": min(request.stop_ids),
        "repetition_penalty": request.repetition_penalty,
        "do_sample": request.temperature > 0,
    }
    if request.temperature > 0:
        options |= {
            "temperature": request.temperature,
            "top_p": request.top_p,
            "top_k": request.top_k or 0,
        }
    return options


def _cancelled(stream: TokenStream) -> Any:
    """Return a stopping criterion that follows ``stream.cancelled``."""
    import torch
    import transformers

    class Cancelled(transformers.StoppingCriteria):  # type: ignore[misc]
        def __call__(self, input_ids: Any, _scores: Any, **_kwargs: Any) -> Any:
            return torch.full((input_ids.shape[0],), stream.cancelled, dtype=torch.bool)

    return Cancelled()


class _Streamer:
    """transformers' streamer protocol: the prompt comes first, then each token."""

    def __init__(self, stream: TokenStream) -> None:
        self._stream = stream
        self._prompt_seen = False

    def put(self, value: Any) -> None:
        """Take the prompt's or the next token's ids."""
        if self._prompt_seen:
            self._stream.put([int(token_id) for token_id in value.reshape(-1)])
        self._prompt_seen = True

    def end(self) -> None:
        """Nothing is held back."""
