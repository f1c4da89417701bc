"""Several judges as one, by hand arithmetic."""

from collections.abc import Sequence

import pytest

from rewards.contract import Episode
from rewards.ensemble import EnsembleReward

EPISODES = [Episode("", text, (1,), (2,), "", True) for text in ("a", "b")]


def _judge(*scores: float) -> object:
    def reward(episodes: Sequence[Episode]) -> list[float]:
        assert list(episodes) == EPISODES
        return list(scores)

    return reward


@pytest.mark.parametrize(
    ("combine", "expected"),
    [
        ("mean", [2.0, 4.0]),
        ("min", [1.0, 4.0]),
        # 1 and 3: mean 2, standard deviation 1; 4 and 4 agree
        ("mean_minus_std", [1.0, 4.0]),
    ],
)
def test_two_members(combine: str, expected: list[float]) -> None:
    reward = EnsembleReward([_judge(1.0, 4.0), _judge(3.0, 4.0)], combine=combine)  # type: ignore[arg-type, list-item]
    assert reward(EPISODES) == expected


def test_disagreement_of_three_is_charged() -> None:
    members = [_judge(0.0, 1.0), _judge(0.0, 1.0), _judge(3.0, 1.0)]
    reward = EnsembleReward(members, combine="mean_minus_std")  # type: ignore[arg-type]
    # mean 1, deviations -1, -1, 2: variance (1 + 1 + 4) / 3 = 2
    assert reward(EPISODES) == pytest.approx([1 - 2**0.5, 1.0])


def test_one_member_is_no_ensemble() -> None:
    with pytest.raises(ValueError, match="an ensemble of 1 reward functions combines nothing; give at least two"):
        EnsembleReward([_judge(1.0)], combine="mean")  # type: ignore[list-item]


def test_members_that_judge_different_numbers_of_episodes_are_an_error() -> None:
    with pytest.raises(ValueError, match="shorter"):
        EnsembleReward([_judge(1.0, 2.0), _judge(1.0)], combine="mean")(EPISODES)  # type: ignore[list-item]
