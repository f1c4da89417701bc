"""Figures of an evaluation: paired gains with bootstrap intervals, win rates, diversity.

Pure: the standard library and numpy. All intervals are 95 % percentile intervals over prompts, since prompts,
not tokens, are the independent draws (Efron and Tibshirani 1993, chapter 13).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float


def bootstrap_mean(values: Sequence[float], *, num_samples: int, seed: int) -> Interval:
    """Mean and percentile-bootstrap interval.

    Args:
        values: One value a prompt.
        num_samples: Resamples.
        seed: Of the resampling.

    Example:
        >>> bootstrap_mean([1.0, 1.0, 1.0], num_samples=100, seed=0)
        Interval(mean=1.0, low=1.0, high=1.0)
    """
    data = np.asarray(values, dtype=np.float64)
    rows = np.random.default_rng(seed).integers(0, len(data), size=(num_samples, len(data)))
    means = data[rows].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(data.mean()), float(low), float(high))


def win_scores(before: Sequence[float], after: Sequence[float]) -> list[float]:
    """1 where the second score is higher, 0 where it is lower, 0.5 at a tie.

    Example:
        >>> win_scores([0.0, 1.0, 2.0], [1.0, 1.0, 0.0])
        [1.0, 0.5, 0.0]
    """
    return [1.0 if new > old else 0.0 if new < old else 0.5 for old, new in zip(before, after, strict=True)]


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Share of distinct n-grams of words among all n-grams of all texts.

    Li et al. 2016, section 5, https://arxiv.org/abs/1510.03055. Falls with the number of texts, so compare
    equally many.

    Example:
        >>> distinct_n(["a good day", "a good night"], 2)
        0.75
    """
    grams = [
        tuple(words[start : start + n])
        for words in (text.lower().split() for text in texts)
        for start in range(len(words) - n + 1)
    ]
    return len(set(grams)) / len(grams) if grams else 0.0
