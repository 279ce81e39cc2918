"""``echo`` with ``logprobs``: the log-probabilities of prompts, as evaluation harnesses ask."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import pytest

from phi3ov.server.answering import MOST_SCORING
from tests.unit.fakes import MINI, FakeEngine

from .serving import Served, always, serving, wait_until

LIKELIEST = (7, -0.25)


class ScoringFake(FakeEngine):
    """A scripted engine that finds each token as likely as its id says."""

    gate: threading.Event | None = None

    def score(
        self, token_ids: Sequence[int], *, first: int
    ) -> tuple[tuple[float, ...], tuple[tuple[int, float], ...]]:
        """Return -id / 1000 for each token."""
        if self.gate is not None:
            self.gate.wait(20)
        scored = token_ids[first:]
        return tuple(-token / 1000 for token in scored), (LIKELIEST,) * len(scored)


@pytest.fixture
def served() -> Iterator[Served]:
    """A server whose engine scores."""
    with serving(always("one"), kind=ScoringFake) as running:
        yield running


def score(served: Served, prompt: Any, **fields: Any) -> httpx.Response:
    """Ask for a prompt's log-probabilities."""
    asked = {"prompt": prompt, "echo": True, "logprobs": 1, "max_tokens": 0}
    return served.post("/v1/completions", asked | fields)


def test_the_prompts_own_log_probabilities(served: Served) -> None:
    """Of text and of ids; the first token has nothing before it; nothing is generated."""
    ids = MINI.chat.encode_text("one two three")
    bodies = [score(served, prompt).json() for prompt in ("one two three", ids)]
    for body in bodies:
        (choice,) = body["choices"]
        found = choice["logprobs"]
        assert choice["text"].strip() == "one two three"
        assert found["token_logprobs"] == [None, *(-token / 1000 for token in ids[1:])]
        assert [top and list(top.values()) for top in found["top_logprobs"]] == [
            None,
            *([[LIKELIEST[1]]] * (len(ids) - 1)),
        ]
        assert len(found["tokens"]) == len(found["text_offset"]) == len(ids)
        assert body["usage"] == {
            "prompt_tokens": len(ids),
            "completion_tokens": 0,
            "total_tokens": len(ids),
        }
    assert served.engine.requests == []
    assert served.is_idle()


def test_several_prompts_keep_their_order(served: Served) -> None:
    """One choice for each prompt; a prompt of one token has nothing to score."""
    first, second = MINI.chat.encode_text("one two"), MINI.chat.encode_text("three")[:1]
    choices = score(served, [first, second]).json()["choices"]
    assert [choice["index"] for choice in choices] == [0, 1]
    assert len(choices[0]["logprobs"]["token_logprobs"]) == len(first)
    assert choices[1]["logprobs"]["token_logprobs"] == [None]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stream": True}, "echo"),
        ({"n": 2, "temperature": 1}, "echo"),
        ({"logprobs": 2}, "logprobs"),
    ],
)
def test_what_cannot_be_scored_is_refused_by_field(
    served: Served, fields: dict[str, Any], param: str
) -> None:
    """A stream, several answers, and more alternatives than the likeliest."""
    error = score(served, "one two", **fields).json()["error"]
    assert (error["param"], error["code"][:11]) == (param, "unsupported")


def test_an_engine_that_does_not_score_is_named() -> None:
    """The error says which engine does."""
    with serving(always("one")) as served:
        response = score(served, "one two")
        assert (response.status_code, response.json()["error"]["param"]) == (400, "echo")
        assert "paged" in response.json()["error"]["message"]


def test_scoring_is_bounded_and_leaves_room_for_answers() -> None:
    """While a prompt is scored, chats are answered; beyond the limit there is a 429."""
    gate = threading.Event()
    with serving(always("one"), kind=ScoringFake) as served:
        assert isinstance(served.engine, ScoringFake)
        served.engine.gate = gate
        statuses: list[int] = []
        threads = [
            threading.Thread(target=lambda: statuses.append(score(served, "one two").status_code))
            for _ in range(MOST_SCORING + 3)
        ]
        for thread in threads:
            thread.start()
        wait_until(lambda: statuses == [429] * 3)
        assert served.chat().status_code == 200
        gate.set()
        for thread in threads:
            thread.join()
        assert sorted(statuses) == [200] * MOST_SCORING + [429] * 3
        wait_until(lambda: served.app.state.host.scoring == 0)


def test_tokenizer_info_lets_a_harness_encode_here(served: Served) -> None:
    """As vLLM's: with it, lm-eval needs no tokenizer of its own."""
    info = served.client.get("/tokenizer_info").json()
    assert info["eos_token"] in MINI.chat.stop_tokens.values()
