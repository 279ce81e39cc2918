"""Quality loss of an export against its source checkpoint, token by token."""

from .plot import draw_histogram as draw_histogram
from .report import QualityReport as QualityReport
from .report import SampleAnswer as SampleAnswer
from .report import compare as compare

__all__ = ["QualityReport", "SampleAnswer", "compare", "draw_histogram"]
