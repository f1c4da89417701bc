"""Keys and passwords out of what is written: logs, errors, records, settings for other services.

Two nets. The values of environment variables whose names say that they are secret (`WANDB_API_KEY`, `HF_TOKEN`) are
replaced wherever they occur, also as they stand in a URL or in base64. And what looks like a secret is replaced
wherever it came from: the password in `https://user:password@host`, `key=...` in the query of an address, the header
of an authorization. Standard library only, so that every package and light process can use it.
"""

import base64
import functools
import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, quote_plus

REDACTED = "***"
_MIN_LENGTH = 8  # a shorter value is found in innocent text by chance, and guards nothing
_SECRET_NAME = re.compile(
    r"(^|_)(API_?KEY|APIKEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|AUTH_STRING|AUTH|PAT)$", re.I
)
# Named as a secret is, and public: the key that signs the releases of Python, set in its container images.
_PUBLIC_NAMES = frozenset({"GPG_KEY"})
_PATTERNS = (
    # RFC 3986, 3.2.1: the user information of an address. The user's name goes too: it may be the token itself.
    (re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://)[^\s/?#'\"]+@"), r"\1***@"),
    (
        re.compile(
            r"(?i)([?&](?:[a-z0-9_-]*(?:api_?key|token|secret|password|passwd|signature)|key|auth|sig)=)[^\s&#'\"]+"
        ),
        r"\1***",
    ),
    (
        re.compile(r"(?i)\b(authorization['\"]?\s*[:=]\s*['\"]?\w+\s+|bearer\s+(?=\S*[0-9]))[A-Za-z0-9._~+/=-]{8,}"),
        r"\1***",
    ),
)


def is_secret_name(name: str) -> bool:
    """Whether an environment variable of this name holds a secret."""
    return name not in _PUBLIC_NAMES and _SECRET_NAME.search(name) is not None


def find_secrets(environment: Mapping[str, str]) -> frozenset[str]:
    """The secret values of an environment, and the passwords in its addresses (proxies, package indexes)."""
    found = {value for name, value in environment.items() if is_secret_name(name)}
    for value in environment.values():
        for user_info in re.findall(r"://([^\s/?#]*)@", value):
            found |= {user_info, user_info.partition(":")[2]}
    return frozenset(value for value in found if len(value) >= _MIN_LENGTH)


def redact(text: str, environment: Mapping[str, str] | None = None) -> str:
    """Replace every secret in a text.

    Args:
        text: What is about to be written.
        environment: Whose secrets are replaced; None is this process's.

    Example:
        >>> redact("cloned https://me:hunter22@host/x?token=abc", {})
        'cloned https://***@host/x?token=***'
    """
    for spelling in _spellings(find_secrets(os.environ if environment is None else environment)):
        if spelling in text:
            text = text.replace(spelling, REDACTED)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def redact_values(value: Any, environment: Mapping[str, str] | None = None) -> Any:
    """`redact` in every string of nested mappings and lists; keys and other values stay as they are."""
    match value:
        case str():
            return redact(value, environment)
        case Mapping():
            return {key: redact_values(inner, environment) for key, inner in value.items()}
        case list() | tuple():
            return [redact_values(inner, environment) for inner in value]
        case _:
            return value


def holds_secret(text: str, environment: Mapping[str, str] | None = None) -> bool:
    """Whether `redact` would change the text."""
    return redact(text, environment) != text


@functools.lru_cache(maxsize=16)
def _spellings(secrets: frozenset[str]) -> tuple[str, ...]:
    """Each secret as itself, in a URL and in base64, longest first: one may be a part of another."""
    spellings = set()
    for secret in secrets:
        encoded = secret.encode()
        spellings |= {secret, quote(secret, safe=""), quote_plus(secret), repr(secret)[1:-1]}
        spellings |= {base64.b64encode(encoded).decode(), base64.urlsafe_b64encode(encoded).decode()}
    return tuple(sorted(spellings, key=lambda spelling: (-len(spelling), spelling)))
