"""What reward models do not agree on: the pairs and prompts whose labels teach the most. Pure.

For a pair (i, j) of responses to one prompt and members m of an ensemble with normalised scores s_m:

    d(i, j) = standard deviation over m of (s_m(i) - s_m(j))

and the disagreement on a prompt is the mean of d over its pairs, since one ranking labels them all. Differences,
because a member's view of the prompt as a whole says nothing of which response is better. Members trained apart as a
measure of what a reward model does not know: Gleave and Irving 2022, https://arxiv.org/abs/2203.07472, and Coste et al.
2023, section 3, https://arxiv.org/abs/2310.02743; labels where the members' variance on a pair is largest: Christiano
et al. 2017, section 2.2.4, https://arxiv.org/abs/1706.03741.
"""

from collections.abc import Sequence
from itertools import combinations
from statistics import fmean, pstdev


def pair_disagreements(scores: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Standard deviation over the members of each pair's difference, divided by their number and not by one less.

    Args:
        scores: Of each member, one normalised score a response.

    Returns:
        One number a pair, in the order of `itertools.combinations`.
    """
    return tuple(
        pstdev([member[first] - member[second] for member in scores])
        for first, second in combinations(range(len(scores[0])), 2)
    )


def prompt_disagreement(pairs: Sequence[float]) -> float:
    """Mean over the pairs of one prompt; 0 where there is none."""
    return fmean(pairs) if pairs else 0.0
