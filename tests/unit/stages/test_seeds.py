"""Seeds of all parts, and the order of the prompts."""

import hashlib
from itertools import product

from stages.seeds import batch_rows, derive_seed


def test_a_seed_is_the_hash_of_its_three_parts() -> None:
    expected = int(hashlib.sha256(b"7/rollouts/3").hexdigest()[:16], 16) // 2
    assert derive_seed(7, "rollouts", 3) == expected


def test_checklist_47_seeds_differ_by_run_purpose_and_number_and_fit_63_bits() -> None:
    seeds = [derive_seed(*parts) for parts in product(range(5), ("rollouts", "shuffle", "epoch"), range(20))]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_checklist_42_every_row_once_an_epoch_and_freshly_shuffled() -> None:
    rows = [row for step in range(14) for row in batch_rows(10, 5, step, seed=3)]
    epochs = [rows[start : start + 10] for start in range(0, 70, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 7


def test_a_batch_may_reach_over_the_end_of_an_epoch_or_of_several() -> None:
    rows = [row for step in range(7) for row in batch_rows(4, 6, step, seed=3)]
    assert len(rows) == 42
    assert all(sorted(rows[start : start + 4]) == [0, 1, 2, 3] for start in range(0, 40, 4))
    assert batch_rows(1, 3, 5, seed=0) == [0, 0, 0]


def test_checklist_50_a_batch_is_a_function_of_its_step_alone() -> None:
    """So a run that is resumed at any step reads what it would have read."""
    steps = [batch_rows(100, 8, step, seed=3) for step in range(40)]
    assert len({tuple(rows) for rows in steps}) == 40
    for step in (39, 0, 17, 17):
        assert batch_rows(100, 8, step, seed=3) == steps[step]
    assert batch_rows(100, 8, 9, seed=3) != batch_rows(100, 8, 9, seed=4)
