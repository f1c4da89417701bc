"""The learned reward hands the token ids through, in order, and decodes nothing."""

from collections.abc import Sequence

from rewards.contract import Episode
from rewards.learned import LearnedReward


class _Stub:
    """Scores by the ids alone."""

    def score(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[float]:
        """Sum of the prompt plus a tenth of the response's last token."""
        return [sum(p) + r[-1] / 10 for p, r in zip(prompts, responses, strict=True)]


def test_scores_come_from_the_ids() -> None:
    episodes = [Episode("text", "misleading", (1, 2), (3, 4)), Episode("", "", (5,), (6,))]
    assert LearnedReward(_Stub())(episodes) == [3.4, 5.6]
    assert LearnedReward(_Stub())([]) == []
