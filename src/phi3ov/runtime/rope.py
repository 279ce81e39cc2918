"""LongRoPE: choose the set of rotary factors once, when a model is loaded.

A LongRoPE checkpoint (Phi-3-mini-128k, Phi-3.5-mini, Phi-4-mini, ...) was trained with two
sets of factors, "short" for contexts up to ``original_max_position_embeddings`` tokens and
"long" above. An exported graph chooses between them at every forward pass, from the largest
position in the batch. Keys that are already in the KV cache keep the factors of their own pass.
So four cases mix both sets and produce garbage: an answer that crosses the border, a prompt read
in chunks, a batch of a short and a long request, and a cached prefix that a long chat outgrows.

phi3ov chooses for the whole run, as vLLM and llama.cpp do, and makes the comparison in the
graph's XML constant: both inputs of ``Greater(length, border)`` are wired to the same source,
which makes it false, or true as ``GreaterEqual``. This needs only the standard library; it needs
no new export and reads no weights.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import Literal

from ..artifact.ir import is_border_comparison
from ..errors import OptionError, UnsupportedModelError
from ..family import Phi3Config
from ..validation import is_integer

RopeFactors = Literal["none", "short", "long"]
"""LongRoPE factors in force; "none" for a model without LongRoPE."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextChoice:
    """Context length and LongRoPE factors of a loaded model.

    Attributes:
        tokens: Context length that prompt and answer share, in tokens.
        factors: The LongRoPE factors in force while the model is loaded.
    """

    tokens: int
    factors: RopeFactors


def choose_context(config: Phi3Config, context_tokens: int | None) -> ContextChoice:
    """Choose context length and LongRoPE factors for a model.

    Args:
        config: The model's dimensions.
        context_tokens: Context length that prompt and answer share; None for the model's
            original context.

    Raises:
        OptionError: ``context_tokens`` is not between 1 and ``max_position_embeddings``.

    Example:
        >>> mini = Phi3Config.parse({
        ...     "model_type": "phi3", "hidden_size": 3072, "intermediate_size": 8192,
        ...     "num_hidden_layers": 32, "num_attention_heads": 32,
        ...     "max_position_embeddings": 131072, "original_max_position_embeddings": 4096,
        ...     "rope_scaling": {"type": "longrope"},
        ... })
        >>> choose_context(mini, None)
        ContextChoice(tokens=4096, factors='short')
        >>> choose_context(mini, 32768).factors
        'long'
    """
    most = config.max_position_embeddings
    border = config.original_max_position_embeddings
    tokens = border if context_tokens is None else context_tokens
    if not is_integer(tokens) or not 1 <= tokens <= most:
        raise OptionError(
            f"context_tokens={tokens!r} must be between 1 and the model's "
            f"max_position_embeddings={most}.",
            option="context_tokens",
        )
    if not config.has_longrope:
        return ContextChoice(tokens=tokens, factors="none")
    return ContextChoice(tokens=tokens, factors="short" if tokens <= border else "long")


def pin_factors(model_xml: str, choice: ContextChoice, *, original_tokens: int) -> str:
    """Return an IR's XML with the LongRoPE factors of ``choice`` pinned.

    Args:
        model_xml: Content of ``openvino_model.xml``.
        choice: The factors to pin; "none" returns the XML unchanged.
        original_tokens: The model's original context. An IR with a single factor set holds the
            short one and is valid up to this length.

    Raises:
        UnsupportedModelError: The IR has no long factors, or chooses factors in a way that phi3ov
            does not know.
    """
    if choice.factors == "none":
        return model_xml
    root = ET.fromstring(model_xml)
    comparisons = [layer for layer in root.iter("layer") if is_border_comparison(layer)]
    if not comparisons:
        if choice.factors == "short" and choice.tokens <= original_tokens:
            return model_xml
        raise UnsupportedModelError(
            f"context_tokens={choice.tokens} needs LongRoPE's long factors, but this export holds "
            f"one factor set only (made by an exporter before mid-2026) and is right up to "
            f"{original_tokens} tokens. Export the checkpoint again, or load it with "
            f"context_tokens={original_tokens}."
        )
    if len(comparisons) > 1:
        raise UnsupportedModelError(
            f"The IR compares positions with the LongRoPE border in {len(comparisons)} places; "
            "phi3ov knows exports with a single one."
        )
    comparison = comparisons[0]
    _wire_both_inputs_to_the_first(root, comparison.attrib["id"])
    comparison.set("type", "GreaterEqual" if choice.factors == "long" else "Greater")
    return ET.tostring(root, encoding="unicode")


def _wire_both_inputs_to_the_first(root: ET.Element, layer_id: str) -> None:
    edges = {
        edge.get("to-port"): edge for edge in root.iter("edge") if edge.get("to-layer") == layer_id
    }
    first, second = (edges[port] for port in sorted(edges, key=str))
    for attribute in ("from-layer", "from-port"):
        second.set(attribute, first.attrib[attribute])
