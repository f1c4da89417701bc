"""Figures of the evaluation, by hand arithmetic."""

import numpy as np
import pytest

from stages.evaluation.statistics import bootstrap_mean, distinct_n, win_scores


def test_the_interval_is_that_of_the_resampled_means() -> None:
    # 100 draws of 0 and 100 of 1: the mean of a resample has deviation 0.5 / sqrt(200) = 0.0354.
    found = bootstrap_mean([0.0] * 100 + [1.0] * 100, num_samples=4000, seed=1)
    assert found.mean == 0.5
    assert found.low == pytest.approx(0.5 - 1.96 * 0.0354, abs=0.008)
    assert found.high == pytest.approx(0.5 + 1.96 * 0.0354, abs=0.008)


def test_the_interval_covers_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    inside = 0
    for seed in range(200):
        interval = bootstrap_mean(generator.normal(2.0, 1.0, 60).tolist(), num_samples=300, seed=seed)
        inside += interval.low <= 2.0 <= interval.high
    # 95 % of 200 with a standard error of 3; the percentile bootstrap is a little narrow at 60 draws.
    assert 178 <= inside <= 198


def test_the_seed_alone_decides() -> None:
    values = [0.0, 1.0, 5.0, 2.0]
    first, again = (bootstrap_mean(values, num_samples=100, seed=3) for _ in range(2))
    assert first == again != bootstrap_mean(values, num_samples=100, seed=4)
    assert first.mean == 2.0 and 0.0 <= first.low < 2.0 < first.high <= 5.0


def test_ties_count_half() -> None:
    assert win_scores([1.0, 1.0, 1.0, -2.0], [2.0, 1.0, 0.5, -1.0]) == [1.0, 0.5, 0.0, 1.0]
    with pytest.raises(ValueError, match="shorter|longer"):
        win_scores([1.0], [1.0, 2.0])


def test_distinct_by_hand() -> None:
    texts = ["The cat sat", "the cat ran", "one"]
    # words: the cat sat the cat ran one = 7, distinct 5; pairs: the-cat cat-sat the-cat cat-ran = 4, distinct 3
    assert distinct_n(texts, 1) == pytest.approx(5 / 7)
    assert distinct_n(texts, 2) == 0.75
    assert distinct_n(texts, 3) == 1.0
    assert distinct_n(texts, 4) == 0.0 and distinct_n([], 1) == 0.0
