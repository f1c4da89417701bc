"""Keys and passwords do not reach logs, `run.json`, Prefect or the screen: their values are replaced on the way.

What counts is the value of an environment variable whose name speaks of a secret, and a user and password in a URL.
Settings hold none: they name an environment variable, and addresses with a password are refused.
"""

import os
import re
from urllib.parse import quote

_SECRET_NAME = re.compile(r"key|token|secret|passw|credential|auth", re.IGNORECASE)
_LEAST_LENGTH = 8
"""Shorter values are words like `true` or `offline`, and would tear holes into every text."""

_URL_PASSWORD = re.compile(r"(?<=://)[^\s/@]+(?=@)")
_HIDDEN = "***"


def redact(text: str) -> str:
    """A text without the values of secrets."""
    for name, value in _secrets():
        text = text.replace(value, f"{_HIDDEN}{name}{_HIDDEN}")
    return _URL_PASSWORD.sub(_HIDDEN, text)


def _secrets() -> list[tuple[str, str]]:
    """Names and values, as they stand in the environment and as URLs have them; the longest first."""
    found = [
        (name, form)
        for name, value in os.environ.items()
        if len(value) >= _LEAST_LENGTH and _SECRET_NAME.search(name)
        for form in {value, quote(value, safe="")}
    ]
    return sorted(found, key=lambda secret: len(secret[1]), reverse=True)
