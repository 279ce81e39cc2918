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

import phi3ov
from phi3ov import GenerationOptions, OptionError, Phi3Chat, Phi3Model
from phi3ov.answer.token_stream import TokenRequest
from phi3ov.engine.protocol import EngineName
from tests.inside import any_engine_of

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
    engine, found = any_engine_of(model), Counter[int]()
    for start in range(0, count, 200):
        streams = [engine.submit(request, wait=True) for request in requests[start : start + 200]]
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
        able = "engine='pipeline' or engine='worker' or engine='paged'"
        with pytest.raises(OptionError, match=f"{next(iter(options))}=.*{able}"):
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


def log_softmax(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the natural logarithms of the probabilities."""
    return np.asarray(logits - logits.max() - np.log(np.exp(logits - logits.max()).sum()))


def test_top_logprobs_are_the_models_own(zoo: Zoo, load: LoadModel) -> None:
    """The likeliest tokens of transformers' float32 scores, in the reply and in its pieces."""
    model = load(zoo.artifact(ROW), engine="paged")
    prompt_ids = model.tokenizer.encode_raw(PROMPT)
    options: dict[str, Any] = {"temperature": 3.0, "seed": 2, "logprobs": True, "top_logprobs": 4}
    stream = model.stream_prompt(PROMPT, max_new_tokens=12, **options)
    pieces = list(stream.pieces())
    reply = stream.reply
    assert reply.top_logprobs is not None
    assert len(reply.top_logprobs) == len(reply.token_ids) == 12
    assert [token for piece in pieces for token in piece.top_logprobs] == [*reply.top_logprobs]
    for index, found in enumerate(reply.top_logprobs):
        truth = log_softmax(logits_after(zoo, [*prompt_ids, *reply.token_ids[:index]]))
        assert [token for token, _ in found] == [*np.argsort(-truth)[:4]]
        assert [value for _, value in found] == pytest.approx(np.sort(truth)[:-5:-1], abs=2e-3)
    assert model.complete(PROMPT, max_new_tokens=2, logprobs=True).top_logprobs is None


def test_a_bias_bans_and_forces_tokens(zoo: Zoo, load: LoadModel) -> None:
    """It is added to the scores before anything else; the probabilities stay the model's own."""
    model = load(zoo.artifact(ROW), engine="paged")
    plain = model.complete(PROMPT, max_new_tokens=8)
    first, *_ = plain.token_ids
    banned = model.complete(PROMPT, max_new_tokens=8, logit_bias={first: -100})
    assert first not in banned.token_ids
    forced = model.complete(PROMPT, max_new_tokens=3, logit_bias={65: 100}, logprobs=True)
    assert forced.token_ids == (65, 65, 65)
    assert forced.logprobs is not None
    prompt_ids = model.tokenizer.encode_raw(PROMPT)
    truth = log_softmax(logits_after(zoo, prompt_ids))[65]
    assert forced.logprobs[0] == pytest.approx(truth, abs=2e-3)
    size = model.artifact.vocabulary_size
    with pytest.raises(OptionError, match=rf"logit_bias.*{size}.*0 to {size - 1}"):
        model.complete(PROMPT, max_new_tokens=1, logit_bias={size: 1})


@pytest.mark.parametrize("engine", [*GENAI, "transformers"])
@pytest.mark.parametrize(
    "options", [{"logit_bias": {5: 1}}, {"logprobs": True, "top_logprobs": 2}], ids=str
)
def test_bias_and_alternatives_are_refused_where_they_cannot_be_had(
    options: dict[str, Any], engine: EngineName, zoo: Zoo, load: LoadModel
) -> None:
    """Before anything is generated, with the engine that has them."""
    model = load(zoo.artifact(ROW), engine=engine)
    with pytest.raises(OptionError, match=r"not supported.*engine='(worker' or ')?paged'"):
        model.complete(PROMPT, max_new_tokens=2, **options)


def test_scores_of_a_text_are_the_models_own(zoo: Zoo, load: LoadModel) -> None:
    """As transformers' float32 scores, over more than one chunk, with and without a context."""
    model = load(zoo.artifact(ROW), engine="paged")
    token_ids = model.tokenizer.encode_raw(prompt_text(150, seed=3))
    with torch.inference_mode():
        logits = load_truth(zoo.checkpoint(ROW))(torch.tensor([token_ids]), use_cache=False).logits
    rows = logits[0].double().numpy()
    truth = [log_softmax(row)[token] for row, token in zip(rows, token_ids[1:], strict=False)]
    greedy = [int(row.argmax()) == token for row, token in zip(rows, token_ids[1:], strict=False)]
    for first in (1, 2, 70, len(token_ids) - 1):
        scores = model.score(token_ids, first=first)
        assert scores.token_ids == tuple(token_ids[first:])
        assert scores.logprobs == pytest.approx(truth[first - 1 :], abs=2e-3)
        assert scores.is_greedy == tuple(greedy[first - 1 :])
        best = [(int(row.argmax()), log_softmax(row).max()) for row in rows[first - 1 : -1]]
        assert [token for token, _ in scores.likeliest] == [token for token, _ in best]
        assert [value for _, value in scores.likeliest] == pytest.approx(
            [value for _, value in best], abs=2e-3
        )
        assert scores.total_logprob == pytest.approx(sum(truth[first - 1 :]), abs=0.05)
    answer = model.complete(PROMPT, max_new_tokens=6, logprobs=True)
    again = model.score((*answer.prompt_ids, *answer.token_ids), first=len(answer.prompt_ids))
    assert again.is_greedy == (True,) * 6
    assert again.logprobs == pytest.approx(answer.logprobs, abs=2e-3)


def test_scoring_reads_a_context_once(zoo: Zoo, load: LoadModel) -> None:
    """What the cache holds before the scored tokens is kept, and what was scored is in it then."""
    model = load(zoo.artifact(ROW), engine="paged")
    context = model.tokenizer.encode_raw(prompt_text(90, seed=4))
    choices = [model.tokenizer.encode_raw(text) for text in ("north", "south")]
    for choice in choices:
        model.score([*context, *choice], first=len(context))
    reply = model.stream_ids([*context, *choices[1]], max_new_tokens=1).drain()
    assert reply.usage.cached_tokens == len(context) + len(choices[1]) - 1


def test_what_cannot_be_scored_is_refused(zoo: Zoo, load: LoadModel) -> None:
    """Too little, too much, foreign ids, and engines that cannot."""
    model = load(zoo.artifact(ROW), engine="paged", context_tokens=64)
    with pytest.raises(phi3ov.PromptError, match="two or more"):
        model.score([5])
    with pytest.raises(phi3ov.PromptError, match=f"{10**6}"):
        model.score([5, 10**6])
    for first in (0, 3, 1.0):
        with pytest.raises(OptionError, match=f"first={first!r}"):
            model.score([5, 6, 7], first=first)  # type: ignore[arg-type]
    assert len(model.score([65] * 64).logprobs) == 63
    with pytest.raises(phi3ov.ContextLengthError):
        model.score([65] * 65)
    with pytest.raises(OptionError, match="engine='paged'"):
        load(zoo.artifact(ROW)).score([5, 6])


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
