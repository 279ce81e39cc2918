"""Sampling that model cards recommend, by chat format; never set automatically.

Use `phi3ov.Phi3Model.recommended_options`.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import OptionError
from .options import Sampling

RECOMMENDED: Mapping[str, Sampling] = {
    "phi4-mini-reasoning": Sampling(temperature=0.8, top_p=0.95),
    "phi4-reasoning": Sampling(temperature=0.8, top_p=0.95, top_k=50),
}
"""Sources: the cards of microsoft/Phi-4-mini-reasoning (in its example) and of
microsoft/Phi-4-reasoning and -plus. The cards of the other models do not recommend sampling: their
examples use greedy decoding, phi3ov's default."""


def recommended_sampling(format_name: str) -> Sampling:
    """Return the sampling that the card of a chat format's model recommends.

    Args:
        format_name: `ChatFormat.name`.

    Raises:
        OptionError: The card does not recommend sampling.

    Example:
        >>> recommended_sampling("phi4-mini-reasoning").temperature
        0.8
    """
    found = RECOMMENDED.get(format_name)
    if found is None:
        raise OptionError(
            f"The chat format {format_name!r} has no recommended sampling: its model's card names "
            "none. Choose temperature and the like yourself, or keep greedy decoding."
        )
    return found
