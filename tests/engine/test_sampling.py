"""Sampling: what each option does is compared with a slow and obvious reference.

The truth is transformers' logits in float32, put through the rule as its definition reads. What
is drawn can only be compared as a distribution: a few thousand draws of one token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from phi3ov import GenerationOptions, OptionError, Phi3Chat, Phi3Model
from phi3ov.answer.token_stream import TokenRequest
from phi3ov.engine.protocol import EngineName

from .conftest import LoadModel, Zoo
from .truth import load_truth, prompt_text

ROW = "phi-4"
GENAI: tuple[EngineName, ...] = ("pipeline", "worker")
EVERY: tuple[EngineName, ...] = (*GENAI, "paged", "transformers")
PROMPT = prompt_text(24)
DRAWS = 3000


def logits_after(zoo: Zoo, ids: list[int]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the truth's scores for the token after ``ids``."""
    with torch.inference_mode():
        logits = load_truth(zoo.checkpoint(ROW))(torch.tensor([ids]), use_cache=False).logits
    return np.asarray(logits[0, -1].double().numpy())


def probabilities(logits: np.ndarray[Any, Any], options: GenerationOptions) -> np.ndarray[Any, Any]:
    """Apply top_k, temperature, min_p and top_p, each as it is defined, and nothing faster."""
    logits = logits.copy()
    if options.top_k is not None:
        logits[logits < np.sort(logits)[-options.top_k]] = -np.inf
    shares = np.exp((logits - logits.max()) / options.temperature)
    shares /= shares.sum()
    shares[shares < options.min_p * shares.max()] = 0
    if options.top_p < 1:
        order = np.argsort(-shares)
        before = np.cumsum(shares[order]) - shares[order]
        shares[order[before > options.top_p]] = 0
    return np.asarray(shares / shares.sum())


def draw(model: Phi3Model, options: GenerationOptions, count: int) -> Counter[int]:
    """Draw the first token after `PROMPT` with the seeds 0 to ``count``."""
    prompt_ids = tuple(model.tokenizer.encode_raw(PROMPT))
    requests = [
        TokenRequest(
            prompt_ids=prompt_ids,
            max_new_tokens=1,
            stop_ids=frozenset(model.tokenizer.stop_tokens),
            sampling=replace(options.sampling, seed=seed),
        )
        for seed in range(count)
    ]
    found: Counter[int] = Counter()
    for start in range(0, count, 200):
        streams = [
            model._engine.submit(request, wait=True) for request in requests[start : start + 200]
        ]
        found.update(token_id for stream in streams for chunk in stream for token_id in chunk)
    return found


@pytest.mark.parametrize(
    "options",
    [
        GenerationOptions(temperature=6.0),
        GenerationOptions(temperature=6.0, min_p=0.2),
        GenerationOptions(temperature=6.0, top_p=0.5),
        GenerationOptions(temperature=6.0, top_k=7),
        GenerationOptions(temperature=4.0, top_k=30, top_p=0.8, min_p=0.05),
    ],
    ids=str,
)
def test_draws_follow_the_definition(options: GenerationOptions, zoo: Zoo, load: LoadModel) -> None:
    """No token outside the set is ever drawn, and those inside come as often as they should.

    A fair count strays from its expectation by a few square roots of it: six is once in 10**9.
    """
    model = load(zoo.artifact(ROW), engine="worker")
    expected = DRAWS * probabilities(logits_after(zoo, model.tokenizer.encode_raw(PROMPT)), options)
    found = draw(model, options, DRAWS)
    assert set(found) <= set(np.flatnonzero(expected))
    strays = [abs(found[token_id] - share) for token_id, share in enumerate(expected)]
    assert all(
        stray <= 6 * np.sqrt(share) + 3 for stray, share in zip(strays, expected, strict=True)
    )


@pytest.mark.parametrize("engine", EVERY)
def test_min_p_keeps_the_same_tokens_on_every_engine(
    engine: EngineName, zoo: Zoo, load: LoadModel
) -> None:
    """With a few likely tokens left, some hundred draws see all of them and nothing else."""
    options = GenerationOptions(temperature=2.0, min_p=0.6)
    model = load(zoo.artifact(ROW), engine=engine)
    kept = probabilities(logits_after(zoo, model.tokenizer.encode_raw(PROMPT)), options)
    assert 2 <= np.count_nonzero(kept) <= 12
    assert set(draw(model, options, 200)) == set(np.flatnonzero(kept))


def penalised(zoo: Zoo, prompt_ids: list[int], count: int, rule: Callable[..., float]) -> list[int]:
    """Return the greedy answer where ``rule`` changes the score of each token seen so far."""
    ids = list(prompt_ids)
    for _ in range(count):
        logits = logits_after(zoo, ids)
        for token_id in set(ids):
            answer = ids[len(prompt_ids) :]
            logits[token_id] = rule(logits[token_id], answer.count(token_id))
        best, second = np.sort(logits)[-2:][::-1]
        assert best - second > 2e-4, "the test's model wavers: draw its weights anew"
        ids.append(int(logits.argmax()))
    return ids[len(prompt_ids) :]


