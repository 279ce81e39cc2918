"""``python -m phi3ov``: the same as the command ``phi3ov``."""

import sys

from .cli import main

sys.exit(main())
