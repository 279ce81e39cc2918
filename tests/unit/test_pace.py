"""How many candidates a pass checks: simulated answers of a known text, pass by pass."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phi3ov.answer.options import Sampling
from phi3ov.answer.token_stream import TokenRequest
from phi3ov.engine.genai.draft import SpeculationPlan
from phi3ov.engine.genai.pace import LOOK_TOKENS, WINDOW_TOKENS, Pacer, lookup_matches
from phi3ov.runtime.speculation import candidate_cost

LOOKUP = SpeculationPlan(candidate_tokens=5, ngram_tokens=3, candidate_cost=0.05)
COSTLY_LOOKUP = SpeculationPlan(candidate_tokens=5, ngram_tokens=3, candidate_cost=0.4)
DRAFT = SpeculationPlan(
    candidate_tokens=4, draft_folder="draft", candidate_cost=0.05, draft_cost=0.1
)
NONE = SpeculationPlan()
STOP = 9999


def request(
    prompt: Sequence[int],
    answer: Sequence[int],
    sampling: Sampling = Sampling(),  # noqa: B008
) -> TokenRequest:
    """Ask for an answer of that length."""
    return TokenRequest(
        prompt_ids=tuple(prompt),
        max_new_tokens=len(answer),
        stop_ids=frozenset({STOP}),
        sampling=sampling,
    )


def found_by_genai(ids: Sequence[int], candidates: int, ngram: int) -> list[int]:
    """Return what genai's ``generate_candidates`` proposes after ``ids``, step for step."""
    if ngram >= len(ids):
        ngram = len(ids) // 2
    for length in range(ngram, 0, -1):
        wanted = list(ids[-length:])
        for start in range(len(ids) - length):
            if list(ids[start : start + length]) == wanted:
                begin = start + length
                return list(ids[begin : begin + min(len(ids) - begin, candidates)])
    return []


def run(
    pacer: Pacer, asked: TokenRequest, answer: Sequence[int], *, accept: float | None = None
) -> list[tuple[int, int, int]]:
    """Answer as genai does; return each part's length, candidates, and passes.

    Args:
        pacer: Of the engine.
        asked: The request.
        answer: What the model says.
        accept: Share of a draft's candidates that are right; None looks them up in the text.
    """
    pace = pacer.begin(asked)
    random.seed(1)
    given: list[int] = []
    parts = []
    while (part := pace.next_part()) is not None:
        begin, end, passes = len(given), len(given) + part.new_tokens, 0
        assert end == asked.max_new_tokens
        while len(given) < end and not pace.switching:
            right = 0
            if passes and part.candidates:
                if accept is None:
                    ids = [*asked.prompt_ids, *given]
                    proposed = found_by_genai(ids, part.candidates, pacer.plan.ngram_tokens)
                    follow = answer[len(given) :]
                    while right < len(proposed) and proposed[right] == (*follow, None)[right]:
                        right += 1
                else:
                    while right < part.candidates and random.random() < accept:
                        right += 1
            took = min(right + 1, end - len(given))
            tokens = answer[len(given) : len(given) + took]
            given += tokens
            passes += 1
            checked = pace.note(tokens)
            assert checked == (part.candidates if passes > 1 else 0)
            if tokens[-1] == STOP:
                break
        parts.append((len(given) - begin, part.candidates, passes))
    pace.end()
    assert given == list(answer)
    return parts


NEW = list(range(1000, 1400))
REPEATED = list(range(300)) * 2


def test_nothing_to_look_up_is_one_request_that_checks_one_candidate() -> None:
    """A second request would read blocks of the cache again."""
    parts = run(Pacer(LOOKUP), request(range(50), NEW), NEW)
    assert [part[:2] for part in parts] == [(400, 1)]


def test_a_repeated_prompt_turns_lookup_on_and_a_new_text_off_again() -> None:
    """Within one answer, and on again."""
    answer = [*REPEATED[:150], *NEW[:300], *REPEATED[:150]]
    pacer = Pacer(LOOKUP)
    parts = run(pacer, request(REPEATED[:300], answer), answer)
    candidates = [number for _, number, _ in parts]
    assert candidates == [1, 5, 1, 5]
    assert parts[0][0] <= LOOK_TOKENS + 1  # a pass may give two tokens
    assert sum(passes for *_, passes in parts) < 0.75 * len(answer)


def test_what_pays_depends_on_the_processor() -> None:
    """Half of the tokens repeated pays where a candidate is cheap, and not where it is dear."""
    prompt = list(range(2000, 2200))
    answer = [
        token
        for start in range(0, 200, 4)
        for token in (*prompt[start : start + 4], 5000 + start, 6000 + start)
    ]
    for plan, on in ((LOOKUP, True), (COSTLY_LOOKUP, False)):
        parts = run(Pacer(plan), request(prompt, answer), answer)
        assert any(candidates > 1 for _, candidates, _ in parts[1:]) == on


def test_many_at_once_begin_with_one_looked_up_token() -> None:
    """However well the last answer repeated its prompt: a pass for eight reads 48 tokens else."""
    pacer = Pacer(LOOKUP)
    run(pacer, request(REPEATED[:300], REPEATED[:200]), REPEATED[:200])
    asked = request(range(50), NEW)
    begun = {
        together: pacer.begin(asked, split=False, together=together).next_part()
        for together in (1, 2, 8)
    }
    assert {together: part and part.candidates for together, part in begun.items()} == {
        1: 5,
        2: 1,
        8: 1,
    }


