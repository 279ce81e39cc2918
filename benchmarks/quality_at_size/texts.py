"""The texts that every row reads, as windows of token ids."""

from __future__ import annotations

import builtins
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from phi3ov.exporter.calibration import Calibration, evaluation_text
from phi3ov.exporter.companions import load_tokenizer, recognize_chat_format
from phi3ov.exporter.int4 import Int4Compression
from phi3ov.prompt.chat_tokenizer import ChatTokenizer

WINDOW_TOKENS = 512
MOST_TOKENS = 4096
"""Of each text; what follows is not read."""


@dataclass(frozen=True, slots=True)
class Text:
    """One text.

    Attributes:
        title: For the report.
        read: Returns it.
    """

    title: str
    read: Callable[[], str]


def licence_text() -> str:
    """Return the licence of Python, which comes with every Python: legal English.

    Raises:
        FileNotFoundError: This Python was installed without its licence.
    """
    names = vars(builtins.license)["_Printer__filenames"]
    found = next((name for name in names if Path(name).is_file()), None)
    if found is None:
        raise FileNotFoundError(f"Python's licence is in none of {names}. Use another Python.")
    return Path(found).read_text(encoding="utf-8")


TEXTS = {
    "python": Text("Python's language reference, paragraphs no calibration saw", evaluation_text),
    "licence": Text("Python's licence", licence_text),
}
"""What is read, by name."""


@dataclass(frozen=True, slots=True)
class Windows:
    """A text cut into windows, each of which a model reads from an empty context.

    Attributes:
        name: The text's key in `TEXTS`.
        ids: Token ids, a list per window.
    """

    name: str
    ids: tuple[tuple[int, ...], ...]

    @property
    def sha256(self) -> str:
        """Hexadecimal hash of all ids, by which a result tells what was read."""
        return hashlib.sha256(repr(self.ids).encode()).hexdigest()

    @property
    def predictions(self) -> int:
        """Number of compared predictions: all tokens but the first of each window."""
        return sum(len(window) - 1 for window in self.ids)


def open_tokenizer(checkpoint: Path) -> ChatTokenizer:
    """Return the checkpoint's tokenizer as an export reads it."""
    chat_format = recognize_chat_format(load_tokenizer(checkpoint, str(checkpoint)))
    return ChatTokenizer.from_folder(checkpoint, chat_format)


def cut_windows(
    name: str, tokenizer: ChatTokenizer, *, window_tokens: int, most_tokens: int
) -> Windows:
    """Encode a text and cut it; an incomplete last window is dropped.

    Raises:
        ValueError: The text is shorter than one window.
    """
    ids = tokenizer.encode_text(TEXTS[name].read())
    count = min(len(ids), most_tokens) // window_tokens
    if not count:
        raise ValueError(f"{name} has {len(ids)} tokens, less than window_tokens={window_tokens}.")
    starts = range(0, count * window_tokens, window_tokens)
    return Windows(name, tuple(tuple(ids[start : start + window_tokens]) for start in starts))


def calibration_samples(tokenizer: ChatTokenizer, context_tokens: int) -> Sequence[list[int]]:
    """Return the samples that phi3ov's calibrated recipes read, for every stack alike."""
    defaults = Int4Compression()
    calibration = Calibration(
        texts=None, num_samples=defaults.num_samples, sample_tokens=defaults.sample_tokens
    )
    return calibration.draw_samples(tokenizer, context_tokens=context_tokens)
