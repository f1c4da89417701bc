"""The Bradley-Terry model: golden numbers, symmetries and an independent calibration loop."""

import math

import pytest
import torch

from rewards.bradley_terry import (
    bradley_terry_accuracy,
    bradley_terry_loss,
    expected_calibration_error,
    preference_probability,
)

CHOSEN = torch.tensor([2.0, 1.0, -1.0, 0.3], dtype=torch.float64)
REJECTED = torch.tensor([0.5, 1.0, 2.0, -0.2], dtype=torch.float64)
MARGIN = torch.tensor([0.5, 0.0, 1.0, 2.0], dtype=torch.float64)


def softplus(x: float) -> float:
    """-log(sigmoid(-x)) in Python floats."""
    return math.log1p(math.exp(x))


def test_weights_count_pairs_in_proportion_and_parts_add_up() -> None:
    weight = torch.tensor([2.0, 0.5, 0.0, 1.5], dtype=torch.float64)
    each = [bradley_terry_loss(CHOSEN[i : i + 1], REJECTED[i : i + 1]).item() for i in range(4)]
    loss = bradley_terry_loss(CHOSEN, REJECTED, weight=weight)
    assert loss.item() == pytest.approx((2.0 * each[0] + 0.5 * each[1] + 1.5 * each[3]) / 4, abs=1e-12)
    halves = [bradley_terry_loss(CHOSEN[part], REJECTED[part], weight=weight[part]) for part in (slice(2), slice(2, 4))]
    assert loss.item() == pytest.approx((halves[0] + halves[1]).item() / 2, abs=1e-12)
    smoothed = bradley_terry_loss(CHOSEN, REJECTED, weight=torch.ones(4), label_smoothing=0.2)
    assert smoothed.item() == pytest.approx(bradley_terry_loss(CHOSEN, REJECTED, label_smoothing=0.2).item(), abs=1e-12)


def test_checklist_09_loss_is_minus_log_sigmoid_of_the_lead_over_the_margin() -> None:
    leads = [1.5, 0.0, -3.0, 0.5]
    without = bradley_terry_loss(CHOSEN, REJECTED)
    assert without.item() == pytest.approx(sum(softplus(-d) for d in leads) / 4, abs=1e-12)
    with_margin = bradley_terry_loss(CHOSEN, REJECTED, margin=MARGIN)
    leads = [1.0, 0.0, -4.0, -1.5]
    assert with_margin.item() == pytest.approx(sum(softplus(-d) for d in leads) / 4, abs=1e-12)


def test_checklist_09_equal_scores_cost_exactly_ln_2() -> None:
    scores = torch.tensor([0.0, 3.5, -80.0])
    assert bradley_terry_loss(scores, scores.clone()).item() == torch.tensor(2.0).log().item()
    for label_smoothing in (0.0, 0.1, 0.49):
        loss = bradley_terry_loss(scores, scores.clone(), label_smoothing=label_smoothing)
        assert loss.item() == pytest.approx(math.log(2), abs=1e-7)


def test_checklist_09_swapping_the_pair_negates_the_lead() -> None:
    loss = bradley_terry_loss(CHOSEN, REJECTED)
    swapped = bradley_terry_loss(REJECTED, CHOSEN)
    # logsigmoid(d) - logsigmoid(-d) = d, so the two losses differ by the mean lead, (1.5 + 0 - 3 + 0.5) / 4
    assert (swapped - loss).item() == pytest.approx(-0.25, abs=1e-12)
    assert (preference_probability(CHOSEN, REJECTED) + preference_probability(REJECTED, CHOSEN)).tolist() == (
        pytest.approx([1.0] * 4, abs=1e-12)
    )


@pytest.mark.parametrize("shift", [-7.0, 0.25, 100.0])
def test_checklist_13_a_constant_added_to_all_scores_changes_nothing(shift: float) -> None:
    gradients = []
    for bias in (0.0, shift):
        bias_leaf = torch.tensor(bias, dtype=torch.float64, requires_grad=True)
        chosen = CHOSEN.clone().requires_grad_()
        loss = bradley_terry_loss(chosen + bias_leaf, REJECTED + bias_leaf, margin=MARGIN, label_smoothing=0.1)
        loss.backward()
        assert bias_leaf.grad is not None and chosen.grad is not None
        assert bias_leaf.grad.item() == pytest.approx(0.0, abs=1e-15)
        gradients.append((loss.item(), *chosen.grad.tolist()))
    assert gradients[1] == pytest.approx(gradients[0], abs=1e-12)
    assert torch.equal(
        bradley_terry_accuracy(CHOSEN + shift, REJECTED + shift), bradley_terry_accuracy(CHOSEN, REJECTED)
    )
    torch.testing.assert_close(
        preference_probability(CHOSEN + shift, REJECTED + shift), preference_probability(CHOSEN, REJECTED)
    )


