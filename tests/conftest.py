"""What holds for every test: environment, before heavy imports, Hypothesis profile, Ctrl-C."""

from __future__ import annotations

import os
import signal

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "2")

from hypothesis import HealthCheck, settings

settings.register_profile(
    "phi3ov",
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("phi3ov")

# A shell's background job ignores Ctrl-C, and whatever it starts would, too.
signal.signal(signal.SIGINT, signal.default_int_handler)
