"""The order of examples: the same steps as without it, sorted inside; padding by arithmetic; the same after a stop."""

import pytest
import torch
from accelerate.data_loader import SeedableRandomSampler
from hypothesis import given
from hypothesis import strategies as st

from stages.length_order import SortedBatchSampler, padding_metrics, padding_share


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(1, 9), st.integers(0, 3))
def test_each_step_has_the_examples_of_a_random_order(lengths: list[int], batch_size: int, seed: int) -> None:
    ours = SortedBatchSampler(lengths, batch_size=batch_size, seed=seed)
    theirs = SeedableRandomSampler(lengths, generator=torch.Generator(), data_seed=seed)
    for _ in range(2):  # epochs
        mine, random = list(ours), list(theirs)
        assert sorted(mine) == list(range(len(lengths))) == sorted(random)
        for start in range(0, len(lengths), batch_size):
            step = mine[start : start + batch_size]
            assert sorted(step) == sorted(random[start : start + batch_size])
            assert [lengths[row] for row in step] == sorted(lengths[row] for row in step)


def test_an_epoch_can_be_gone_to() -> None:
    lengths = list(range(40))
    sampler = SortedBatchSampler(lengths, batch_size=8, seed=1)
    epochs = [list(sampler) for _ in range(3)]
    assert epochs[0] != epochs[1] != epochs[2] and len(sampler) == 40
    again = SortedBatchSampler(lengths, batch_size=8, seed=1)
    again.set_epoch(2)
    assert list(again) == epochs[2]


def test_padding_by_hand() -> None:
    demonstrations = [(4,), (2,), (1,), (3,)]
    assert padding_share(demonstrations, [0, 1, 2, 3], 2) == pytest.approx(1 - 10 / (8 + 6))
    assert padding_share(demonstrations, [0, 3, 1, 2], 2) == pytest.approx(1 - 10 / (8 + 4))
    assert padding_share(demonstrations, [0, 1, 2, 3], 3) == pytest.approx(1 - 10 / (12 + 3))
    assert padding_share(demonstrations, [0, 1, 2, 3], 1) == 0.0
    assert padding_share([(4, 1), (2, 2)], [0, 1], 2) == pytest.approx(1 - 9 / 16), "both sides of a pair"
    assert padding_share([], [], 2) == 0.0


def test_sorting_saves_padding() -> None:
    lengths = [(1 + (7 * number) % 64,) for number in range(64)]
    found = padding_metrics(lengths, batch_size=32, microbatch_size=4, seed=0)
    assert 0.0 < found["data/padding_share"] < 0.35 * found["data/padding_share_unsorted"]
    alone = padding_metrics(lengths, batch_size=4, microbatch_size=4, seed=0)
    assert alone["data/padding_share"] == alone["data/padding_share_unsorted"]
