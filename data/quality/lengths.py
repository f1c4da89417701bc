"""Lengths: percentiles, a histogram, and whether the chosen responses are the longer ones."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from data.intervals import wilson_interval

PERCENTILES = (0, 5, 25, 50, 75, 95, 99, 100)
_BINS = 24


@dataclass(frozen=True)
class Lengths:
    """How long texts are.

    Attributes:
        count: Number of texts.
        mean: Mean length.
        percentiles: Length by percentile; nearest rank, so that each is the length of a text there is.
        edges: Edges of the histogram's bins, one more than there are bins.
        counts: Texts in each bin; a length that is an edge counts to the right, the longest to the last bin.
    """

    count: int
    mean: float
    percentiles: dict[str, int]
    edges: tuple[int, ...]
    counts: tuple[int, ...]


def describe_lengths(lengths: Sequence[int]) -> Lengths:
    """Percentiles and histogram of lengths; of none, zeros.

    The histogram ends at the 99th percentile, and the last bin holds all longer texts, so that one long text does not
    make the rest one bar.
    """
    if not lengths:
        return Lengths(0, 0.0, {str(percent): 0 for percent in PERCENTILES}, (0, 1), (0,))
    ordered = sorted(lengths)
    at = {percent: ordered[max(math.ceil(percent / 100 * len(ordered)), 1) - 1] for percent in PERCENTILES}
    low, width = ordered[0], max(math.ceil((at[99] - ordered[0] + 1) / _BINS), 1)
    num_bins = max(math.ceil((at[99] - low + 1) / width), 1)
    counts = [0] * num_bins
    for length in ordered:
        counts[min((length - low) // width, num_bins - 1)] += 1
    return Lengths(
        count=len(ordered),
        mean=sum(ordered) / len(ordered),
        percentiles={str(percent): length for percent, length in at.items()},
        edges=tuple(low + width * number for number in range(num_bins + 1)),
        counts=tuple(counts),
    )


@dataclass(frozen=True)
class LengthBias:
    """Whether length alone tells which response was chosen.

    Attributes:
        longer_chosen: Share of pairs whose chosen response is the longer one; equal lengths count half.
        low: Lower end of its 95 % interval (Wilson 1927).
        high: Upper end.
        mean_difference: Mean length of chosen minus rejected responses.
        pairs: Number of pairs.
    """

    longer_chosen: float
    low: float
    high: float
    mean_difference: float
    pairs: int

    @property
    def is_clear(self) -> bool:
        """Whether chance does not explain it."""
        return not self.low <= 0.5 <= self.high


def length_bias(chosen: Sequence[int], rejected: Sequence[int]) -> LengthBias:
    """Compare the lengths of the two responses of each pair.

    Args:
        chosen: Lengths of the chosen responses.
        rejected: Lengths of the rejected responses of the same pairs, at least one.
    """
    count = len(chosen)
    wins = sum(0.5 + 0.5 * ((a > b) - (a < b)) for a, b in zip(chosen, rejected, strict=True))
    share = wins / count
    low, high = wilson_interval(share, count)
    difference = (sum(chosen) - sum(rejected)) / count
    return LengthBias(share, low, high, difference, count)
