"""Calibration text for data-aware compression, and evaluation text for measuring its loss.

Both come from Python's language reference (``pydoc_data.topics``), which is English with code.
Every other topic is calibration text. The evaluation text is made of paragraphs that only the
remaining topics have, so no recipe is measured on text that it was fitted to. For another
purpose, calibrate on text of that purpose. The topics differ between versions of Python, so the
manifest records the SHA-256 of the text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import CompressionError, OptionError

if TYPE_CHECKING:
    from ..prompt.chat_tokenizer import ChatTokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """The text that a data-aware recipe runs the model on.

    Attributes:
        texts: The text; None for `default_texts`.
        num_samples: Maximum number of samples.
        sample_tokens: Length of each sample in tokens.
    """

    texts: tuple[str, ...] | None
    num_samples: int
    sample_tokens: int

    def draw_samples(self, tokenizer: ChatTokenizer, *, context_tokens: int) -> list[list[int]]:
        """Return the samples as token ids.

        Args:
            tokenizer: The checkpoint's tokenizer.
            context_tokens: The model's longest context.

        Raises:
            CompressionError: The texts are shorter than one sample, or a sample is longer than
                the model's context.
        """
        if self.sample_tokens > context_tokens:
            raise CompressionError(
                f"sample_tokens={self.sample_tokens} exceeds the model's context of "
                f"{context_tokens}."
            )
        return cut_samples(
            tokenizer,
            default_texts() if self.texts is None else self.texts,
            num_samples=self.num_samples,
            sample_tokens=self.sample_tokens,
        )


def default_texts() -> tuple[str, ...]:
    """Return the calibration texts that are used when none are given.

    Raises:
        OptionError: This Python was installed without its help texts.

    Example:
        >>> len(default_texts()) > 30
        True
    """
    return _topics(0)


def evaluation_text() -> str:
    """Return the text that quality is measured on when none is given.

    It shares no paragraph with `default_texts`. Topics quote each other, so a split by whole
    topics would not keep the two apart.
    """
    seen = {paragraph for text in default_texts() for paragraph in text.split("\n\n")}
    paragraphs = dict.fromkeys(part for text in _topics(1) for part in text.split("\n\n"))
    return "\n\n".join(part for part in paragraphs if part not in seen)


def _topics(first: int) -> tuple[str, ...]:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise OptionError(
            "text=None needs Python's own help texts (pydoc_data), and this Python was installed "
            "without them. Give text of your own.",
            option="text",
        ) from error
    return tuple(text.strip() for _, text in sorted(topics.items()))[first::2]


def hash_texts(texts: Sequence[str]) -> str:
    """Return one hexadecimal SHA-256 over ``texts`` and their boundaries."""
    digest = hashlib.sha256()
    for text in texts:
        encoded = text.encode("utf-8")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()


def cut_samples(
    tokenizer: ChatTokenizer, texts: Sequence[str], *, num_samples: int, sample_tokens: int
) -> list[list[int]]:
    """Cut ``texts`` into at most ``num_samples`` samples of exactly ``sample_tokens`` tokens.

    The texts are joined by empty lines and encoded as ordinary text. If they hold more samples
    than asked for, the samples are spaced evenly from beginning to end; nothing is random.

    Raises:
        CompressionError: The texts together are shorter than one sample.
    """
    ids = tokenizer.encode_text("\n\n".join(texts))
    available = len(ids) // sample_tokens
    if not available:
        raise CompressionError(
            f"texts hold {len(ids)} tokens, less than one sample of sample_tokens={sample_tokens}. "
            "Give more text, or smaller samples."
        )
    taken = min(num_samples, available)
    starts = [index * available // taken * sample_tokens for index in range(taken)]
    return [ids[start : start + sample_tokens] for start in starts]


def decoder_inputs(model: Any, samples: Sequence[Sequence[int]]) -> Iterator[dict[str, Any]]:
    """Yield the inputs of an OpenVINO stateful decoder for each sample, with batch size 1.

    NNCF resets the state before every sample, so each sample starts a new sequence.
    """
    import numpy as np

    names = {name for port in model.inputs for name in port.get_names()}
    for sample in samples:
        ids = np.asarray([sample], dtype=np.int64)
        inputs = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "position_ids": np.arange(ids.shape[1], dtype=np.int64)[None],
            "beam_idx": np.zeros(1, dtype=np.int32),
        }
        yield {name: value for name, value in inputs.items() if name in names}
