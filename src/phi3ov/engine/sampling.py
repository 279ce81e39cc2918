"""Sampling options that each engine supports, and their translation to genai and transformers.

`TAKES` is the table of supported options; `check_request` refuses all others by name. The paged
engine chooses tokens itself, in ``paged/sampling.py``, by genai's rules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import OptionError

if TYPE_CHECKING:
    import openvino_genai

    from ..answer.options import Sampling
    from ..answer.token_stream import TokenRequest
    from .protocol import EngineName

_FILTERS = frozenset({"temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed"})
_PENALTIES = frozenset({"presence_penalty", "frequency_penalty"})

TAKES: dict[EngineName, frozenset[str]] = {
    "pipeline": _FILTERS | _PENALTIES | {"grammar"},
    "worker": _FILTERS | _PENALTIES | {"grammar", "logprobs"},
    "paged": _FILTERS | _PENALTIES | {"logprobs", "top_logprobs", "logit_bias"},
    "transformers": _FILTERS,
}
"""Options of `TokenRequest.asked` that each engine supports.

genai's pipeline returns ids without probabilities. Its continuous batching returns the
probability of the chosen token only. genai has no logit bias, and only genai has grammars.
transformers' ``generate()`` has neither presence nor frequency penalties, and streams no
probabilities.
"""


def check_request(request: TokenRequest, engine: EngineName) -> None:
    """Check that the engine supports all options of a request.

    Raises:
        OptionError: It does not; names the option, its value, and the engines that support it.

    Example:
        >>> from phi3ov.answer.token_stream import TokenRequest
        >>> request = TokenRequest(prompt_ids=(1,), max_new_tokens=1, stop_ids=frozenset(),
        ...                        logprobs=True)
        >>> check_request(request, "worker")
        >>> check_request(request, "pipeline")
        Traceback (most recent call last):
            ...
        phi3ov.errors.OptionError: logprobs=True is not supported by engine='pipeline'. Load \
the model with engine='worker' or engine='paged', or leave logprobs out.
    """
    refused = {name: each for name, each in request.asked().items() if name not in TAKES[engine]}
    for name, value in refused.items():
        able = [f"engine={other!r}" for other, takes in TAKES.items() if name in takes]
        way_out = f"Load the model with {' or '.join(able)}, or leave" if able else "Leave"
        is_grammar = name == "grammar"
        asked = "json_schema, regex and choices are" if is_grammar else f"{name}={value!r} is"
        named = "them" if is_grammar else name
        raise OptionError(
            f"{asked} not supported by engine={engine!r}. {way_out} {named} out.",
            option="json_schema" if is_grammar else name,
        )


def configure_genai(config: openvino_genai.GenerationConfig, sampling: Sampling) -> None:
    """Set the sampling fields of openvino-genai's ``GenerationConfig``."""
    config.repetition_penalty = sampling.repetition_penalty
    config.presence_penalty = sampling.presence_penalty
    config.frequency_penalty = sampling.frequency_penalty
    if sampling.greedy:
        return
    config.do_sample = True
    config.temperature = sampling.temperature
    config.top_p = sampling.top_p
    config.min_p = sampling.min_p
    if sampling.top_k is not None:
        config.top_k = sampling.top_k
    config.rng_seed = sampling.seed or 0


def transformers_options(sampling: Sampling) -> dict[str, Any]:
    """Return the sampling fields of transformers' ``GenerationConfig``."""
    options: dict[str, Any] = {
        "repetition_penalty": sampling.repetition_penalty,
        "do_sample": not sampling.greedy,
    }
    if not sampling.greedy:
        options |= {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or 0,
            "min_p": sampling.min_p or None,
        }
    return options
