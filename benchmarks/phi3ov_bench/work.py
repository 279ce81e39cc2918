"""Prompts: as text for phi3ov, as the same token ids for everybody else.

Words are drawn from a list of frequent ones, each of which is one token in the reference's
vocabulary, so that a prompt has exactly the length that its case names. What they mean does not
matter to the clock. No two prompts begin alike, so no prefix cache helps but in a chat.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import count
from typing import Any

WORDS = """
time year people way day man thing woman life child world school state family student group
country problem hand part place case week company system program question work government
number night point home water room mother area money story fact month lot right study book
eye job word business issue side kind head house service friend father power hour game line
end member law car city community name president team minute idea kid body information back
parent face others level office door health person art war history party result change
morning reason research girl guy moment air teacher force education
""".split()  # noqa: SIM905 - readable as it is

Encode = Callable[[list[str], bool], dict[str, Any]]
"""Texts and whether they are messages, to ``{"ids": [...], "closing": [...]}``."""


class Work:
    """Makes prompts that no earlier one of the run begins like."""

    def __init__(self, encode: Encode) -> None:
        """Encode with the model's own tokenizer, as phi3ov uses it."""
        self._encode = encode
        self._seeds = count()

    def prompts(self, number: int, tokens: int) -> list[dict[str, Any]]:
        """Return raw prompts with exactly this many tokens each."""
        texts = [self._words(tokens) for _ in range(number)]
        encoded = self._encode(texts, False)
        for ids in encoded["ids"]:
            if len(ids) != tokens:
                raise ValueError(f"A prompt of {tokens} words has {len(ids)} tokens.")
        return [{"text": text, "ids": ids} for text, ids in zip(texts, encoded["ids"], strict=True)]

    def messages(self, number: int, tokens: int) -> list[dict[str, Any]]:
        """Return user messages of this many words in the chat's format, the answer opened."""
        texts = [f"The{self._words(tokens - 1)}" for _ in range(number)]
        encoded = self._encode(texts, True)
        return [
            {"text": text, "ids": ids, "closing": encoded["closing"]}
            for text, ids in zip(texts, encoded["ids"], strict=True)
        ]

    def _words(self, number: int) -> str:
        draw = random.Random(next(self._seeds))
        return "".join(f" {draw.choice(WORDS)}" for _ in range(number))
