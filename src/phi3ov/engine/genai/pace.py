"""Adapts the number of draft tokens per forward pass: many if they are accepted, one if not.

A pass over several tokens costs more than a pass over one, so speculation slows down an answer
whose draft tokens are rejected. genai fixes the number of draft tokens per request and checks at
least one, so this module

- estimates the speed of each number of draft tokens from the last passes. The proposals of prompt
  lookup can be computed from the ids, even if it was off; for a draft model, the number of
  accepted tokens is known;
- stops genai's request for a greedy answer once another number would be clearly faster, and
  continues the answer with a request of that number. The new request reads the last one or two
  blocks of the KV cache again: the cost of several passes (decision 84). An answer in which one
  number stays best is one request.

The choice does not depend on time: the same ids give the same numbers. A sampled answer is a
single request, because genai restarts the seed's random sequence with each request.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ...answer.token_stream import TokenRequest
    from .draft import SpeculationPlan

WINDOW_TOKENS = 32
"""Number of last tokens from which the gain of prompt lookup is estimated, and minimum number of
tokens still to generate for another number to be worth its request."""
WINDOW_PASSES = 16
"""Number of last passes from which a draft model's acceptance rate is estimated."""
LOOK_TOKENS = 16
"""Tokens after which the number is estimated again."""
_LEAST_TOKENS = 8
"""Tokens or passes below which there is no useful estimate."""
_WORTHWHILE = 1.15
"""Ratio of two numbers' estimated speeds that outweighs the cost of another request: some four
passes, within the next `WINDOW_TOKENS`."""

_TOKEN_BYTES = array("q").itemsize


class Part(NamedTuple):
    """A request to genai: the whole answer, or the rest of it.

    Attributes:
        new_tokens: Maximum number of tokens to generate.
        candidates: Draft tokens per forward pass; 0 without speculation.
    """

    new_tokens: int
    candidates: int


class Pacer:
    """Acceptance statistics of an engine's last answers; creates an `AnswerPace` per answer."""

    def __init__(self, plan: SpeculationPlan) -> None:
        """Begin with one candidate for prompt lookup, and with all for a draft model."""
        self.plan = plan
        begins_low = plan.adaptive and plan.ngram_tokens
        self.candidates: int = (
            min(1, plan.candidate_tokens) if begins_low else plan.candidate_tokens
        )
        self.accepted: deque[tuple[int, int]] = deque(maxlen=WINDOW_PASSES)

    def begin(self, request: TokenRequest, *, split: bool = True, together: int = 1) -> AnswerPace:
        """Return the pace of one answer.

        Args:
            request: The request.
            split: Whether the answer may be split into several requests to genai.
            together: Number of requests that share its passes as it begins.
        """
        splits = split and bool(self.plan.candidate_tokens) and self.plan.adaptive
        return AnswerPace(
            self, request, splits=splits and request.sampling.greedy, together=together
        )

    def number(self, together: int) -> int:
        """Return the number of draft tokens with which a request to genai begins.

        Args:
            together: Number of requests in its passes. With several, a wrong number costs much
                and the end of the last answer tells little about this one, so prompt lookup
                begins with one.
        """
        if together == 1 or not self.plan.adaptive:
            return self.candidates
        if self.plan.ngram_tokens:
            return min(1, self.plan.candidate_tokens)
        speeds = self.speeds((), prompt_tokens=0, together=together)
        return _fastest(speeds) if speeds else self.candidates

    def speeds(
        self, ids: Sequence[int], *, prompt_tokens: int, together: int = 1
    ) -> dict[int, float]:
        """Return the estimated speed of each number of draft tokens; empty if too little is known.

        Args:
            ids: The prompt and the tokens generated so far.
            prompt_tokens: Number of prompt ids.
            together: Number of requests in a pass.
        """
        costs = {
            number: self.plan.pass_cost(number, together=together)
            for number in _numbers(self.plan.candidate_tokens)
        }
        if self.plan.ngram_tokens:
            start = max(prompt_tokens, len(ids) - WINDOW_TOKENS)
            if len(ids) - start < _LEAST_TOKENS:
                return {}
            return _lookup_speeds(lookup_matches(ids, start=start, plan=self.plan), costs)
        if len(self.accepted) < _LEAST_TOKENS:
            return {}
        return _draft_speeds(self.accepted, costs)


