"""Reward functions that are rules on the text: published scorers and planted targets."""

from collections.abc import Sequence

from rewards.config import CharacterShareRewardConfig, SentimentFields, VaderRewardConfig
from rewards.contract import Episode, RewardFunction


class VaderReward:
    """Sentiment of a text by VADER, the compound score in [-1, 1].

    Hutto and Gilbert 2014, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media
    Text", https://ojs.aaai.org/index.php/ICWSM/article/view/14550; package `vaderSentiment`.
    """

    def __init__(self, config: SentimentFields) -> None:
        """Read the lexicon (30 ms)."""
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

        self._analyzer = SentimentIntensityAnalyzer()
        self._with_prompt = config.text == "prompt_and_response"

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Compound sentiment of each episode."""
        texts = [
            episode.prompt_text + episode.response_text if self._with_prompt else episode.response_text
            for episode in episodes
        ]
        return [float(self._analyzer.polarity_scores(text)["compound"]) for text in texts]


class CharacterShareReward:
    """Share of the response's characters that belong to a set, in [0, 1]; 0 for an empty response."""

    def __init__(self, config: CharacterShareRewardConfig) -> None:
        """Keep the set."""
        self._characters = frozenset(config.characters)

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Share of each episode's response."""
        return [
            sum(character in self._characters for character in episode.response_text)
            / max(len(episode.response_text), 1)
            for episode in episodes
        ]


def build_rule_reward(config: VaderRewardConfig | CharacterShareRewardConfig) -> RewardFunction:
    """The rule that a configuration names."""
    match config:
        case VaderRewardConfig():
            return VaderReward(config)
        case CharacterShareRewardConfig():
            return CharacterShareReward(config)
