"""The trained reward model, of one member or more, as a reward function."""

from collections.abc import Sequence

from rewards.contract import Episode, ScoreModel, TextScoreModel
from rewards.ensemble import mean_of_members


class LearnedReward:
    """Scores by a `ScoreModel`, on the token ids themselves: nothing is decoded and tokenised again."""

    def __init__(self, score_model: ScoreModel) -> None:
        """Keep the model."""
        self._score_model = score_model

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Normalised score of each episode."""
        return mean_of_members(self.by_member(episodes))

    @property
    def num_members(self) -> int:
        """How many scores an episode gets."""
        return self._score_model.num_members

    def by_member(self, episodes: Sequence[Episode]) -> list[list[float]]:
        """One list a member, with the normalised score of each episode."""
        return self._score_model.score_members(
            [episode.prompt_ids for episode in episodes], [episode.response_ids for episode in episodes]
        )


class LearnedTextReward:
    """Scores by a `TextScoreModel`, on the text: the model's tokens are not the policy's."""

    def __init__(self, score_model: TextScoreModel) -> None:
        """Keep the model."""
        self._score_model = score_model

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Normalised score of each episode."""
        return mean_of_members(self.by_member(episodes))

    @property
    def num_members(self) -> int:
        """How many scores an episode gets."""
        return self._score_model.num_members

    def by_member(self, episodes: Sequence[Episode]) -> list[list[float]]:
        """One list a member, with the normalised score of each episode."""
        return self._score_model.score_texts_by_member(
            [episode.prompt for episode in episodes],
            [episode.response_text for episode in episodes],
            [episode.finished for episode in episodes],
        )
