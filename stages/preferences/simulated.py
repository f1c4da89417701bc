"""A stand-in for people: a reward function whose scores are believed."""

from collections.abc import Sequence

from rewards.rules import build_rule_reward
from stages.preferences.config import SimulatedLabelerConfig
from stages.preferences.contract import Candidates, Opinion


class SimulatedLabeler:
    """Judges by a reward function. Its errors, `label_noise`, are made where pairs are."""

    def __init__(self, config: SimulatedLabelerConfig) -> None:
        """Make the reward function."""
        self._reward = build_rule_reward(config.reward)

    def __call__(self, candidates: Sequence[Candidates]) -> list[Opinion]:
        """The scores, all of them in one call of the reward function."""
        scores = iter(self._reward([episode for each in candidates for episode in each.episodes]))
        return [tuple(next(scores) for _ in each.episodes) for each in candidates]
