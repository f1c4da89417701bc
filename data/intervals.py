"""Shares and their intervals."""

import math
from collections.abc import Sequence

_Z95 = 1.959964


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927), which holds for few observations and near 0 and 1, too.

    Args:
        share: Observed, in [0, 1].
        count: Number of observations; at least one.

    Returns:
        Its ends, in [0, 1].
    """
    z = _Z95
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def share_above_zero(values: Sequence[float]) -> float:
    """Share of values above 0, say of pairs whose chosen response has the higher score; 0 counts half."""
    return sum(0.5 + 0.5 * ((value > 0) - (value < 0)) for value in values) / len(values)
