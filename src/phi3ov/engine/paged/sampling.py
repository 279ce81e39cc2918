"""From logits to the next token: penalties, then greedy, or drawn with temperature and filters.

The rules and their order are openvino-genai's, so that engines agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ...answer.token_stream import TokenRequest


def choose_token(
    logits: NDArray[np.float32],
    request: TokenRequest,
    seen_ids: Sequence[int],
    generator: np.random.Generator,
) -> int:
    """Return the next token's id.

    Args:
        logits: Of shape [vocabulary].
        request: How to choose.
        seen_ids: Ids of prompt and answer so far, for the penalties.
        generator: Draws the token; not used for greedy decoding.
    """
    scores = logits.astype(np.float64)
    if request.repetition_penalty != 1.0:
        seen = np.unique(np.array(seen_ids))
        penalized = scores[seen]
        factor = np.where(penalized > 0, 1 / request.repetition_penalty, request.repetition_penalty)
        scores[seen] = penalized * factor
    answer_ids, counts = np.unique(
        np.array(seen_ids[len(request.prompt_ids) :], dtype=np.int64), return_counts=True
    )
    for penalty in (request.presence_penalty, request.frequency_penalty * counts):
        penalized = scores[answer_ids]
        scores[answer_ids] = penalized - np.where(penalized >= 0, 1, -1) * penalty
    if request.temperature == 0:
        return int(scores.argmax())
    return int(generator.choice(len(scores), p=probabilities(scores, request)))


def logprob(logits: NDArray[np.float32], token_id: int) -> float:
    """Return the natural logarithm of a token's probability before any option changes it."""
    scores = logits.astype(np.float64)
    return float(scores[token_id] - np.logaddexp.reduce(scores))


def probabilities(scores: NDArray[np.float64], request: TokenRequest) -> NDArray[np.float64]:
    """Return the distribution to draw from: top-k, temperature, min-p, top-p."""
    order = np.argsort(-scores, kind="stable")
    if request.top_k is not None:
        order = order[: request.top_k]
    weights = np.exp((scores[order] - scores[order[0]]) / request.temperature)
    weights /= weights.sum()
    weights[weights < request.min_p * weights[0]] = 0
    # The token that reaches top_p is the last that stays.
    kept = int(np.searchsorted(np.cumsum(weights), request.top_p)) + 1
    result = np.zeros(len(scores))
    result[order[:kept]] = weights[:kept] / weights[:kept].sum()
    return result
