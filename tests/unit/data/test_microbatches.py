"""Microbatches of similar length: by hand, and what holds for any lengths."""

import random

import pytest

from data.microbatches import microbatches_by_length


def test_rows_go_from_short_to_long_and_equal_ones_keep_their_order() -> None:
    assert microbatches_by_length([9, 9, 9, 3], max_rows=2) == [[3, 0], [1, 2]]
    assert microbatches_by_length([9, 9, 9, 3], max_rows=3) == [[3, 0, 1], [2]]
    assert microbatches_by_length([4, 2], max_rows=1) == [[1], [0]]
    assert microbatches_by_length([], max_rows=2) == []


def test_padding_counts_as_tokens() -> None:
    lengths = [10, 2, 3, 4]
    # 2 and 3 make 2 x 3 = 6, with 4 it would be 3 x 4 = 12; then 4 alone, for 2 x 10 = 20.
    assert microbatches_by_length(lengths, max_rows=9, max_tokens=11) == [[1, 2], [3], [0]]
    assert microbatches_by_length(lengths, max_rows=9, max_tokens=12) == [[1, 2, 3], [0]]
    assert microbatches_by_length(lengths, max_rows=9, max_tokens=40) == [[1, 2, 3, 0]]
    assert microbatches_by_length(lengths, max_rows=2, max_tokens=40) == [[1, 2], [3, 0]]


def test_a_row_above_the_bound_passes_alone() -> None:
    assert microbatches_by_length([50, 60, 1], max_rows=9, max_tokens=10) == [[2], [0], [1]]


@pytest.mark.parametrize("seed", range(20))
def test_every_row_once_within_both_bounds_and_none_could_be_added(seed: int) -> None:
    draw = random.Random(seed)
    lengths = [draw.randint(1, 30) for _ in range(draw.randint(1, 25))]
    rows, tokens = draw.randint(1, 6), draw.randint(1, 120)
    found = microbatches_by_length(lengths, max_rows=rows, max_tokens=tokens)
    flat = [row for batch in found for row in batch]
    assert sorted(flat) == list(range(len(lengths)))
    assert [lengths[row] for row in flat] == sorted(lengths)
    for batch in found:
        assert len(batch) <= rows
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= tokens
    for batch, following in zip(found, found[1:], strict=False):
        assert len(batch) == rows or (len(batch) + 1) * lengths[following[0]] > tokens