def test_label_smoothing_weighs_the_swapped_pair() -> None:
    # d = 1.5: 0.9 * softplus(-1.5) + 0.1 * softplus(1.5) = 0.9 * 0.2014133 + 0.1 * 1.7014133 = 0.3514133
    loss = bradley_terry_loss(torch.tensor([2.0]), torch.tensor([0.5]), label_smoothing=0.1)
    torch.testing.assert_close(loss, torch.tensor(0.3514133))


def test_label_smoothing_puts_the_minimum_at_its_log_odds() -> None:
    lead = torch.tensor([math.log(0.8 / 0.2)], dtype=torch.float64, requires_grad=True)
    bradley_terry_loss(lead, torch.zeros(1, dtype=torch.float64), label_smoothing=0.2).backward()
    assert lead.grad is not None
    assert lead.grad.item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("label_smoothing", [-0.01, 0.5, 1.0, math.nan])
def test_a_label_smoothing_outside_its_range_is_refused(label_smoothing: float) -> None:
    with pytest.raises(ValueError, match=rf"label_smoothing={label_smoothing} is outside \[0, 0\.5\)"):
        bradley_terry_loss(CHOSEN, REJECTED, label_smoothing=label_smoothing)


def test_gradient_pulls_the_two_scores_apart_and_is_exact() -> None:
    chosen, rejected = CHOSEN.clone().requires_grad_(), REJECTED.clone().requires_grad_()
    bradley_terry_loss(chosen, rejected).backward()
    assert chosen.grad is not None and rejected.grad is not None
    # d loss / d chosen = -sigmoid(-d) / 4
    expected = [-1 / (1 + math.exp(d)) / 4 for d in (1.5, 0.0, -3.0, 0.5)]
    assert chosen.grad.tolist() == pytest.approx(expected, abs=1e-12)
    assert rejected.grad.tolist() == pytest.approx([-g for g in expected], abs=1e-12)
    assert torch.autograd.gradcheck(
        lambda c, r: bradley_terry_loss(c, r, margin=MARGIN, label_smoothing=0.1), (chosen, rejected)
    )


