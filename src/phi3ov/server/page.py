"""The chat page at ``/``: one file without external parts."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

PAGE = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
"""The page."""


def _hashes(tag: str) -> str:
    """Return the sources that a Content-Security-Policy allows by the parts' own hashes."""
    parts = re.findall(rf"<{tag}>(.*?)</{tag}>", PAGE, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(part.encode()).digest()) for part in parts)
    return " ".join(f"'sha256-{digest.decode()}'" for digest in digests)


PAGE_HEADERS = {
    "content-security-policy": (
        f"default-src 'none'; script-src {_hashes('script')}; style-src {_hashes('style')}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
"""Headers of the page: nothing but its own script and style runs, and it calls only this server."""
