"""Tokens that come while an answer waits for its turn are sent together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from phi3ov.answer.stream import AnswerStream, Piece
from phi3ov.answer.token_stream import TokenRequest, TokenStream
from phi3ov.prompt.detokenizer import AnswerText
from phi3ov.server.answering import PIECES_AT_ONCE, Answers
from phi3ov.server.host import FEW_STREAMS, LONGEST_PAUSE_SECONDS, ModelHost
from phi3ov.server.metrics import ServerMetrics
from tests.unit.fakes import MINI, FakeEngine, answer_ids, make_model

TEXT = "one two three the user"
IDS = answer_ids(TEXT)


def open_tokens(*, most: int = 100, timeout_seconds: float | None = None) -> TokenStream:
    """Return an engine's stream that the test feeds."""
    request = TokenRequest(
        prompt_ids=(1,), max_new_tokens=most, stop_ids=frozenset(IDS[-1:]), logprobs=True
    )
    return TokenStream(request, timeout_seconds=timeout_seconds)


def put(tokens: TokenStream, token_id: int) -> None:
    """Give a stream a token, as an engine does."""
    tokens.logprobs.append(-float(token_id))
    tokens.put([token_id])


@pytest.fixture
def host() -> ModelHost:
    """The host of a model that is never asked."""
    return ModelHost(lambda: make_model(FakeEngine([])))


Found = list[tuple[int, Piece | None]]


def read_all(
    host: ModelHost, streams: list[TokenStream], feed: Callable[[], None]
) -> list[tuple[float, Found]]:
    """Return what an answer reads, and when, while ``feed`` feeds it on another thread."""

    async def read() -> list[tuple[float, Found]]:
        answers = Answers(
            [AnswerStream(tokens, AnswerText(MINI.chat)) for tokens in streams],
            host,
            ServerMetrics(host),
        )
        feeding = asyncio.create_task(asyncio.to_thread(feed))
        found = [(time.monotonic(), news) async for news in answers.read()]
        await feeding
        return found

    return asyncio.run(asyncio.wait_for(read(), 20))


def joined(found: list[tuple[float, Found]], number: int) -> Piece:
    """Return all pieces of one answer as one."""
    return Piece.join(
        [
            piece
            for _, news in found
            for owner, piece in news
            if owner == number and piece is not None
        ]
    )


@pytest.mark.parametrize("pause", [0.0, 0.03])
def test_nothing_is_lost_however_tokens_are_gathered(
    host: ModelHost, monkeypatch: pytest.MonkeyPatch, pause: float
) -> None:
    """Text, ids and log-probabilities of three answers that come side by side; each ends once."""
    monkeypatch.setattr(host, "pause_seconds", lambda: pause)
    streams = [open_tokens() for _ in range(3)]

    def feed() -> None:
        for position, token_id in enumerate(IDS):
            for number, tokens in enumerate(streams):
                if position < len(IDS) - number:
                    put(tokens, token_id)
                if position == len(IDS) - number - 1:
                    if number:
                        tokens.cancel()
                    tokens.end()
            time.sleep(0.002)

    found = read_all(host, streams, feed)
    for number in range(3):
        piece = joined(found, number)
        shown = IDS[: len(IDS) - max(number, 1)]
        assert piece.token_ids == shown
        assert piece.logprobs == tuple(-float(token_id) for token_id in shown)
        assert piece.text == MINI.chat.decode(shown)
        ends = [news for _, news in found if (number, None) in news]
        assert len(ends) == 1
        assert ends[0][-1][1] is None


def test_tokens_gather_while_there_are_many_answers(
    host: ModelHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty tokens within a pause are two pieces; without a pause they are many more."""

    def count(pause: float) -> int:
        monkeypatch.setattr(host, "pause_seconds", lambda: pause)
        tokens = open_tokens()

        def feed() -> None:
            for _ in range(20):
                put(tokens, IDS[0])
                time.sleep(0.005)
            put(tokens, IDS[-1])
            tokens.end()

        return len(read_all(host, [tokens], feed))

    assert count(5.0) == 2
    assert count(0.0) > 6


def test_the_end_of_an_answer_ends_the_pause(
    host: ModelHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of one of several, and a time limit within a pause is not slept over for long."""
    monkeypatch.setattr(host, "pause_seconds", lambda: 5.0)
    streams = [open_tokens(), open_tokens()]
    ended: list[float] = []

    def feed() -> None:
        for tokens in streams:
            put(tokens, IDS[0])
            time.sleep(0.05)
        for tokens in streams:
            put(tokens, IDS[-1])
            tokens.end()
            ended.append(time.monotonic())
            time.sleep(0.2)

    found = read_all(host, streams, feed)
    for number in range(2):
        (read_at,) = [when for when, news in found if (number, None) in news]
        assert read_at - ended[number] < 1.0


def test_an_answer_without_tokens_ends_in_time(host: ModelHost) -> None:
    """No token and no end come: the time limit itself wakes the reader."""
    started = time.monotonic()
    tokens = open_tokens(timeout_seconds=0.2)

    async def read() -> None:
        answers = Answers([AnswerStream(tokens, AnswerText(MINI.chat))], host, ServerMetrics(host))
        async for _ in answers.read():
            pass

    with pytest.raises(Exception, match="time for the answer was over"):
        asyncio.run(read())
    assert 0.15 < time.monotonic() - started < 5


def test_the_pause_follows_the_number_of_answers(host: ModelHost) -> None:
    """None for a few; then all streams together send 200 events a second, at worst every 0.1 s."""

    async def pause(streams: int) -> float:
        answers = [
            Answers([AnswerStream(open_tokens(), AnswerText(MINI.chat))], host, ServerMetrics(host))
            for _ in range(streams)
        ]
        seconds = host.pause_seconds()
        host.running.clear()
        del answers
        return seconds

    assert asyncio.run(pause(FEW_STREAMS)) == 0.0
    assert asyncio.run(pause(10)) == pytest.approx(0.05)
    assert asyncio.run(pause(200)) == LONGEST_PAUSE_SECONDS


def test_a_reader_that_lags_behind_lets_others_have_their_turn(host: ModelHost) -> None:
    """Of a thousand tokens that have come, the loop reads a part at a time."""
    tokens = open_tokens(most=1000)
    for _ in range(1000):
        put(tokens, IDS[0])
    tokens.end()
    found = read_all(host, [tokens], lambda: None)
    assert len(joined(found, 0).token_ids) == 1000
    assert max(len(piece.token_ids) for _, news in found for _, piece in news if piece) <= (
        PIECES_AT_ONCE
    )
