"""Rewards that count: how long a response is, and how much of it repeats itself."""

from collections.abc import Hashable, Sequence

from rewards.contract import Episode
from rewards.rule_config import LengthRewardConfig, RepetitionRewardConfig, Unit


class LengthReward:
    """The length of a response; with bounds, minus how far it is beyond them, 0 between them."""

    def __init__(self, config: LengthRewardConfig) -> None:
        """Keep the bounds."""
        self._config = config

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """One number an episode, in units."""
        return [self._scored(len(units_of(episode, self._config.unit))) for episode in episodes]

    def _scored(self, length: int) -> float:
        low, high = self._config.minimum, self._config.maximum
        if low is None and high is None:
            return float(length)
        missing = 0 if low is None else max(low - length, 0)
        excess = 0 if high is None else max(length - high, 0)
        return float(-missing - excess)


class RepetitionReward:
    """Minus the share of n-grams that an earlier one of the response equals, in [-1, 0]."""

    def __init__(self, config: RepetitionRewardConfig) -> None:
        """Keep unit and length of an n-gram."""
        self._config = config

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """One number an episode; 0 where the response has no n-gram."""
        return [0.0 - repeated_share(units_of(each, self._config.unit), self._config.ngram) for each in episodes]


def units_of(episode: Episode, unit: Unit) -> Sequence[Hashable]:
    """The response as tokens, words or characters."""
    match unit:
        case "tokens":
            return episode.response_ids
        case "words":
            return episode.response_text.split()
        case "characters":
            return episode.response_text


def repeated_share(units: Sequence[Hashable], ngram: int) -> float:
    """Share of n-grams that stand in the sequence before; 0 where there is none.

    Args:
        units: A sequence.
        ngram: Units of an n-gram.

    Example:
        >>> repeated_share("a b a b a b".split(), 2)  # ab, ba, and three of five again
        0.6
    """
    grams = [tuple(units[start : start + ngram]) for start in range(len(units) - ngram + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0
