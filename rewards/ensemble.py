"""Several reward functions as one.

A policy that is trained against one reward model finds what that one gets wrong. Members that were trained apart get
different things wrong, so what only one of them praises counts less (Coste et al. 2023, section 3,
https://arxiv.org/abs/2310.02743).
"""

from collections.abc import Sequence
from statistics import fmean, pstdev
from typing import Literal

from rewards.contract import Episode, RewardFunction


class EnsembleReward:
    """Combines the members' scores of each episode. Normalised scores have one unit, so that they can be compared."""

    def __init__(self, members: Sequence[RewardFunction], *, combine: Literal["mean", "min", "mean_minus_std"]) -> None:
        """Keep the members.

        Args:
            members: At least two.
            combine: `mean`; `min`, the worst case; or `mean_minus_std`, the mean less the members' standard deviation
                (divided by their number, not by one less).

        Raises:
            ValueError: There are fewer than two members.
        """
        if len(members) < 2:
            raise ValueError(f"an ensemble of {len(members)} reward functions combines nothing; give at least two")
        self._members = list(members)
        self._combine = combine

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """One score an episode."""
        by_member = [member(episodes) for member in self._members]
        return [self._combined(scores) for scores in zip(*by_member, strict=True)]

    def _combined(self, scores: Sequence[float]) -> float:
        match self._combine:
            case "mean":
                return fmean(scores)
            case "min":
                return min(scores)
            case "mean_minus_std":
                return fmean(scores) - pstdev(scores)
