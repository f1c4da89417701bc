"""What the members of an ensemble say of held-out pairs, each by itself and against the others. Pure."""

from collections.abc import Sequence
from statistics import fmean, pstdev
from typing import Any

from stages.models.scalar_head import ScoreNormalization

Scores = Sequence[Sequence[float]]
"""Of each member, one score an episode."""


def normalised(scores: Scores, normalizations: Sequence[ScoreNormalization]) -> list[list[float]]:
    """Raw scores of each member in the units that the later stages see."""
    return [
        [(score - own.shift) / own.scale for score in member]
        for member, own in zip(scores, normalizations, strict=True)
    ]


def compare_members(chosen: Scores, rejected: Scores) -> tuple[dict[str, float], dict[str, Any]]:
    """How right the members are, and whether they disagree where their mean is wrong.

    The disagreement on a pair is the standard deviation over the members of the score that the chosen response leads
    by (`stages.preferences.disagreement`).

    Args:
        chosen: Normalised scores of the preferred response of each pair, by member.
        rejected: Of the other one.

    Returns:
        Metrics `ensemble/*`: mean and standard deviation of the members' accuracies, mean disagreement, and that on the
        pairs that the mean has right and wrong, where there are any. Notes: each member's accuracy.
    """
    leads = [
        [first - second for first, second in zip(*member, strict=True)] for member in zip(chosen, rejected, strict=True)
    ]
    accuracies = [fmean((lead > 0) + 0.5 * (lead == 0) for lead in member) for member in leads]
    by_pair = list(zip(*leads, strict=True))
    metrics = {
        "ensemble/members": float(len(leads)),
        "ensemble/accuracy_mean": fmean(accuracies),
        "ensemble/accuracy_std": pstdev(accuracies),
        "ensemble/disagreement": fmean(map(pstdev, by_pair)),
    }
    for name, rows in (
        ("right", [pair for pair in by_pair if fmean(pair) > 0]),
        ("wrong", [pair for pair in by_pair if fmean(pair) <= 0]),
    ):
        if rows:
            metrics[f"ensemble/disagreement_{name}"] = fmean(map(pstdev, rows))
    return metrics, {"member_accuracies": accuracies}
