"""Percentiles, histograms and length bias, by hand."""

import pytest

from data.quality.lengths import describe_lengths, length_bias


def test_percentiles_are_lengths_that_there_are() -> None:
    lengths = describe_lengths(range(1, 101))
    assert lengths.percentiles == {"0": 1, "5": 5, "25": 25, "50": 50, "75": 75, "95": 95, "99": 99, "100": 100}
    assert lengths.mean == 50.5 and lengths.count == 100
    assert describe_lengths([7]).percentiles["50"] == 7 and describe_lengths([]).count == 0


def test_the_histogram_counts_every_text_once() -> None:
    lengths = [3, 3, 4, 10, 11, 12, 500]
    found = describe_lengths(lengths)
    assert sum(found.counts) == len(lengths) and len(found.edges) == len(found.counts) + 1
    for low, high, count in list(zip(found.edges, found.edges[1:], found.counts, strict=False))[:-1]:
        assert count == sum(low <= length < high for length in lengths)


def test_one_long_text_does_not_make_the_rest_one_bar() -> None:
    found = describe_lengths([*range(100, 300), 100_000])
    assert len(found.counts) > 15 and found.edges[-1] < 400 and found.counts[-1] >= 1


def test_length_bias_with_its_interval() -> None:
    bias = length_bias([5, 5, 5, 5], [1, 1, 1, 5])
    assert bias.longer_chosen == 0.875 and bias.mean_difference == 3.0 and not bias.is_clear
    # Wilson 1927 for 60 of 100: 0.5020 to 0.6906.
    clear = length_bias([2] * 60 + [1] * 40, [1] * 60 + [2] * 40)
    assert [clear.low, clear.high] == pytest.approx([0.5020, 0.6906], abs=1e-4)
    assert clear.is_clear and clear.mean_difference == pytest.approx(0.2)
    mirrored = length_bias([1] * 60 + [2] * 40, [2] * 60 + [1] * 40)
    assert mirrored.longer_chosen == pytest.approx(0.4) and mirrored.is_clear
