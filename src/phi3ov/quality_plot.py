"""Former place of `phi3ov.quality.draw_histogram`; importing it warns."""

from warnings import warn

from .quality.plot import draw_histogram

__all__ = ["draw_histogram"]

warn(
    "phi3ov.quality_plot has moved: use phi3ov.quality.draw_histogram.",
    DeprecationWarning,
    stacklevel=2,
)
