"""How far people agree: Krippendorff's alpha of ordinal values. Pure.

Written out here because the package of that name on PyPI is under the GPL.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate


def midranks(ranks: Sequence[int]) -> tuple[float, ...]:
    """Ranks without gaps, in which tied ones share the mean of their places.

    So the ranks of one person sum to K (K + 1) / 2 however they were written, and a tie at the top says the same
    whether the next rank was called 2 or 3.

    Args:
        ranks: One number a response, 1 is best; equal numbers are ties, numbers may be left out.

    Example:
        >>> midranks([1, 3, 1, 4])
        (1.5, 3.0, 1.5, 4.0)
    """
    return tuple(sum(other < rank for other in ranks) + (ranks.count(rank) + 1) / 2 for rank in ranks)


def ordinal_alpha(units: Iterable[Sequence[float]]) -> float | None:
    """Krippendorff's alpha with the ordinal difference.

        alpha = 1 - D_o / D_e
        D_o = 1/n sum over units u of 1/(m_u - 1) sum over pairs of values in u of delta^2
        D_e = 1/(n (n - 1)) sum over all pairs of values of delta^2
        delta^2(c, k) = (sum of n_g for g from c to k - (n_c + n_k) / 2)^2

    with m_u values in unit u, n_g values g in all, n values in all; units of one value pair with nothing and are left
    out. Krippendorff 2011, Computing Krippendorff's Alpha-Reliability, sections C and E,
    https://repository.upenn.edu/asc_papers/43.

    Args:
        units: The values that each unit was given; missing ones are left out.

    Returns:
        1 for agreement in everything, 0 for agreement by chance, below 0 for disagreement beyond chance; None where
        fewer than two values can be compared, or all are equal: there is nothing to agree on then.
    """
    kept = [tuple(unit) for unit in units if len(unit) > 1]
    counts = Counter(value for unit in kept for value in unit)
    values = sorted(counts)
    total = sum(counts.values())
    if len(values) < 2:
        return None
    # Where a value lies on the scale: the values below it, and half of its own. delta is a difference of two places.
    below = [0, *accumulate(counts[value] for value in values)]
    place = {value: below[row] + counts[value] / 2 for row, value in enumerate(values)}
    observed = sum(_spread(Counter(unit), place) / (len(unit) - 1) for unit in kept) / total
    expected = _spread(counts, place) / (total * (total - 1))
    return 1.0 - observed / expected


def _spread(counts: Mapping[float, int], place: Mapping[float, float]) -> float:
    """Sum of squared differences over all ordered pairs."""
    return sum(
        number * other * (place[value] - place[another]) ** 2
        for value, number in counts.items()
        for another, other in counts.items()
    )