def test_loss_stays_finite_however_wrong_the_scores_are() -> None:
    loss = bradley_terry_loss(torch.tensor([-500.0]), torch.tensor([500.0]))
    torch.testing.assert_close(loss, torch.tensor(1000.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_scores_are_subtracted_in_float32(dtype: torch.dtype) -> None:
    chosen, rejected = torch.tensor([10.0, 3.0], dtype=dtype), torch.tensor([0.01, 2.0], dtype=dtype)
    lead = 10 - rejected[0].item()  # 9.99, which neither type has
    assert bradley_terry_loss(chosen, rejected).dtype == torch.float32
    expected = torch.tensor([1 / (1 + math.exp(-lead)), 1 / (1 + math.exp(-1.0))])
    torch.testing.assert_close(preference_probability(chosen, rejected), expected, rtol=1e-6, atol=0.0)


def test_order_of_pairs_does_not_matter_and_batches_average() -> None:
    order = torch.tensor([2, 0, 3, 1])
    whole = bradley_terry_loss(CHOSEN, REJECTED).item()
    assert bradley_terry_loss(CHOSEN[order], REJECTED[order]).item() == pytest.approx(whole, abs=1e-14)
    halves = [bradley_terry_loss(CHOSEN[i : i + 2], REJECTED[i : i + 2]).item() for i in (0, 2)]
    assert sum(halves) / 2 == pytest.approx(whole, abs=1e-14)


@pytest.mark.parametrize(
    ("chosen", "rejected", "accuracy"),
    [
        ([2.0, 1.0, 0.0, 5.0], [0.0, 1.0, 3.0, 4.0], 0.625),  # won, tied, lost, won: 2.5 of 4
        ([1.0, 1.0], [1.0, 1.0], 0.5),
        ([2.0], [1.0], 1.0),
        ([1.0], [2.0], 0.0),
        ([1.0, 100.0], [2.0, 0.0], 0.5),
    ],
)
def test_accuracy_counts_ties_half(chosen: list[float], rejected: list[float], accuracy: float) -> None:
    result = bradley_terry_accuracy(torch.tensor(chosen), torch.tensor(rejected))
    assert result.item() == accuracy
    assert result.shape == ()


def test_preference_probability_golden() -> None:
    first, second = torch.tensor([math.log(3), 1.0, 0.0]), torch.tensor([0.0, 1.0, math.log(4)])
    torch.testing.assert_close(preference_probability(first, second), torch.tensor([0.75, 0.5, 0.2]))


# --- calibration ---


def reference_ece(probabilities: list[float], outcomes: list[float], num_bins: int) -> float:
    """Bins by comparison with their edges, in Python floats."""
    total = 0.0
    for k in range(num_bins):
        low, high = k / num_bins, (k + 1) / num_bins
        inside = [i for i, p in enumerate(probabilities) if low <= p < high or (k == num_bins - 1 and p == 1.0)]
        if inside:
            mean_probability = sum(probabilities[i] for i in inside) / len(inside)
            mean_outcome = sum(outcomes[i] for i in inside) / len(inside)
            total += len(inside) / len(probabilities) * abs(mean_outcome - mean_probability)
    return total


def test_calibration_error_golden() -> None:
    # [0, .5): mean .25, outcomes 1/2, off by .25 for 2 of 5
    # [.5, 1]: mean (.75 + .75 + 1) / 3, outcomes 1/3, off by .5 for 3 of 5
    probabilities = torch.tensor([0.25, 0.25, 0.75, 0.75, 1.0])
    outcomes = torch.tensor([False, True, True, False, False])
    error = expected_calibration_error(probabilities, outcomes, num_bins=2)
    assert isinstance(error, float)
    assert error == pytest.approx(0.4, abs=1e-12)


@pytest.mark.parametrize("num_bins", [1, 2, 10, 15])
def test_calibration_error_equals_a_python_loop(num_bins: int) -> None:
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(40, generator=generator, dtype=torch.float64)
    outcomes = torch.randint(3, (40,), generator=generator).double() / 2  # losses, ties, wins
    expected = reference_ece(probabilities.tolist(), outcomes.tolist(), num_bins)
    assert expected_calibration_error(probabilities, outcomes, num_bins=num_bins) == pytest.approx(expected, abs=1e-12)
    order = torch.randperm(40, generator=generator)
    permuted = expected_calibration_error(probabilities[order], outcomes[order], num_bins=num_bins)
    assert permuted == pytest.approx(expected, abs=1e-12)


def test_calibration_bins_are_closed_below_and_the_last_one_above() -> None:
    # 0.5 belongs to [0.5, 1]: errors 0.25 and 0.5 stay apart; in one bin they would partly cancel
    probabilities, outcomes = torch.tensor([0.25, 0.5, 1.0]), torch.tensor([0.0, 1.0, 1.0])
    assert expected_calibration_error(probabilities, outcomes, num_bins=2) == pytest.approx(0.25, abs=1e-12)
    assert expected_calibration_error(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0]), num_bins=4) == 0.0


def test_a_calibrated_and_a_confidently_wrong_model() -> None:
    half = torch.full((4,), 0.5)
    assert expected_calibration_error(half, torch.tensor([True, False, True, False]), num_bins=10) == 0.0
    assert expected_calibration_error(torch.ones(3), torch.zeros(3), num_bins=10) == 1.0


def test_calibration_refuses_what_is_no_probability() -> None:
    outcomes = torch.tensor([True])
    for bad in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"a probability is outside \[0, 1\] or NaN"):
            expected_calibration_error(torch.tensor([bad]), outcomes, num_bins=2)
    with pytest.raises(ValueError, match=r"a probability is outside \[0, 1\] or NaN"):
        expected_calibration_error(torch.tensor([0.5, 2.0]), torch.tensor([True, True]), num_bins=2)
    with pytest.raises(ValueError, match="there are no probabilities"):
        expected_calibration_error(torch.zeros(0), torch.zeros(0), num_bins=2)
    for num_bins in (0, -1):
        with pytest.raises(ValueError, match=rf"num_bins={num_bins} is below 1"):
            expected_calibration_error(torch.tensor([0.5]), outcomes, num_bins=num_bins)