def towards_zero(step: float) -> Callable[[float, int], float]:
    """Return genai's rule for presence (and, with its count, frequency) penalties."""
    return lambda score, _times: score - step * (1 if score >= 0 else -1)


PENALTIES: dict[str, tuple[dict[str, Any], Callable[[float, int], float]]] = {
    "repetition": (
        {"repetition_penalty": 1.8},
        lambda score, _: score / 1.8 if score > 0 else score * 1.8,
    ),
    "presence": (
        {"presence_penalty": 2.0},
        lambda score, times: towards_zero(2.0 * (times > 0))(score, times),
    ),
    "frequency": (
        {"frequency_penalty": 1.5},
        lambda score, times: towards_zero(1.5 * times)(score, times),
    ),
    "negative": (
        {"presence_penalty": -2.0},
        lambda score, times: towards_zero(-2.0 * (times > 0))(score, times),
    ),
}


@pytest.mark.parametrize("engine", EVERY)
@pytest.mark.parametrize("name", PENALTIES)
def test_penalties_equal_a_slow_reference(
    name: str, engine: EngineName, zoo: Zoo, load: LoadModel
) -> None:
    """Token for token; an engine that has no such penalty says so."""
    options, rule = PENALTIES[name]
    model = load(zoo.artifact(ROW), engine=engine)
    if engine == "transformers" and name != "repetition":
        with pytest.raises(OptionError, match=f"{next(iter(options))}=.*engine='worker'"):
            model.complete(PROMPT, max_new_tokens=40, **options)
        return
    truth = penalised(zoo, model.tokenizer.encode_raw(PROMPT), 40, rule)
    assert truth != penalised(zoo, model.tokenizer.encode_raw(PROMPT), 40, lambda score, _: score)
    assert list(model.complete(PROMPT, max_new_tokens=40, **options).token_ids) == truth


@pytest.mark.parametrize("engine", ["worker", "paged"])
def test_logprobs_are_the_models_own(engine: EngineName, zoo: Zoo, load: LoadModel) -> None:
    """Log-softmax of transformers' float32 scores, whatever temperature and penalties do."""
    model = load(zoo.artifact(ROW), engine=engine)
    prompt_ids = model.tokenizer.encode_raw(PROMPT)
    drawn: dict[str, Any] = {
        "temperature": 2.0,
        "seed": 1,
        "top_p": 0.9,
        "presence_penalty": 1.0,
    }
    nothing: dict[str, Any] = {}
    for options in (nothing, drawn):
        reply = model.complete(PROMPT, max_new_tokens=20, logprobs=True, **options)
        assert reply.logprobs is not None
        assert len(reply.logprobs) == len(reply.token_ids)
        for index, (token_id, found) in enumerate(
            zip(reply.token_ids, reply.logprobs, strict=True)
        ):
            logits = logits_after(zoo, [*prompt_ids, *reply.token_ids[:index]])
            truth = logits[token_id] - logits.max() - np.log(np.exp(logits - logits.max()).sum())
            assert found == pytest.approx(truth, abs=2e-3)
    assert model.complete(PROMPT, max_new_tokens=5).logprobs is None


@pytest.mark.parametrize("engine", ["pipeline", "transformers"])
def test_logprobs_are_refused_where_they_cannot_be_had(
    engine: EngineName, zoo: Zoo, load: LoadModel
) -> None:
    """Before anything is generated, with the engine that has them; the chat stays usable."""
    chat = Phi3Chat(load(zoo.artifact(ROW), engine=engine))
    with pytest.raises(OptionError, match=r"logprobs=True.*engine='worker'"):
        chat.stream("hi", logprobs=True, max_new_tokens=2)
    assert chat.generate("hi", max_new_tokens=2).finish_reason == "length"


@pytest.mark.parametrize("engine", EVERY)
def test_a_seed_gives_one_text_alone_among_others_and_as_a_candidate(
    engine: EngineName, zoo: Zoo, load: LoadModel
) -> None:
    """Each request has its own generator of random numbers, or the only one for its time."""
    model = load(zoo.artifact(ROW), engine=engine)
    options: dict[str, Any] = {"temperature": 2.0, "max_new_tokens": 12}
    alone = [model.complete(PROMPT, seed=seed, **options).token_ids for seed in range(4)]
    assert len(set(alone)) == 4

    def complete(seed: int) -> tuple[int, ...]:
        return model.complete(PROMPT, seed=seed % 4, **options).token_ids

    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(complete, range(8)))
    assert together == alone * 2
    reply = model.complete(PROMPT, seed=0, candidates=4, **options)
    assert [one.token_ids for one in reply.candidates] == alone


def test_drawing_on_transformers_leaves_torchs_generator_alone(zoo: Zoo, load: LoadModel) -> None:
    """A program that seeded torch goes on as if nothing had been drawn in between."""
    model = load(zoo.artifact(ROW), engine="transformers")
    torch.manual_seed(5)
    undisturbed = torch.rand(4)
    torch.manual_seed(5)
    model.complete(PROMPT, temperature=1.0, seed=1, max_new_tokens=4)
    assert torch.equal(torch.rand(4), undisturbed)
