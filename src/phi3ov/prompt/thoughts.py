"""Separates the reasoning text of reasoning models from the answer while the text arrives.

Phi-4-mini-reasoning and Phi-4-reasoning begin an answer with ``<think>``, their thoughts, and
``</think>``. `ThoughtSplitter` accepts text in pieces of any size.
"""

from __future__ import annotations


class ThoughtSplitter:
    r"""Splits the text of an answer into thoughts and the answer that follows them.

    Thoughts stand at the beginning, between two tags. White space before the first tag and
    directly after either tag belongs to neither part. Without the first tag all text is answer;
    without the second tag all text after the first is thoughts.

    Attributes:
        has_thoughts: Whether the first tag has arrived.
        is_over: Whether the thoughts have ended.

    Example:
        >>> splitter = ThoughtSplitter(("<think>", "</think>"))
        >>> [splitter.add(piece) for piece in ("<thi", "nk>1 + 1", " is 2</think>", "\n2")]
        [('', ''), ('1 + 1', ''), (' is 2', ''), ('', '2')]
    """

    def __init__(self, tags: tuple[str, str] | None, *, begun: bool = False) -> None:
        """Look for ``tags``; without them all text is answer.

        Args:
            tags: Tags before and after the thoughts.
            begun: Whether the prompt already ends with the first tag.
        """
        self._tags = tags
        self._held = ""
        self._state = "answer" if tags is None else "thoughts" if begun else "start"
        self._trims = self._state == "thoughts"
        self.has_thoughts: bool = begun

    @property
    def is_over(self) -> bool:
        """Whether the thoughts have ended, so that further text is answer."""
        return self._state == "answer"

    @property
    def is_undecided(self) -> bool:
        """Whether thoughts may still begin."""
        return self._state == "start"

    def closing_text(self) -> str:
        """Return the text that would end the thoughts here: the missing parts of the two tags.

        Example:
            >>> splitter = ThoughtSplitter(("<think>", "</think>"))
            >>> splitter.closing_text(), splitter.add("<think>1 </th"), splitter.closing_text()
            ('<think></think>', ('1 ', ''), 'ink>')
        """
        if self._tags is None or self._state == "answer":
            return ""
        opening, closing = self._tags
        if self._state == "start":
            return opening[len(self._held.lstrip()) :] + closing
        return closing[self._begun(closing) :]

    def add(self, text: str) -> tuple[str, str]:
        """Add text; return the thoughts and the answer text that are now certain."""
        self._held += text
        thoughts = ""
        if self._tags is not None and self._state == "start":
            self._begin(self._tags[0])
        if self._tags is not None and self._state == "thoughts":
            thoughts = self._think(self._tags[1])
        answer = self._take(len(self._held)) if self._state == "answer" else ""
        return thoughts, answer

    def finish(self) -> tuple[str, str]:
        """Return the text that was held back, at the end of the answer."""
        rest, self._held = self._held, ""
        rest = rest.lstrip() if self._trims else rest
        return (rest, "") if self._state == "thoughts" else ("", rest)

    def _begin(self, tag: str) -> None:
        start = self._held.lstrip()
        if start.startswith(tag):
            self._state, self._held, self._trims = "thoughts", start[len(tag) :], True
            self.has_thoughts = True
        elif not tag.startswith(start):
            self._state = "answer"

    def _think(self, tag: str) -> str:
        end = self._held.find(tag)
        if end >= 0:
            thoughts = self._take(end)
            self._held = self._held[len(tag) :]
            self._state, self._trims = "answer", True
            return thoughts
        return self._take(len(self._held) - self._begun(tag))

    def _begun(self, tag: str) -> int:
        """Return the length of the prefix of ``tag`` that the held text ends with."""
        lengths = range(min(len(self._held), len(tag) - 1), 0, -1)
        return next((length for length in lengths if self._held.endswith(tag[:length])), 0)

    def _take(self, length: int) -> str:
        """Remove and return held text, without white space that follows a tag."""
        taken, self._held = self._held[:length], self._held[length:]
        if self._trims:
            taken = taken.lstrip()
            self._trims = not taken
        return taken
