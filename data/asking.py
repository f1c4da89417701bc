"""Asking a server over HTTP with patience: again with growing pauses where it fails, and with bounds on its answers."""

import datetime
import email.utils
import logging
import os
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from data.errors import ConfigError, StageError
from data.retrying import backoff_seconds

logger = logging.getLogger(__name__)

_CONNECT_SECONDS = 10.0
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
# Worth another try: a server that is starting, overloaded or behind a proxy that lost it.
_PASSING = (408, 425, 429, 500, 502, 503, 504)
_LONGEST_RETRY_AFTER_SECONDS = 600.0
_MOST_BYTES = 64 * 1024**2
MAX_MESSAGE = 300
"""Most characters of an answer that a message repeats."""


@dataclass(frozen=True)
class ServerSettings:
    """A server and how patiently it is asked.

    Attributes:
        setting: The section's key in the configuration, for messages.
        kind: What it is, for messages, say `reward server`.
        answer: What its answers have to be, for messages.
        address: Some address on it.
        token_env: Environment variable with a bearer token.
        timeout_seconds: For one answer, from the first byte sent to the last one read.
        max_retries: How often a request that failed is sent again.
    """

    setting: str
    kind: str
    answer: str
    address: str
    token_env: str | None
    timeout_seconds: float
    max_retries: int


class Server:
    """A server that is asked. May be used by several threads."""

    def __init__(self, settings: ServerSettings) -> None:
        """Prepare; nothing is sent.

        Raises:
            ConfigError: The token's environment variable is not set.
        """
        self._settings = settings
        headers = {}
        if settings.token_env is not None:
            token = os.environ.get(settings.token_env)
            if not token:
                raise ConfigError(
                    f"{settings.setting}.token_env={settings.token_env}: this environment variable is not set; put the "
                    f"{settings.kind}'s token there, or remove the setting"
                )
            headers["Authorization"] = f"Bearer {token}"
        timeout = settings.timeout_seconds
        self._http = httpx.Client(
            headers=headers,
            timeout=httpx.Timeout(timeout, connect=min(_CONNECT_SECONDS, timeout)),
            # A proxy of this machine's environment is not for this machine itself.
            trust_env=urlsplit(settings.address).hostname not in _LOOPBACK,
        )
        self.num_retries = 0

    def ask(self, method: str, address: str, body: dict[str, Any] | None) -> bytes:
        """Ask until there is an answer, or the retries are used up.

        Args:
            method: Of HTTP.
            address: On this server.
            body: Sent as JSON.

        Returns:
            The answer's content.

        Raises:
            StageError: The server fails for good or refuses, or its answer is too large.
        """
        settings = self._settings
        for retry in range(settings.max_retries + 1):
            problem, pause = "", backoff_seconds(retry)
            try:
                response = self._once(method, address, body)
            except httpx.TransportError as error:
                problem = f"failed ({type(error).__name__}: {error})"
            else:
                if response.is_success:
                    return response.content
                problem = f"answered {response.status_code} {response.text[:MAX_MESSAGE]!r}"
                if response.status_code not in _PASSING:
                    raise StageError(
                        f"{settings.setting}: {address} {problem}, which another try would not change; a server that "
                        f"takes these requests is needed: correct the address, the token or the server"
                    )
                pause = _retry_after(response, pause)
            if retry < settings.max_retries:
                logger.warning(
                    "%s: %s %s; asked again in %.0f s (%d of %d)",
                    settings.setting, address, problem, pause, retry + 1, settings.max_retries,
                )  # fmt: skip
                self.num_retries += 1
                time.sleep(pause)
        raise StageError(
            f"{settings.setting}: {address} {problem}, the last of {settings.max_retries + 1} tries; a "
            f"{settings.kind} that answers within {settings.timeout_seconds:g} s is needed: bring it back, or raise "
            f"`timeout_seconds` or `max_retries`"
        )

    def _once(self, method: str, address: str, body: dict[str, Any] | None) -> httpx.Response:
        """One request with one limit for all of it: httpx's own is for each piece, and a trickle has many."""
        settings = self._settings
        deadline = time.monotonic() + settings.timeout_seconds
        with self._http.stream(method, address, json=body) as response:
            parts: list[bytes] = []
            for part in response.iter_bytes():
                parts.append(part)
                if time.monotonic() > deadline:
                    raise httpx.ReadTimeout(f"no whole answer within {settings.timeout_seconds:g} s")
                if sum(map(len, parts)) > _MOST_BYTES:
                    raise StageError(
                        f"{settings.setting}: {address} answered more than {_MOST_BYTES // 1024**2} MiB; "
                        f"{settings.answer} is needed: correct the server"
                    )
            # Already decoded, so that it has no Content-Encoding any more.
            headers = {"Retry-After": response.headers["Retry-After"]} if "Retry-After" in response.headers else {}
            return httpx.Response(response.status_code, headers=headers, content=b"".join(parts))


def _retry_after(response: httpx.Response, otherwise: float) -> float:
    """Seconds that the server asks for, at most ten minutes."""
    text = response.headers.get("Retry-After", "")
    try:
        seconds = float(text)
    except ValueError:
        try:
            when = email.utils.parsedate_to_datetime(text)
        except ValueError:
            return otherwise
        if when.tzinfo is None:  # RFC 9110 section 5.6.7: a date is in GMT
            when = when.replace(tzinfo=datetime.UTC)
        seconds = (when - datetime.datetime.now(datetime.UTC)).total_seconds()
    if not 0 <= seconds < float("inf"):
        return otherwise
    return min(seconds, _LONGEST_RETRY_AFTER_SECONDS)
