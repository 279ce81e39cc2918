"""Chooses the next token from logits: bias, penalties, then greedy choice or filtered sampling.

The rules and their order are openvino-genai's, so that engines agree. A vocabulary has up to
200 064 tokens and each step takes milliseconds, so no function sorts the whole vocabulary or
scans the whole prompt for every token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ...answer.token_stream import TokenRequest

_NUCLEUS_TOKENS = 256
"""Number of most likely tokens that are tried first for ``top_p``; then eight times as many."""


class Sampler:
    """Chooses the tokens of one answer, and tracks the tokens that penalties apply to."""

    def __init__(self, request: TokenRequest) -> None:
        """Begin an answer.

        Args:
            request: The options, and the prompt, to which the repetition penalty also applies.
        """
        self._request = request
        self._generator = np.random.default_rng(request.sampling.seed)
        bias = request.sampling.logit_bias or {}
        self._biased_ids = np.array([*bias], dtype=np.int64)
        self._biases = np.array([*bias.values()], dtype=np.float64)
        self._prompt_ids = np.unique(np.array(request.prompt_ids, dtype=np.int64))
        self._in_prompt = frozenset(request.prompt_ids)
        self._places: dict[int, int] = {}  # index in the arrays, by id of the answer
        self._answer_ids = np.zeros(16, np.int64)
        self._counts = np.zeros(16, np.int64)
        self._is_new = np.zeros(16, np.bool_)  # not in the prompt

    def choose(self, logits: NDArray[np.float32]) -> int:
        """Return the next token's id and add it to the answer.

        Args:
            logits: Logits of shape [vocabulary].
        """
        request = self._request
        scores = logits.astype(np.float64)
        scores[self._biased_ids] += self._biases
        self._penalize(scores)
        if request.sampling.temperature == 0:
            token = int(scores.argmax())
        else:
            ids, shares = distribution(scores, request)
            token = int(self._generator.choice(ids, p=shares))
        self._remember(token)
        return token

    def _penalize(self, scores: NDArray[np.float64]) -> None:
        """Apply the penalties of the request to ``scores``, in place."""
        request, count = self._request, len(self._places)
        answer_ids, counts = self._answer_ids[:count], self._counts[:count]
        if request.sampling.repetition_penalty != 1.0:
            for seen in (self._prompt_ids, answer_ids[self._is_new[:count]]):
                penalized = scores[seen]
                scores[seen] = penalized * np.where(
                    penalized > 0,
                    1 / request.sampling.repetition_penalty,
                    request.sampling.repetition_penalty,
                )
        for penalty in (
            request.sampling.presence_penalty,
            request.sampling.frequency_penalty * counts,
        ):
            penalized = scores[answer_ids]
            scores[answer_ids] = penalized - np.where(penalized >= 0, 1, -1) * penalty

    def _remember(self, token: int) -> None:
        place = self._places.setdefault(token, len(self._places))
        if place == len(self._answer_ids):
            self._answer_ids = np.concatenate([self._answer_ids, np.zeros_like(self._answer_ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
            self._is_new = np.concatenate([self._is_new, np.zeros_like(self._is_new)])
        self._answer_ids[place] = token
        self._counts[place] += 1
        self._is_new[place] = token not in self._in_prompt


def log_probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the natural logarithm of each token's probability, before any option applies."""
    scores = logits.astype(np.float64)
    scores -= scores.max()
    scores -= np.log(np.exp(scores).sum())
    return scores


def top_logprobs(logprobs: NDArray[np.float64], count: int) -> tuple[tuple[int, float], ...]:
    """Return the ``count`` most likely ids with their log-probabilities, most likely first."""
    found = _likeliest(logprobs, count)
    found = found[np.argsort(-logprobs[found], kind="stable")]
    return tuple((int(token), float(logprobs[token])) for token in found)


def distribution(
    scores: NDArray[np.float64], request: TokenRequest
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Apply top-k, temperature, min-p and top-p; return the distribution to sample from.

    Returns:
        The remaining ids, ascending, and the probability of each.
    """
    ids = _likeliest(scores, request.sampling.top_k or len(scores))
    weights = np.exp((scores[ids] - scores[ids].max()) / request.sampling.temperature)
    weights /= weights.sum()
    weights[weights < request.sampling.min_p * weights.max()] = 0
    if request.sampling.top_p < 1:
        kept = _nucleus(weights, request.sampling.top_p)
        ids, weights = ids[kept], weights[kept]
    return ids, weights / weights.sum()


def _likeliest(scores: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Return the ascending indices of the ``count`` highest scores; ties prefer lower indices."""
    if count >= len(scores):
        return np.arange(len(scores))
    least = -np.partition(-scores, count - 1)[count - 1]
    above = np.flatnonzero(scores > least)
    equal = np.flatnonzero(scores == least)[: count - len(above)]
    return np.sort(np.concatenate([above, equal]))


def _nucleus(weights: NDArray[np.float64], top_p: float) -> NDArray[np.int64]:
    """Return the ascending indices of the most likely tokens that together reach ``top_p``."""
    count = _NUCLEUS_TOKENS
    while True:
        found = _likeliest(weights, count)
        found = found[np.argsort(-weights[found], kind="stable")]
        # The token that reaches top_p is the last one kept.
        kept = int(np.searchsorted(np.cumsum(weights[found]), top_p)) + 1
        if kept <= len(found) or len(found) == len(weights):
            return np.sort(found[:kept])
        count *= 8