class AnswerPace:
    """Plans the requests of one answer to genai: length and number of draft tokens.

    Attributes:
        ids: The prompt and the tokens generated so far.
        switching: Whether genai's request is to be stopped, because the answer continues with
            another number of draft tokens.
    """

    def __init__(self, pacer: Pacer, request: TokenRequest, *, splits: bool, together: int) -> None:
        """Begin with the statistics of the engine's last answers."""
        self.ids: list[int] = list(request.prompt_ids)
        self.switching: bool = True  # to the first request
        self._prompt_tokens = len(self.ids)
        self._most_tokens = len(self.ids) + request.max_new_tokens
        self._stop_ids = request.stop_ids
        self._pacer = pacer
        self._splits = splits
        self._together = together
        self._candidates = 0
        self._is_first_pass = True
        self._next_look = len(self.ids) + LOOK_TOKENS

    def next_part(self) -> Part | None:
        """Return the next request to genai; None when the answer is complete or cancelled."""
        if not self.switching:
            return None
        self.switching = False
        self._candidates = self._pacer.number(self._together)
        self._is_first_pass = True
        return Part(self._most_tokens - len(self.ids), self._candidates)

    def note(self, token_ids: Sequence[int]) -> int:
        """Record the tokens of one pass; return how many draft tokens the pass checked."""
        # genai proposes nothing in the pass that reads the prompt.
        checked = 0 if self._is_first_pass else self._candidates
        self._is_first_pass = False
        self.ids += token_ids
        # The request's length may have cut off its last pass, so that pass is not counted.
        if checked and len(self.ids) < self._most_tokens:
            self._pacer.accepted.append((len(token_ids) - 1, checked))
        if self._splits and len(self.ids) >= self._next_look:
            self._next_look = len(self.ids) + LOOK_TOKENS
            self._look()
        return checked

    def end(self) -> None:
        """Choose the number of draft tokens for the next answer."""
        if self._pacer.plan.adaptive and len(self.ids) - self._prompt_tokens >= _LEAST_TOKENS:
            speeds = self._pacer.speeds(self.ids, prompt_tokens=self._prompt_tokens)
            self._pacer.candidates = _fastest(speeds) if speeds else self._pacer.candidates

    def _look(self) -> None:
        """Switch to another number of draft tokens if that pays."""
        if self.ids[-1] in self._stop_ids or self._most_tokens - len(self.ids) < WINDOW_TOKENS:
            return
        speeds = self._pacer.speeds(self.ids, prompt_tokens=self._prompt_tokens)
        if not speeds:
            return
        fastest = _fastest(speeds)
        if speeds[fastest] > _WORTHWHILE * speeds[self._candidates]:
            self._pacer.candidates = fastest
            self.switching = True


def lookup_matches(ids: Sequence[int], *, start: int, plan: SpeculationPlan) -> list[int]:
    """Return, for each position from ``start``, how many tokens of prompt lookup would be accepted.

    The search is genai's: the longest n-gram of at most ``ngram_tokens`` last tokens that occurred
    before, at its first occurrence.
    """
    data = array("q", ids).tobytes()
    return [
        _match(ids, data, place, plan)
        for place in range(max(start, 2), len(ids))
    ]  # fmt: skip


def _match(ids: Sequence[int], data: bytes, place: int, plan: SpeculationPlan) -> int:
    longest = plan.ngram_tokens if plan.ngram_tokens < place else place // 2
    for length in range(longest, 0, -1):
        first = _find(data, place - length, place)
        if first is not None:
            begin = first + length
            most = min(place - begin, plan.candidate_tokens, len(ids) - place)
            right = 0
            while right < most and ids[begin + right] == ids[place + right]:
                right += 1
            return right
    return 0


def _find(data: bytes, begin: int, end: int) -> int | None:
    """Return the first earlier position of the tokens ``begin`` to ``end``."""
    wanted = data[begin * _TOKEN_BYTES : end * _TOKEN_BYTES]
    found = data.find(wanted, 0, (end - 1) * _TOKEN_BYTES)
    while found >= 0 and found % _TOKEN_BYTES:  # not aligned to a token
        found = data.find(wanted, found + 1, (end - 1) * _TOKEN_BYTES)
    return None if found < 0 else found // _TOKEN_BYTES


def _lookup_speeds(matches: Sequence[int], costs: Mapping[int, float]) -> dict[int, float]:
    """Return how fast these tokens would have been with each number of draft tokens.

    Args:
        matches: Result of `lookup_matches`.
        costs: Cost of a pass by number of draft tokens.
    """

    def speed(candidates: int) -> float:
        place = passes = 0
        while place < len(matches):
            place += 1 + min(matches[place], candidates)
            passes += 1
        return len(matches) / passes / costs[candidates] if passes else 0.0

    return {number: speed(number) for number in costs}


def _draft_speeds(
    accepted: Sequence[tuple[int, int]], costs: Mapping[int, float]
) -> dict[int, float]:
    """Return how fast the last passes would have been with each number of draft tokens.

    It assumes the same acceptance probability at each position.

    Args:
        accepted: Numbers of accepted and checked draft tokens of each pass.
        costs: Cost of a pass by number of draft tokens.
    """
    right = sum(count for count, _ in accepted)
    wrong = sum(1 for count, checked in accepted if count < checked)
    share = right / (right + wrong) if right + wrong else 1.0
    return {
        number: sum(share**place for place in range(number + 1)) / cost
        for number, cost in costs.items()
    }


def _fastest(speeds: dict[int, float]) -> int:
    return max(speeds, key=lambda number: (speeds[number], -number))


def _numbers(most: int) -> list[int]:
    """Return the numbers to choose from: powers of two up to half the maximum, and the maximum."""
    return [*(1 << power for power in range(6) if 2 << power <= most), most]
