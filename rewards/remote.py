"""A reward server over HTTP: asked again with growing pauses where it fails, believed only where its answer is whole.

A request is `{"prompts": [...], "responses": [...]}`, with `"references": [...]` where the prompts have some; the
answer is `{"scores": [...]}`, one finite number each, in their order. docs/rewards.md has the schema.
"""

import datetime
import email.utils
import json
import logging
import os
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx

from data.errors import ConfigError, StageError
from rewards.checking import checked_scores
from rewards.composite_config import RemoteRewardConfig
from rewards.contract import Episode
from rewards.retrying import backoff_seconds

logger = logging.getLogger(__name__)

_CONNECT_SECONDS = 10.0
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
# Worth another try: a server that is starting, overloaded or behind a proxy that lost it.
_PASSING = (408, 425, 429, 500, 502, 503, 504)
_LONGEST_RETRY_AFTER_SECONDS = 600.0
_MOST_BYTES = 64 * 1024**2
_MAX_MESSAGE = 300


class RemoteReward:
    """Judges by a server. What it answers is data, and nothing else."""

    def __init__(self, config: RemoteRewardConfig) -> None:
        """Prepare; nothing is sent.

        Raises:
            ConfigError: The token's environment variable is not set.
        """
        self._config = config
        headers = {}
        if config.token_env is not None:
            token = os.environ.get(config.token_env)
            if not token:
                raise ConfigError(
                    f"{config.setting}.token_env={config.token_env}: this environment variable is not set; put the "
                    f"reward server's token there, or remove the setting"
                )
            headers["Authorization"] = f"Bearer {token}"
        self._http = httpx.Client(
            headers=headers,
            timeout=httpx.Timeout(config.timeout_seconds, connect=min(_CONNECT_SECONDS, config.timeout_seconds)),
            # A proxy of this machine's environment is not for this machine itself.
            trust_env=urlsplit(config.address).hostname not in _LOOPBACK,
        )

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """One score an episode.

        Raises:
            StageError: The server fails for good, refuses, or its answer cannot be used.
        """
        size = self._config.batch_size or max(len(episodes), 1)
        starts = range(0, len(episodes), size)
        return [score for start in starts for score in self._scores(episodes[start : start + size])]

    def check_health(self) -> None:
        """Ask whether the server is well, where the configuration says at which address.

        Raises:
            StageError: It does not say so within the retries.
        """
        if self._config.health is not None:
            self._answer("GET", urljoin(self._config.address, self._config.health), None)

    def _scores(self, episodes: Sequence[Episode]) -> list[float]:
        body: dict[str, Any] = {
            "prompts": [episode.prompt_text for episode in episodes],
            "responses": [episode.response_text for episode in episodes],
        }
        if any(episode.reference is not None for episode in episodes):
            body["references"] = [episode.reference for episode in episodes]
        content = self._answer("POST", self._config.address, body)
        source, remedy = f"{self._config.setting}: {self._config.address}", "correct the server"
        try:
            scores = json.loads(content)["scores"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise StageError(
                f"{source} answered {content[:_MAX_MESSAGE]!r}, which is not {{'scores': [...]}} in JSON; one finite "
                f"number for each of {len(episodes)} responses is needed: {remedy}"
            ) from error
        return checked_scores(scores, episodes, source=source, remedy=remedy)

    def _answer(self, method: str, address: str, body: dict[str, Any] | None) -> bytes:
        """Ask until there is an answer, or the retries are used up."""
        setting = self._config.setting
        for retry in range(self._config.max_retries + 1):
            problem, pause = "", backoff_seconds(retry)
            try:
                response = self._ask(method, address, body)
            except httpx.TransportError as error:
                problem = f"failed ({type(error).__name__}: {error})"
            else:
                if response.is_success:
                    return response.content
                problem = f"answered {response.status_code} {response.text[:_MAX_MESSAGE]!r}"
                if response.status_code not in _PASSING:
                    raise StageError(
                        f"{setting}: {address} {problem}, which another try would not change; a server that takes "
                        f"these requests is needed: correct the address, the token or the server"
                    )
                pause = _retry_after(response, pause)
            if retry < self._config.max_retries:
                logger.warning(
                    "%s: %s %s; asked again in %.0f s (%d of %d)",
                    setting, address, problem, pause, retry + 1, self._config.max_retries,
                )  # fmt: skip
                time.sleep(pause)
        raise StageError(
            f"{setting}: {address} {problem}, the last of {self._config.max_retries + 1} tries; a reward "
            f"server that answers within {self._config.timeout_seconds:g} s is needed: bring it back, or raise "
            f"`timeout_seconds` or `max_retries`"
        )

    def _ask(self, method: str, address: str, body: dict[str, Any] | None) -> httpx.Response:
        """One request with one limit for all of it: httpx's own is for each piece, and a trickle has many."""
        deadline = time.monotonic() + self._config.timeout_seconds
        with self._http.stream(method, address, json=body) as response:
            parts: list[bytes] = []
            for part in response.iter_bytes():
                parts.append(part)
                if time.monotonic() > deadline:
                    raise httpx.ReadTimeout(f"no whole answer within {self._config.timeout_seconds:g} s")
                if sum(map(len, parts)) > _MOST_BYTES:
                    raise StageError(
                        f"{self._config.setting}: {address} answered more than {_MOST_BYTES // 1024**2} MiB; "
                        f"{{'scores': [...]}} with one number a response is needed: correct the server"
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