@pytest.mark.parametrize(("share", "expected"), [(1.0, 4), (0.6, 1)])
def test_a_draft_for_many_at_once_is_weighed_at_their_price(share: float, expected: int) -> None:
    """Four of its tokens pay for eight requests only if nearly all are right."""
    pacer = Pacer(DRAFT)
    run(pacer, request(range(50), NEW), NEW, accept=share)
    part = pacer.begin(request(range(50), NEW), split=False, together=8).next_part()
    assert part is not None
    assert part.candidates == expected


def test_the_next_answer_begins_as_the_last_one_ended() -> None:
    """Also a drawn one, which is a single request: genai begins a seed's draws with each."""
    pacer = Pacer(LOOKUP)
    run(pacer, request(REPEATED[:300], REPEATED[:200]), REPEATED[:200])
    drawn = request(REPEATED[:300], REPEATED[:200], Sampling(temperature=0.7, seed=1))
    assert run(pacer, drawn, REPEATED[:200])[0][:2] == (200, 5)
    run(pacer, request(range(50), NEW), NEW)
    assert run(pacer, drawn, REPEATED[:200])[0][:2] == (200, 1)


@pytest.mark.parametrize(("share", "expected"), [(0.95, 4), (0.05, 1)])
def test_a_draft_is_used_as_often_as_it_is_right(share: float, expected: int) -> None:
    """It begins with all candidates; one of 20 right pays for one at most."""
    pacer = Pacer(DRAFT)
    parts = run(pacer, request(range(50), NEW), NEW, accept=share)
    assert parts[0][1] == 4
    assert pacer.candidates == expected


def test_a_draft_goes_on_again() -> None:
    """What the last passes say counts, not what came before."""
    pacer = Pacer(DRAFT)
    run(pacer, request(range(50), NEW), NEW, accept=0.0)
    assert pacer.candidates == 1
    run(pacer, request(range(50), NEW), NEW, accept=1.0)
    assert pacer.candidates == 4


@pytest.mark.parametrize(
    "plan",
    [
        SpeculationPlan(candidate_tokens=5, ngram_tokens=3, adaptive=False),
        SpeculationPlan(candidate_tokens=5, draft_folder="draft", adaptive=False),
    ],
)
def test_without_adaptive_each_pass_checks_all(plan: SpeculationPlan) -> None:
    """In one request."""
    pacer = Pacer(plan)
    assert [part[:2] for part in run(pacer, request(range(50), NEW), NEW, accept=0.0)] == [(400, 5)]
    assert pacer.candidates == 5


def test_without_speculation_an_answer_is_one_request() -> None:
    """With no candidates."""
    assert run(Pacer(NONE), request(range(50), NEW), NEW) == [(400, 0, 400)]


@given(st.integers(1, 200), st.integers(1, 300), st.integers(1, 8), st.integers(0, 300))
def test_the_parts_make_up_the_answer(
    prompt_tokens: int, answer_tokens: int, candidates: int, stop_at: int
) -> None:
    """A part is followed by another only if enough of the answer is left for it to pay."""
    plan = SpeculationPlan(candidate_tokens=candidates, ngram_tokens=3, candidate_cost=0.05)
    answer = [token % 7 for token in range(answer_tokens)]
    asked = request([1] * prompt_tokens, answer)
    if stop_at < answer_tokens:
        answer = [*answer[:stop_at], STOP]
    pace, given = Pacer(plan).begin(asked), 0
    while (part := pace.next_part()) is not None:
        assert part.new_tokens == answer_tokens - given
        assert given == 0 or part.new_tokens >= WINDOW_TOKENS
        while given < len(answer) and not pace.switching:
            pace.note([answer[given]])
            given += 1
    assert pace.ids == [*asked.prompt_ids, *answer]


def test_a_small_gain_is_not_worth_a_request() -> None:
    """A request reads blocks of the cache again, which takes as long as several passes."""
    prompt = list(range(2000, 2200))
    answer = [
        token
        for start in range(0, 200, 2)
        for token in (*prompt[start : start + 2], *range(5000 + 9 * start, 5007 + 9 * start))
    ]
    pacer = Pacer(LOOKUP)
    assert len(run(pacer, request(prompt, answer), answer)) == 1


def test_a_cancelled_part_is_the_last() -> None:
    """It has fewer tokens than were asked for, and none of them ends an answer."""
    pace = Pacer(LOOKUP).begin(request(range(50), NEW))
    assert pace.next_part() is not None
    pace.note([1])
    assert pace.next_part() is None


@given(
    st.lists(st.one_of(st.integers(0, 2), st.integers(2**8, 2**16)), min_size=3, max_size=40),
    st.integers(1, 6),
    st.integers(1, 4),
)
def test_the_simulated_lookup_is_genais(ids: list[int], candidates: int, ngram: int) -> None:
    """In each place as many right candidates as its own search would have proposed."""
    plan = SpeculationPlan(candidate_tokens=candidates, ngram_tokens=ngram)
    expected = []
    for place in range(2, len(ids)):
        proposed = found_by_genai(ids[:place], candidates, ngram)
        right = 0
        while right < len(proposed) and [*ids, None][place + right] == proposed[right]:
            right += 1
        expected.append(right)
    assert lookup_matches(ids, start=0, plan=plan) == expected


def test_a_candidate_costs_more_without_8_bit_products_and_on_a_large_model() -> None:
    """The order of the four measured figures."""
    small, large = 100_000_000, 2_700_000_000
    vnni, avx2 = frozenset({"avx2", "avx512_vnni"}), frozenset({"avx2"})
    costs = [candidate_cost(*each) for each in ((vnni, small), (vnni, large), (avx2, small))]
    assert costs == sorted(costs)
    assert candidate_cost(avx2, large) > costs[-1]
