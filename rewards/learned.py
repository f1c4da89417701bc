"""The trained reward model as a reward function."""

from collections.abc import Sequence

from rewards.contract import Episode, ScoreModel, TextScoreModel


class LearnedReward:
    """Scores by a `ScoreModel`, on the token ids themselves: nothing is decoded and tokenised again."""

    def __init__(self, score_model: ScoreModel) -> None:
        """Keep the model."""
        self._score_model = score_model

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Normalised score of each episode."""
        return self._score_model.score(
            [episode.prompt_ids for episode in episodes], [episode.response_ids for episode in episodes]
        )


class LearnedTextReward:
    """Scores by a `TextScoreModel`, on the text: the model's tokens are not the policy's."""

    def __init__(self, score_model: TextScoreModel) -> None:
        """Keep the model."""
        self._score_model = score_model

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """Normalised score of each episode."""
        return self._score_model.score_texts(
            [episode.prompt for episode in episodes],
            [episode.response_text for episode in episodes],
            [episode.finished for episode in episodes],
        )
