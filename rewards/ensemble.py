"""Several reward models as one.

A policy that is trained against one reward model finds what that one gets wrong. Members that were trained apart get
different things wrong, so what only one of them praises counts less (Coste et al. 2023, section 3,
https://arxiv.org/abs/2310.02743). Normalised scores have one unit, so that they can be compared.
"""

from collections.abc import Sequence
from math import isfinite, nan
from statistics import fmean, pstdev
from typing import Literal


def combine_members(scores: Sequence[float], how: Literal["mean", "min", "mean_minus_std"]) -> float:
    """Combine the members' scores of one episode.

    Args:
        scores: One a member.
        how: `mean`; `min`, the worst case; or `mean_minus_std`, the mean less the members' standard deviation (divided
            by their number, not by one less).

    Returns:
        NaN where a score is not finite.

    Example:
        >>> combine_members([1.0, 3.0], "mean_minus_std")
        1.0
    """
    if not all(map(isfinite, scores)):
        return nan
    match how:
        case "mean":
            return fmean(scores)
        case "min":
            return min(scores)
        case "mean_minus_std":
            return fmean(scores) - pstdev(scores)


def mean_of_members(scores: Sequence[Sequence[float]]) -> list[float]:
    """The mean score of each episode; that of one member is its own, bit for bit, whether finite or not.

    Args:
        scores: Of each member, one score an episode.
    """
    if len(scores) == 1:
        return list(scores[0])
    return [combine_members(each, "mean") for each in zip(*scores, strict=True)]
