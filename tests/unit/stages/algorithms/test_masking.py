"""Masked statistics and masks from ids, against numbers worked out by hand."""

import math

import pytest
import torch

from stages.algorithms.masking import (
    last_true_index,
    mask_through_first_eos,
    masked_mean,
    masked_rescale,
    masked_var,
    masked_whiten,
    position_ids_from_mask,
)

NAN, INF = float("nan"), float("inf")

# Counted entries 1, 2, 6 (mean 3; squared deviations 4, 1, 9, so variance 14/3) among garbage.
VALUES = torch.tensor([[1.0, 2.0, NAN], [6.0, INF, -INF]])
MASK = torch.tensor([[True, True, False], [True, False, False]])


def test_masked_mean_and_variance_are_the_hand_computed_ones() -> None:
    torch.testing.assert_close(masked_mean(VALUES, MASK), torch.tensor(3.0))
    torch.testing.assert_close(masked_var(VALUES, MASK), torch.tensor(14 / 3))


def test_masked_mean_weighs_tokens_and_not_rows() -> None:
    values = torch.tensor([[4.0, 4.0, 4.0], [0.0, 9.0, 9.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    torch.testing.assert_close(masked_mean(values, mask), torch.tensor(3.0))  # 12 / 4, not (4 + 0) / 2


def test_masked_whiten_is_the_hand_computed_one_and_zero_outside() -> None:
    std = math.sqrt(14 / 3)
    expected = torch.tensor([[-2 / std, -1 / std, 0.0], [3 / std, 0.0, 0.0]])
    torch.testing.assert_close(masked_whiten(VALUES, MASK), expected)


def test_masked_rescale_is_the_hand_computed_one_and_zero_outside() -> None:
    std = math.sqrt(14 / 3)
    expected = torch.tensor([[3 - 2 / std, 3 - 1 / std, 0.0], [3 + 3 / std, 0.0, 0.0]])
    torch.testing.assert_close(masked_rescale(VALUES, MASK), expected)


@pytest.mark.parametrize("whiten", [masked_whiten, masked_rescale])
def test_whitening_of_one_counted_entry_is_finite(whiten: object) -> None:
    assert callable(whiten)
    values, mask = torch.tensor([[5.0, NAN]]), torch.tensor([[True, False]])
    expected = {masked_whiten: 0.0, masked_rescale: 5.0}[whiten]
    torch.testing.assert_close(whiten(values, mask), torch.tensor([[expected, 0.0]]))


def test_masked_whiten_adds_epsilon_to_the_variance() -> None:
    values, mask = torch.tensor([-1e-4, 1e-4]), torch.tensor([True, True])  # variance 1e-8
    # 1e-4 / sqrt(1e-8 + 1e-8) = 0.70711 by default; 1e-4 / sqrt(1e-8 + 3e-8) = 0.5
    torch.testing.assert_close(masked_whiten(values, mask), torch.tensor([-0.70711, 0.70711]))
    torch.testing.assert_close(masked_whiten(values, mask, epsilon=3e-8), torch.tensor([-0.5, 0.5]))


def test_checklist_34_whitening_moves_the_mean_of_advantages_and_keeps_that_of_rewards() -> None:
    generator = torch.Generator().manual_seed(0)
    values = 7 + 3 * torch.randn(4, 9, generator=generator, dtype=torch.float64)
    mask = torch.rand(4, 9, generator=generator) < 0.6
    counted = [values[b, t].item() for b, t in mask.nonzero().tolist()]
    mean = sum(counted) / len(counted)
    biased_var = sum((v - mean) ** 2 for v in counted) / len(counted)
    assert masked_var(values, mask).item() == pytest.approx(biased_var, rel=1e-12)

    for whitened, expected_mean in ((masked_whiten(values, mask), 0.0), (masked_rescale(values, mask), mean)):
        kept = whitened[mask].tolist()
        new_mean = sum(kept) / len(kept)
        assert new_mean == pytest.approx(expected_mean, abs=1e-12)
        # epsilon 1e-8 over a variance of about 9 shifts the result by 1e-9
        assert sum((v - new_mean) ** 2 for v in kept) / len(kept) == pytest.approx(1.0, abs=1e-8)
        assert torch.equal(whitened[~mask], torch.zeros_like(whitened[~mask]))


@pytest.mark.parametrize("function", [masked_mean, masked_var, masked_whiten, masked_rescale])
def test_garbage_outside_the_mask_changes_neither_values_nor_gradients(function: object) -> None:
    assert callable(function)
    results = []
    for filler in (0.0, NAN, INF, 1e30):
        values = torch.tensor([[1.0, 2.0, filler], [6.0, filler, filler]], requires_grad=True)
        result = function(values, MASK)
        (result * torch.arange(1.0, result.numel() + 1).reshape(result.shape)).sum().backward()
        assert values.grad is not None
        results.append((result.detach(), values.grad))
        assert torch.equal(values.grad[~MASK], torch.zeros(3))
    for result, gradient in results[1:]:
        assert torch.equal(result, results[0][0])
        assert torch.equal(gradient, results[0][1])


@pytest.mark.parametrize("function", [masked_mean, masked_var, masked_whiten, masked_rescale])
def test_gradients_of_masked_statistics(function: object) -> None:
    assert callable(function)
    values = torch.tensor([[0.3, -1.2, 4.0], [2.2, 5.0, -3.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: function(v, MASK), (values,))


@pytest.mark.parametrize("function", [masked_whiten, masked_rescale])
def test_permuting_rows_permutes_the_whitened_rows(function: object) -> None:
    assert callable(function)
    values, order = torch.tensor([[1.0, 2.0], [6.0, 8.0], [0.5, 9.0]]), torch.tensor([2, 0, 1])
    mask = torch.tensor([[True, True], [True, False], [False, True]])
    torch.testing.assert_close(function(values[order], mask[order]), function(values, mask)[order])


@pytest.mark.parametrize("function", [masked_mean, masked_var, masked_whiten, masked_rescale])
def test_an_empty_mask_is_refused(function: object) -> None:
    assert callable(function)
    with pytest.raises(ValueError, match=r"mask of shape \(2, 3\) has no True entry; a mean needs at least one"):
        function(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool))


def test_checklist_18_mask_runs_through_the_first_eos() -> None:
    token_ids = torch.tensor([[7, 2, 5, 2], [2, 2, 2, 2], [7, 5, 5, 2], [7, 5, 5, 5], [9, 7, 2, 7]])
    expected = torch.tensor(
        [
            [True, True, False, False],
            [True, False, False, False],
            [True, True, True, True],
            [True, True, True, True],
            [True, True, True, False],
        ]
    )
    mask = mask_through_first_eos(token_ids, eos_token_ids=[2])
    assert mask.dtype == torch.bool
    assert torch.equal(mask, expected)


def test_any_of_several_eos_ids_ends_a_response_and_none_leaves_all() -> None:
    token_ids = torch.tensor([[7, 9, 2], [7, 2, 9]])
    expected = torch.tensor([[True, True, False], [True, True, False]])
    assert torch.equal(mask_through_first_eos(token_ids, eos_token_ids=(2, 9)), expected)
    assert mask_through_first_eos(token_ids, eos_token_ids=()).all()


def test_tokens_after_the_first_eos_do_not_change_the_mask() -> None:
    rows = [[7, 2, after, other] for after in (0, 2, 7) for other in (0, 2, 7)]
    mask = mask_through_first_eos(torch.tensor(rows), eos_token_ids=[2])
    assert torch.equal(mask, torch.tensor([[True, True, False, False]]).expand(9, 4))


def test_last_true_index_finds_the_last_and_not_the_number() -> None:
    mask = torch.tensor(
        [
            [True, True, False, False],
            [False, False, True, False],
            [True, False, False, True],
            [True, False, False, False],
        ]
    )
    assert last_true_index(mask).tolist() == [1, 2, 3, 0]


def test_last_true_index_names_the_rows_without_a_token() -> None:
    mask = torch.tensor([[True, False], [False, False], [False, True], [False, False]])
    with pytest.raises(ValueError, match=r"no True entry in rows \[1, 3\]; each row needs at least one token"):
        last_true_index(mask)


def test_checklist_03_position_ids_are_the_exclusive_cumulative_sum_on_real_tokens() -> None:
    mask = torch.tensor(
        [
            [False, False, True, True, True],
            [True, True, True, True, True],
            [False, True, True, False, False],
            [False, False, False, False, True],
        ]
    )
    expected = [[0, 0, 0, 1, 2], [0, 1, 2, 3, 4], [0, 0, 1, 1, 1], [0, 0, 0, 0, 0]]
    positions = position_ids_from_mask(mask)
    assert positions.dtype == torch.int64
    assert positions.tolist() == expected
    for row, row_positions in zip(mask.tolist(), positions.tolist(), strict=True):
        exclusive = [sum(row[:column]) for column in range(len(row))]
        assert all(p == e for p, e, real in zip(row_positions, exclusive, row, strict=True) if real)
        assert max(row_positions) <= sum(row) - 1  # a table of sum(row) learned positions is not overrun


def test_left_padding_does_not_shift_positions() -> None:
    unpadded = position_ids_from_mask(torch.ones(1, 3, dtype=torch.bool))
    padded = position_ids_from_mask(torch.tensor([[False] * 4 + [True] * 3]))
    assert torch.equal(padded[:, 4:], unpadded)
