"""Text that a fine-tune's chat template adds to a known format: `Extension`.

Fine-tunes often keep the format of their base model and add a constant text where the answer
begins, such as ``<think>`` or an empty block of thoughts, or an end-of-text token after each
answer. ``formats.py`` finds an extension by rendering; ``chat_tokenizer.py`` encodes it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields

THINK = ("<think>", "</think>")
"""Tags around the thoughts of the reasoning models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extension:
    r"""Constant texts that a template adds to a known format; all empty for the format itself.

    Attributes:
        answer_start: Text after the assistant's header where the model is to answer. The answer
            continues it.
        history_start: Text after the assistant's header in the answers of the history: none,
            ``answer_start``, or closed thoughts.
        answer_end: Text after the footer of the answers of the history.
        question_end: Text between the last message and the assistant's header of the new answer.
        drops_thoughts: Whether the template leaves thoughts out of the answers of the history.

    Example:
        >>> Extension(answer_start="<think>\n").opens_thoughts
        True
        >>> Extension(answer_start="<think>\n\n</think>\n\n").opens_thoughts
        False
    """

    answer_start: str = ""
    history_start: str = ""
    answer_end: str = ""
    question_end: str = ""
    drops_thoughts: bool = False

    @classmethod
    def from_values(cls, values: Mapping[str, object]) -> Extension:
        """Parse the texts in a manifest.

        Raises:
            ValueError: A name is unknown, or a value is not a text.
        """
        kinds = {field.name: type(field.default) for field in fields(cls)}
        for name, value in values.items():
            if name not in kinds or type(value) is not kinds[name]:
                raise ValueError(f"chat_extension={dict(values)!r:.200} has a wrong {name!r}.")
        return cls(**values)  # type: ignore[arg-type] # checked just above

    def to_values(self) -> dict[str, str | bool]:
        """Return the fields that are set, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value}

    @property
    def texts(self) -> dict[str, str]:
        """The texts that are not empty, by name."""
        return {name: text for name, text in self.to_values().items() if isinstance(text, str)}

    @property
    def has_thoughts(self) -> bool:
        """Whether an answer or the history begins with thoughts that the template writes."""
        return THINK[0] in self.answer_start + self.history_start

    @property
    def opens_thoughts(self) -> bool:
        """Whether the answer begins within thoughts."""
        return THINK[0] in self.answer_start and THINK[1] not in self.answer_start

    def find_problem(self, own_tokens: Collection[str]) -> str | None:
        """Return why a prompt with these texts cannot be written rightly; None if it can.

        Args:
            own_tokens: Control tokens of the format's headers and footers.
        """
        for name, text in self.texts.items():
            held = [token for token in sorted(own_tokens) if token in text]
            if held:
                return f"its {name} {text!r} holds {held[0]}, which begins or ends a message"
        for name in ("question_end", "answer_end"):
            text = getattr(self, name)
            if any(tag in text for tag in THINK):
                return f"its {name} {text!r} holds a tag of thoughts"
        for name in ("answer_start", "history_start"):
            text = getattr(self, name)
            found = [tag for tag in THINK for _ in range(text.count(tag))]
            if found and (found not in ([THINK[0]], [*THINK]) or not _begins_with_thoughts(text)):
                return f"its {name} {text!r} does not begin with one pair of {' and '.join(THINK)}"
        if THINK[0] in self.history_start and THINK[1] not in self.history_start:
            return (
                f"its history_start {self.history_start!r} opens thoughts in every answer of the "
                "history, and phi3ov keeps thoughts out of the history"
            )
        if self.history_start not in ("", self.answer_start) and THINK[1] not in self.history_start:
            return (
                f"its history_start {self.history_start!r} is neither its answer_start "
                f"{self.answer_start!r} nor closed thoughts"
            )
        return None


NO_EXTENSION = Extension()
"""The extension of the formats themselves."""


def _begins_with_thoughts(text: str) -> bool:
    start = text.lstrip()
    return start.startswith(THINK[0]) and text.find(THINK[1]) in (-1, text.rfind(THINK[1]))
