"""The paged engine's sampler draws the tokens that a slow and obvious sampler draws."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from phi3ov.answer.options import Sampling
from phi3ov.answer.token_stream import TokenRequest
from phi3ov.engine.paged.sampling import (
    Sampler,
    distribution,
    log_probabilities,
    top_logprobs,
)


def slow_distribution(scores: NDArray[np.float64], request: TokenRequest) -> NDArray[np.float64]:
    """Return the probability of every token: sort all, then apply each filter as it is defined."""
    order = np.argsort(-scores, kind="stable")
    if request.sampling.top_k is not None:
        order = order[: request.sampling.top_k]
    weights = np.exp((scores[order] - scores[order[0]]) / request.sampling.temperature)
    weights /= weights.sum()
    weights[weights < request.sampling.min_p * weights[0]] = 0
    kept = len(order)
    if request.sampling.top_p < 1:
        kept = int(np.searchsorted(np.cumsum(weights), request.sampling.top_p)) + 1
    result = np.zeros(len(scores))
    result[order[:kept]] = weights[:kept] / weights[:kept].sum()
    return result


def slow_choice(
    logits: NDArray[np.float32],
    request: TokenRequest,
    answer: list[int],
    generator: np.random.Generator,
) -> int:
    """Return the next token: look at the whole prompt and answer, token by token."""
    scores = logits.astype(np.float64)
    for token, value in (request.sampling.logit_bias or {}).items():
        scores[token] += value
    for token in {*request.prompt_ids, *answer}:
        if scores[token] > 0:
            scores[token] *= 1 / request.sampling.repetition_penalty
        else:
            scores[token] *= request.sampling.repetition_penalty
    for token in set(answer):
        scores[token] -= np.sign(scores[token] + 0.0 or 1.0) * request.sampling.presence_penalty
    for token in set(answer):
        penalty = request.sampling.frequency_penalty * answer.count(token)
        scores[token] -= np.sign(scores[token] + 0.0 or 1.0) * penalty
    if request.sampling.temperature == 0:
        return int(scores.argmax())
    return int(generator.choice(len(scores), p=slow_distribution(scores, request)))


@st.composite
def requests(draw: st.DrawFn, vocabulary: int) -> TokenRequest:
    """Draw a request with any mix of options."""
    penalty = st.sampled_from([0.0, 0.5, 1.7, -0.8])
    options: dict[str, Any] = {
        "repetition_penalty": draw(st.sampled_from([1.0, 1.3, 0.7])),
        "presence_penalty": draw(penalty),
        "frequency_penalty": draw(penalty),
        "logit_bias": draw(
            st.dictionaries(
                st.integers(0, vocabulary - 1), st.sampled_from([-100.0, -2.0, 1.5]), max_size=3
            )
        ),
    }
    if draw(st.booleans()):
        options |= {
            "temperature": draw(st.sampled_from([0.3, 1.0, 4.0])),
            "top_k": draw(st.sampled_from([None, 1, 2, 7, 40, vocabulary, 10 * vocabulary])),
            "top_p": draw(st.sampled_from([1.0, 0.999, 0.9, 0.4, 0.01])),
            "min_p": draw(st.sampled_from([0.0, 0.05, 0.6])),
            "seed": draw(st.integers(0, 5)),
        }
    prompt = draw(st.lists(st.integers(0, vocabulary - 1), min_size=1, max_size=8))
    return TokenRequest(
        prompt_ids=tuple(prompt),
        max_new_tokens=100,
        stop_ids=frozenset(),
        sampling=Sampling(**options),
    )


@given(data=st.data(), seed=st.integers(0, 1000), ties=st.booleans())
def test_the_sampler_draws_what_a_slow_one_draws(
    data: st.DataObject, seed: int, *, ties: bool
) -> None:
    """Over a whole answer: penalties count every token, and equal scores keep their order."""
    vocabulary = data.draw(st.sampled_from([3, 50, 700]))
    request = data.draw(requests(vocabulary))
    noise = np.random.default_rng(seed)
    generator = np.random.default_rng(request.sampling.seed)
    sampler, answer = Sampler(request), list[int]()
    for _ in range(24):
        logits = (3 * noise.standard_normal(vocabulary)).astype(np.float32)
        if ties:
            logits = logits.round()
        expected = slow_choice(logits, request, answer, generator)
        assert sampler.choose(logits) == expected
        answer.append(expected)


@given(data=st.data(), seed=st.integers(0, 1000))
def test_the_distribution_of_a_large_vocabulary_is_the_slow_one(
    data: st.DataObject, seed: int
) -> None:
    """A nucleus that holds most of a flat vocabulary is found as well as one of a few tokens."""
    request = data.draw(requests(6000).filter(lambda made: not made.sampling.greedy))
    scores = np.random.default_rng(seed).standard_normal(6000)
    found = np.zeros(6000)
    ids, found[ids] = distribution(scores, request)
    np.testing.assert_allclose(found, slow_distribution(scores, request), atol=1e-12)
    assert np.all(np.diff(ids) > 0)


@given(seed=st.integers(0, 1000), count=st.integers(1, 20), ties=st.booleans())
def test_the_alternatives_are_the_likeliest_tokens(seed: int, count: int, *, ties: bool) -> None:
    """Sorted slowly, with the log-softmax of each; of equal ones the lower id is first."""
    logits = (5 * np.random.default_rng(seed).standard_normal(300)).astype(np.float32)
    if ties:
        logits = logits.round()
    total = sum(np.exp(float(score)) for score in logits)
    expected = sorted(range(300), key=lambda token: (-logits[token], token))[:count]
    found = top_logprobs(log_probabilities(logits), count)
    assert [token for token, _ in found] == expected
    for token, value in found:
        assert abs(value - (float(logits[token]) - np.log(total))) < 1e-9
