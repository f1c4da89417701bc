"""A reward server over HTTP: asked again with growing pauses where it fails, believed only where its answer is whole.

A request is `{"prompts": [...], "responses": [...]}`, with `"references": [...]` where the prompts have some; the
answer is `{"scores": [...]}`, one finite number each, in their order. docs/rewards.md has the schema.
"""

import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import urljoin

from data.asking import MAX_MESSAGE, Server, ServerSettings
from data.errors import StageError
from rewards.checking import checked_scores
from rewards.composite_config import RemoteRewardConfig
from rewards.contract import Episode


class RemoteReward:
    """Judges by a server. What it answers is data, and nothing else."""

    def __init__(self, config: RemoteRewardConfig) -> None:
        """Prepare; nothing is sent.

        Raises:
            ConfigError: The token's environment variable is not set.
        """
        self._config = config
        self._server = Server(
            ServerSettings(
                setting=config.setting,
                kind="reward server",
                answer="{'scores': [...]} with one number a response",
                address=config.address,
                token_env=config.token_env,
                timeout_seconds=config.timeout_seconds,
                max_retries=config.max_retries,
            )
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
            self._server.ask("GET", urljoin(self._config.address, self._config.health), None)

    def _scores(self, episodes: Sequence[Episode]) -> list[float]:
        body: dict[str, Any] = {
            "prompts": [episode.prompt_text for episode in episodes],
            "responses": [episode.response_text for episode in episodes],
        }
        if any(episode.reference is not None for episode in episodes):
            body["references"] = [episode.reference for episode in episodes]
        content = self._server.ask("POST", self._config.address, body)
        source, remedy = f"{self._config.setting}: {self._config.address}", "correct the server"
        try:
            scores = json.loads(content)["scores"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise StageError(
                f"{source} answered {content[:MAX_MESSAGE]!r}, which is not {{'scores': [...]}} in JSON; one finite "
                f"number for each of {len(episodes)} responses is needed: {remedy}"
            ) from error
        return checked_scores(scores, episodes, source=source, remedy=remedy)
