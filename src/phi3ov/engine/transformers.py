"""The transformers engine: optimum-intel's `OVModelForCausalLM` and transformers' ``generate()``.

Most scripts use this path by hand. Here it is behind phi3ov's protocol, for comparison and for
transformers' own decoding. It reads the whole prompt for each answer.

optimum-intel's Phi-3 class drops the KV cache when a sequence exceeds the original context, to
let the graph change its LongRoPE factors, and fails in doing so. phi3ov has pinned the factors in
the graph, so it sets the original context of the class to the end of the context.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import MissingDependencyError
from ..runtime.huge_pages import plan_huge_pages
from ..runtime.properties import compiling, device_settings
from ..runtime.settings import Setting, passed_properties
from ..thirdparty.overrides import su_rope_accepted
from ..thirdparty.tool_output import quiet_tools
from .pinned import open_pinned
from .sampling import check_request, transformers_options
from .serial import SerialEngine

if TYPE_CHECKING:
    from ..answer.token_stream import TokenRequest, TokenStream
    from .protocol import EngineSetup


class TransformersEngine(SerialEngine):
    """Generates with optimum-intel and transformers."""

    def __init__(self, setup: EngineSetup) -> None:
        """Compile the setup's model.

        Raises:
            MissingDependencyError: optimum-intel is not installed.
            DeviceError: OpenVINO could not compile the model for the device.
            OptionError: The device does not support a property.
            UnsupportedModelError: The export does not hold the rope factors of ``setup.context``.
        """
        setup.refuse(
            "transformers",
            cache_bytes="keeps no cache between requests",
            speculation="reads one token per pass",
            adapter="does not support LoRA adapters",
        )
        model, settings = _load(setup)
        self._settings = (*settings, plan_huge_pages(setup.config, setup.device, "transformers"))
        runner = _Runner(model)
        super().__init__(runner.run, free=runner.free, name="transformers", limits=setup.limits)

    @property
    def settings(self) -> tuple[Setting, ...]:
        """The settings in force, each with its reason."""
        return self._settings

    def submit(
        self, request: TokenRequest, *, timeout_seconds: float | None = None, wait: bool = False
    ) -> TokenStream:
        """Queue ``request`` and return its stream at once; see `Engine.submit`."""
        check_request(request, "transformers")
        return super().submit(request, timeout_seconds=timeout_seconds, wait=wait)


def _load(setup: EngineSetup) -> tuple[Any, tuple[Setting, ...]]:
    """Return the compiled model, and the OpenVINO properties in force."""
    try:
        from optimum.intel import OVModelForCausalLM
        from transformers import AutoConfig, GenerationConfig
    except ImportError as error:
        raise MissingDependencyError(
            "optimum-intel",
            purpose="engine='transformers'",
            command='pip install "phi3ov[export]"',
        ) from error
    import openvino

    artifact, device, context = setup.artifact, setup.device, setup.context
    core = openvino.Core()
    settings = device_settings(setup.config, core, device, artifact=artifact, paged=False)
    pinned = open_pinned(artifact, context)
    with compiling(artifact.path, device), quiet_tools(), su_rope_accepted():
        model_config = AutoConfig.from_pretrained(artifact.path, local_files_only=True)
        model_config.original_max_position_embeddings = context.tokens
        model = OVModelForCausalLM.from_pretrained(
            artifact.path,
            device=device,
            ov_config=passed_properties(settings),
            config=model_config,
            compile=False,
            local_files_only=True,
        )
        if context.factors != "none":
            model.model = core.read_model(pinned.xml.encode(), pinned.weights)
            model.phi3ov_pinned = pinned  # its weights must outlive the compiled model
        # generate() takes unset options from the checkpoint's generation_config.json, such as
        # no_repeat_ngram_size. Only the options of the call may count.
        model.generation_config = GenerationConfig()
        model.compile()
    return model, settings


class _Runner:
    """Owns the model; used on the engine's thread only, once built."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def free(self) -> None:
        """Free the model; must be the last call."""
        del self._model

    def run(self, stream: TokenStream) -> None:
        """Generate for one stream; called on the engine's thread."""
        import torch
        import transformers

        request = stream.request
        prompt = torch.tensor([request.prompt_ids])
        # transformers samples with torch's global generator, which the rest of the program uses.
        with torch.random.fork_rng(devices=[]):
            if request.sampling.seed is not None:
                torch.manual_seed(request.sampling.seed)
            self._model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                generation_config=transformers.GenerationConfig(**_generation_options(request)),
                streamer=_Streamer(stream),
                stopping_criteria=transformers.StoppingCriteriaList([_cancelled(stream)]),
            )


def _generation_options(request: TokenRequest) -> dict[str, Any]:
    return transformers_options(request.sampling) | {
        "max_new_tokens": request.max_new_tokens,
        "eos_token_id": sorted(request.stop_ids) or None,  # the model's own default was removed
        "pad_token_id": min(request.stop_ids, default=0),
    }


def _cancelled(stream: TokenStream) -> Any:
    """Return a stopping criterion that follows ``stream.cancelled``."""
    import torch
    import transformers

    class Cancelled(transformers.StoppingCriteria):  # type: ignore[misc]
        def __call__(self, input_ids: Any, _scores: Any, **_kwargs: Any) -> Any:
            return torch.full((input_ids.shape[0],), stream.cancelled, dtype=torch.bool)

    return Cancelled()


class _Streamer:
    """Implements transformers' streamer protocol: receives the prompt, then each token."""

    def __init__(self, stream: TokenStream) -> None:
        self._stream = stream
        self._prompt_seen = False

    def put(self, value: Any) -> None:
        """Receive the ids of the prompt or of the next token."""
        if self._prompt_seen:
            self._stream.put([int(token_id) for token_id in value.reshape(-1)])
        self._prompt_seen = True

    def end(self) -> None:
        """Do nothing: no token is held back."""
