"""The Plackett-Luce model: probabilities of all orders by hand, ties, padding, and its special case of two."""

import math
from itertools import permutations

import pytest
import torch
from torch import Tensor

from rewards.bradley_terry import bradley_terry_loss
from rewards.plackett_luce import plackett_luce_loss

SCORES = [1.5, -0.5, 0.25, 3.0]


def order(*ranks: int) -> Tensor:
    """Who is worse than whom, by ranks; 1 is best."""
    found = torch.tensor(ranks)
    return found[None, :, None] < found[None, None, :]


def loss(scores: list[float], *ranks: int) -> float:
    return plackett_luce_loss(torch.tensor([scores], dtype=torch.float64), order(*ranks)).item()


def drawn(scores: list[float], best_first: tuple[int, ...]) -> float:
    """Probability of an order, drawn one response at a time."""
    probability, left = 1.0, list(best_first)
    while left:
        probability *= math.exp(scores[left[0]]) / sum(math.exp(scores[row]) for row in left)
        left.pop(0)
    return probability


def test_orders_have_the_probabilities_of_drawing_them_and_they_sum_to_one() -> None:
    total = 0.0
    for best_first in permutations(range(4)):
        ranks = [best_first.index(row) for row in range(4)]
        found = math.exp(-loss(SCORES, *ranks))
        assert found == pytest.approx(drawn(SCORES, best_first), rel=1e-12)
        total += found
    assert total == pytest.approx(1.0, rel=1e-12)


def test_golden_numbers() -> None:
    first = math.log(math.exp(2) + math.exp(1) + 1) - 2
    assert loss([2.0, 1.0, 0.0], 1, 2, 3) == pytest.approx(first + math.log(math.e + 1) - 1, abs=1e-12)
    assert loss([0.7] * 5, 3, 1, 5, 2, 4) == pytest.approx(math.log(math.factorial(5)), abs=1e-12)


def test_two_responses_are_bradley_and_terry() -> None:
    chosen, rejected = torch.tensor([2.0, -1.0, 0.0]), torch.tensor([0.5, 3.0, 0.0])
    both = torch.stack([chosen, rejected], dim=1)
    expected = bradley_terry_loss(chosen, rejected)
    torch.testing.assert_close(plackett_luce_loss(both, order(1, 2).expand(3, 2, 2)), expected)
    turned = plackett_luce_loss(both.flip(1), order(2, 1).expand(3, 2, 2))
    torch.testing.assert_close(turned, expected)


def test_tied_responses_are_compared_with_worse_ones_alone() -> None:
    a, b, c = 1.0, 0.2, -0.3

    def against(score: float) -> float:
        return math.log(math.exp(score) + math.exp(c)) - score

    assert loss([a, b, c], 1, 1, 2) == pytest.approx(against(a) + against(b), abs=1e-12)
    assert loss([a, b, c], 1, 1, 1) == 0.0, "nothing was said"
    worse = order(1, 1, 2)
    plackett_luce_loss(torch.tensor([[a, b, c]]), worse)
    assert worse.equal(order(1, 1, 2)), "the argument stays"


def test_constants_orders_of_rows_and_padding_change_nothing() -> None:
    expected = loss(SCORES, 2, 1, 4, 3)
    assert loss([score + 7.0 for score in SCORES], 2, 1, 4, 3) == pytest.approx(expected, abs=1e-12)
    assert loss(SCORES[::-1], 3, 4, 1, 2) == pytest.approx(expected, abs=1e-12)
    scores = torch.tensor([SCORES, [0.3, -0.4, 1e6, 1e6]], dtype=torch.float64)
    worse = torch.zeros(2, 4, 4, dtype=torch.bool)
    worse[0], worse[1, :2, :2] = order(2, 1, 4, 3)[0], order(1, 2)[0]
    found = plackett_luce_loss(scores, worse).item()
    assert found == pytest.approx((expected + loss([0.3, -0.4], 1, 2)) / 2, abs=1e-12), "the mean of the rankings"


def test_gradients_push_the_better_up_and_stay_finite() -> None:
    scores = torch.tensor([[80.0, -80.0, 0.0, 5.0]], requires_grad=True)
    worse = torch.zeros(1, 4, 4, dtype=torch.bool)
    worse[0, :3, :3] = order(3, 1, 2)[0]
    plackett_luce_loss(scores.half().float(), worse).backward()
    assert scores.grad is not None and scores.grad.isfinite().all()
    assert scores.grad[0, 0] > 0 > scores.grad[0, 1] and scores.grad[0, 3] == 0 and scores.grad.sum().abs() < 1e-6
    assert plackett_luce_loss(scores.detach().half(), worse).dtype == torch.float32
