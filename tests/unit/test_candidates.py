"""Several candidates: one reply, one stream, all of them or none."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from phi3ov.answer.candidates import CandidateStream
from phi3ov.answer.options import GenerationOptions
from phi3ov.answer.stream import AnswerStream
from phi3ov.answer.token_stream import TokenRequest, TokenStream
from phi3ov.chat import Phi3Chat
from phi3ov.errors import GenerationError, OptionError, QueueFullError
from phi3ov.prompt.detokenizer import AnswerText

from .fakes import Answer, FakeEngine, answer_ids, make_model

DRAWN = GenerationOptions(temperature=1.0, seed=2**32 - 2, candidates=3)
TEXTS = ("one", "two", "three")


def answer_by_seed(request: TokenRequest) -> Answer:
    """Answer with the text that belongs to the request's seed."""
    seed = request.sampling.seed
    assert seed is not None
    return Answer(answer_ids(TEXTS[(seed + 2) % 2**32]))


def test_candidates_have_seeds_in_a_row_and_the_first_is_the_reply() -> None:
    """Each could be drawn again alone; the seeds wrap around their range."""
    engine = FakeEngine(answer_by_seed)
    chat = Phi3Chat(make_model(engine), options=DRAWN)
    stream = chat.stream("hi")
    assert "".join(stream) == "one"
    reply = stream.reply
    assert [one.text for one in reply.candidates] == list(TEXTS)
    assert [one.seed for one in reply.candidates] == [2**32 - 2, 2**32 - 1, 0]
    assert (reply.text, reply.seed) == ("one", 2**32 - 2)
    assert reply.candidates[0].candidates == ()
    assert len({request.prompt_ids for request in engine.requests}) == 1


def test_one_candidate_is_no_list() -> None:
    """Nobody who asks for one answer gets it twice."""
    reply = Phi3Chat(make_model(FakeEngine([Answer(answer_ids("one"))]))).generate("hi")
    assert reply.candidates == ()


def test_the_history_holds_the_first_until_another_is_chosen() -> None:
    """The ids of the chosen one are what the next prompt begins with."""
    chat = Phi3Chat(make_model(FakeEngine(answer_by_seed)), options=DRAWN)
    before = chat.fork()
    reply = chat.generate("hi")
    assert chat.messages[-1].content == "one"
    twin = chat.fork()
    twin.choose(reply.candidates[2])
    assert (chat.messages[-1].content, twin.messages[-1].content) == ("one", "three")
    alone = before.generate("hi", candidates=1, seed=0)
    assert alone.text == "three"
    assert before.token_ids == twin.token_ids


def test_what_is_no_candidate_cannot_be_chosen() -> None:
    """Neither a reply of another turn, nor anything after a reset."""
    chat = Phi3Chat(make_model(FakeEngine(answer_by_seed)), options=DRAWN)
    old = chat.generate("hi")
    new = chat.generate("hi", seed=2**32 - 1, candidates=2)
    with pytest.raises(OptionError, match="candidate='one' is not one of the last turn's 2"):
        chat.choose(old.candidates[0])
    chat.choose(new.candidates[1])
    chat.reset()
    with pytest.raises(OptionError, match="not one of the last turn's 0"):
        chat.choose(new.candidates[1])


def test_one_failed_candidate_fails_the_turn() -> None:
    """The caller asked for all; the history stays as it was and the chat is free."""
    answers = [Answer(answer_ids("one")), Answer(error=ValueError("boom"))]
    chat = Phi3Chat(make_model(FakeEngine([*answers, Answer(answer_ids("x"))])))
    with pytest.raises(GenerationError, match="boom") as caught:
        chat.generate("hi", temperature=1.0, candidates=2)
    assert caught.value.partial_text == "one"
    assert chat.messages == ()
    assert chat.generate("hi").text == "x"


def test_cancelling_ends_every_candidate() -> None:
    """Also those that still wait for the engine."""
    engine = FakeEngine(lambda _request: Answer(answer_ids("on and on", stop=None), endless=True))
    chat = Phi3Chat(make_model(engine))
    stream = chat.stream("hi", temperature=1.0, candidates=3)
    next(stream)
    stream.close()
    assert [one.finish_reason for one in stream.reply.candidates] == ["cancelled"] * 3
    assert len(engine.requests) == 1
    assert chat.messages == ()


def test_a_full_queue_takes_all_candidates_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that were accepted before the queue was full do not run on."""
    engine = FakeEngine(lambda _request: Answer(endless=True))
    submit, accepted = engine.submit, list[TokenStream]()

    def submit_two(request: TokenRequest, **options: Any) -> TokenStream:
        if len(accepted) == 2:
            raise QueueFullError(2)
        accepted.append(submit(request, **options))
        return accepted[-1]

    monkeypatch.setattr(engine, "submit", submit_two)
    chat = Phi3Chat(make_model(engine))
    with pytest.raises(QueueFullError):
        chat.stream("hi", temperature=1.0, candidates=3)
    assert all(stream.cancelled for stream in accepted)
    chat.reset()  # the turn is not open


def test_an_event_loop_hears_of_every_candidates_time_limit() -> None:
    """The first has ended by itself; the second says nothing until its time is over."""
    first, second = (
        TokenStream(
            TokenRequest(prompt_ids=(1,), max_new_tokens=5, stop_ids=frozenset()),
            timeout_seconds=limit,
        )
        for limit in (60, 0.2)
    )
    tokenizer = make_model(FakeEngine([])).tokenizer
    stream = CandidateStream(
        [AnswerStream(tokens, AnswerText(tokenizer, ())) for tokens in (first, second)]
    )
    second.begun = True
    first.put(list(answer_ids("one")))
    first.end()

    async def read() -> None:
        async for _ in stream:
            pass

    asyncio.run(asyncio.wait_for(read(), 20))
    reasons = [one.finish_reason for one in stream.reply.candidates]
    assert reasons == ["stop", "timeout"]
