"""Former place of `phi3ov.quality.draw_histogram`."""

from .quality.plot import draw_histogram

__all__ = ["draw_histogram"]
