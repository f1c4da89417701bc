"""Rewards by comparison: with a regular expression, and with the reference answer of the prompt."""

import unicodedata
from collections.abc import Sequence

from rewards.contract import Episode
from rewards.patterns import compiled, too_slow
from rewards.rule_config import ExactMatchRewardConfig, ExtractFields, RegexRewardConfig


class RegexReward:
    """Whether, or how often, a response matches a pattern."""

    def __init__(self, config: RegexRewardConfig) -> None:
        """Compile the pattern.

        Raises:
            ConfigError: It is none.
        """
        self._config = config
        self._pattern = compiled(config.pattern, f"{config.setting}.pattern")

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """1 or 0, or the number of matches.

        Raises:
            StageError: A response takes too long.
        """
        return [self._scored(episode.response_text) for episode in episodes]

    def _scored(self, text: str) -> float:
        seconds = self._config.timeout_seconds
        try:
            match self._config.match:
                case "search":
                    return float(self._pattern.search(text, timeout=seconds) is not None)
                case "full":
                    return float(self._pattern.fullmatch(text, timeout=seconds) is not None)
                case "count":
                    return float(sum(1 for _ in self._pattern.finditer(text, timeout=seconds)))
        except TimeoutError:
            too_slow(self._config.pattern, self._config.setting, seconds, text)


class AnswerExtractor:
    """Finds the answer in a response."""

    def __init__(self, config: ExtractFields, setting: str) -> None:
        """Compile the pattern, where there is one.

        Raises:
            ConfigError: It is none, or has not one group.
        """
        self._config, self._setting = config, setting
        self._pattern = None if config.extract is None else compiled(config.extract, f"{setting}.extract", groups=1)

    def __call__(self, text: str) -> str | None:
        """The last match's group, or the whole response; None where nothing matches.

        Raises:
            StageError: The response takes too long.
        """
        if self._pattern is None:
            return text
        found: str | None = None
        try:
            for match in self._pattern.finditer(text, timeout=self._config.timeout_seconds):
                found = match[1]
        except TimeoutError:
            too_slow(self._config.extract or "", self._setting, self._config.timeout_seconds, text)
        return found


class ExactMatchReward:
    """Whether the answer is the reference."""

    def __init__(self, config: ExactMatchRewardConfig) -> None:
        """Compile the pattern that finds the answer.

        Raises:
            ConfigError: It is none.
        """
        self._config = config
        self._extract = AnswerExtractor(config, config.setting)

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """1 or 0; 0 where there is no answer or no reference.

        Raises:
            StageError: A response takes too long.
        """
        return [float(self._is_right(self._extract(each.response_text), each.reference)) for each in episodes]

    def _is_right(self, answer: str | None, reference: str | None) -> bool:
        if answer is None or reference is None:
            return False
        return self._normalised(answer) == self._normalised(reference)

    def _normalised(self, text: str) -> str:
        """Compatible forms of characters unified, white space single, and what is to be ignored left out."""
        text = unicodedata.normalize("NFKC", text)
        if self._config.ignore_case:
            text = unicodedata.normalize("NFKC", text.casefold())
        if self._config.ignore_punctuation:
            text = "".join(each for each in text if not unicodedata.category(each).startswith("P"))
        return " ".join(text.split())
