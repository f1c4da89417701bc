"""Reward shaping and GAE: published golden numbers, a float64 loop, and relations between the two."""

from typing import Any

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor

from stages.algorithms.advantages import estimate_advantages, estimate_gae, shape_rewards
from stages.algorithms.kl import kl_k1
from stages.algorithms.masking import masked_whiten

NAN = float("nan")


def reference_gae(
    rewards: list[float], values: list[float], gamma: float, gae_lambda: float
) -> tuple[list[float], list[float]]:
    """GAE as the sum of its definition, quadratic in time and in Python floats, for one unpadded response."""
    length = len(rewards)
    next_values = [*values[1:], 0.0]
    deltas = [rewards[t] + gamma * next_values[t] - values[t] for t in range(length)]
    advantages = [sum((gamma * gae_lambda) ** (k - t) * deltas[k] for k in range(t, length)) for t in range(length)]
    return advantages, [a + v for a, v in zip(advantages, values, strict=True)]


def random_batch(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards, values and a right-padded mask with lengths 1, 3, 6 and 7 of 7."""
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, 4, 7, generator=generator, dtype=torch.float64).unbind(0)
    mask = torch.arange(7).unsqueeze(0) < torch.tensor([[1], [3], [6], [7]])
    return rewards, values, mask


# --- rewards ---


def test_shape_rewards_golden() -> None:
    mask = torch.tensor([[True, True, False], [True, True, True], [True, False, False]])
    token_kl = torch.tensor([[2.0, 4.0, 9.0], [-1.0, 0.0, 1.0], [3.0, 9.0, 9.0]])
    rewards = shape_rewards(torch.tensor([1.0, -2.0, 0.5]), token_kl, mask, kl_coef=0.05)
    # row 0: -0.05 * 2, -0.05 * 4 + 1; row 1: 0.05, 0, -0.05 - 2; row 2: -0.15 + 0.5
    expected = torch.tensor([[-0.1, 0.8, 0.0], [0.05, 0.0, -2.05], [0.35, 0.0, 0.0]])
    torch.testing.assert_close(rewards, expected)


def test_checklist_27_score_is_added_once_at_the_last_token_and_rewards_sum_to_score_minus_kl() -> None:
    logprobs, ref_logprobs, mask = random_batch(1)
    scores = torch.tensor([0.7, -1.3, 2.0, 0.0], dtype=torch.float64)
    token_kl = kl_k1(logprobs, ref_logprobs)
    rewards = shape_rewards(scores, token_kl, mask, kl_coef=0.3)
    without_score = shape_rewards(torch.zeros_like(scores), token_kl, mask, kl_coef=0.3)
    for row, length in enumerate((1, 3, 6, 7)):
        kl = [logprobs[row, t].item() - ref_logprobs[row, t].item() for t in range(length)]
        assert rewards[row].sum().item() == pytest.approx(scores[row].item() - 0.3 * sum(kl), abs=1e-12)
        assert without_score[row, :length].tolist() == pytest.approx([-0.3 * x for x in kl], abs=1e-12)
        added = (rewards[row] - without_score[row]).tolist()
        assert added == pytest.approx([scores[row].item() * (t == length - 1) for t in range(7)], abs=1e-12)


def test_checklist_29_padding_pays_no_kl() -> None:
    mask = torch.tensor([[True, True, False, False]])
    scores = torch.tensor([1.0])
    expected = torch.tensor([[-1.0, -1.0, 0.0, 0.0]])
    for garbage in (0.0, 1e30, NAN, float("inf")):
        token_kl = torch.tensor([[1.0, 2.0, garbage, garbage]])
        assert torch.equal(shape_rewards(scores, token_kl, mask, kl_coef=1.0), expected)


def test_scores_of_another_precision_are_taken() -> None:
    mask = torch.ones(1, 2, dtype=torch.bool)
    rewards = shape_rewards(torch.tensor([1.0], dtype=torch.bfloat16), torch.zeros(1, 2), mask, kl_coef=0.1)
    assert torch.equal(rewards, torch.tensor([[0.0, 1.0]]))


def test_shape_rewards_does_not_write_into_its_arguments() -> None:
    token_kl, mask = torch.ones(1, 2), torch.tensor([[True, False]])
    shape_rewards(torch.tensor([1.0]), token_kl, mask, kl_coef=0.1)
    assert torch.equal(token_kl, torch.ones(1, 2))


def test_shape_rewards_refuses_a_row_without_a_token() -> None:
    mask = torch.tensor([[True, False], [False, False]])
    with pytest.raises(ValueError, match=r"no True entry in rows \[1\]"):
        shape_rewards(torch.zeros(2), torch.zeros(2, 2), mask, kl_coef=0.1)


# --- advantages ---


@pytest.mark.parametrize(
    ("gae_lambda", "expected"),
    [
        # deltas with gamma 1/2: 1 + 0.5*2 - 4 = -2; 0 + 0.5*6 - 2 = 1; 3 + 0 - 6 = -3
        (0.0, [-2.0, 1.0, -3.0]),
        # lambda 1/2: A_2 = -3; A_1 = 1 - 3/4 = 0.25; A_0 = -2 + 0.25/4 = -1.9375
        (0.5, [-1.9375, 0.25, -3.0]),
        # lambda 1: A_1 = 1 - 3/2 = -0.5; A_0 = -2 - 0.25 = -2.25
        (1.0, [-2.25, -0.5, -3.0]),
    ],
)
def test_gae_golden(gae_lambda: float, expected: list[float]) -> None:
    rewards, values = torch.tensor([[1.0, 0.0, 3.0]]), torch.tensor([[4.0, 2.0, 6.0]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    advantages, returns = estimate_gae(rewards, values, mask, gamma=0.5, gae_lambda=gae_lambda)
    assert advantages.tolist() == [expected]
    assert returns.tolist() == [[a + v for a, v in zip(expected, [4.0, 2.0, 6.0], strict=True)]]


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(1.0, 0.95), (0.9, 0.7), (0.5, 0.0), (1.0, 1.0), (0.0, 0.5)])
def test_checklist_32_gae_equals_a_float64_reference(gamma: float, gae_lambda: float) -> None:
    rewards, values, mask = random_batch()
    advantages, returns = estimate_gae(rewards, values, mask, gamma=gamma, gae_lambda=gae_lambda)
    for row, length in enumerate((1, 3, 6, 7)):
        expected = reference_gae(rewards[row, :length].tolist(), values[row, :length].tolist(), gamma, gae_lambda)
        padding = [0.0] * (7 - length)
        assert advantages[row].tolist() == pytest.approx(expected[0] + padding, abs=1e-12)
        assert returns[row].tolist() == pytest.approx(expected[1] + padding, abs=1e-12)


def test_checklist_32_lambda_one_and_gamma_one_return_the_reward_to_go() -> None:
    rewards, values, mask = random_batch()
    _, returns = estimate_gae(rewards, values, mask, gamma=1.0, gae_lambda=1.0)
    for row, length in enumerate((1, 3, 6, 7)):
        reward_to_go = [sum(rewards[row, t:length].tolist()) for t in range(length)]
        assert returns[row, :length].tolist() == pytest.approx(reward_to_go, abs=1e-12)


def test_checklist_33_nothing_is_bootstrapped_after_the_last_token() -> None:
    rewards, values = torch.tensor([[0.0, 1.0, 5.0]]), torch.tensor([[0.5, 0.5, 100.0]])
    mask = torch.tensor([[True, True, False]])
    advantages, returns = estimate_gae(rewards, values, mask, gamma=1.0, gae_lambda=0.5)
    # A_1 = 1 - 0.5 (not 1 + 100 - 0.5); A_0 = 0 + 0.5 - 0.5 + 0.5 * 0.5
    assert advantages.tolist() == [[0.25, 0.5, 0.0]]
    assert returns.tolist() == [[0.75, 1.0, 0.0]]


def test_checklist_33_tokens_that_are_not_the_policys_own_are_stepped_over() -> None:
    kept = torch.tensor([[True, False, False, True, True, False]])
    rewards, values = torch.full((1, 6), NAN), torch.full((1, 6), NAN)
    rewards[kept], values[kept] = torch.tensor([0.1, 0.2, 1.0]), torch.tensor([0.3, 0.4, 0.6])
    advantages, returns = estimate_gae(rewards, values, kept, gamma=0.9, gae_lambda=0.8)
    expected = reference_gae([0.1, 0.2, 1.0], [0.3, 0.4, 0.6], 0.9, 0.8)
    assert advantages[kept].tolist() == pytest.approx(expected[0], abs=1e-6)
    assert returns[kept].tolist() == pytest.approx(expected[1], abs=1e-6)
    assert torch.equal(advantages[~kept], torch.zeros(3)) and torch.equal(returns[~kept], torch.zeros(3))


def test_checklist_35_returns_come_from_unwhitened_advantages() -> None:
    rewards, values, mask = random_batch()
    advantages, returns = estimate_gae(rewards, values, mask, gamma=1.0, gae_lambda=0.95)
    torch.testing.assert_close(returns[mask], advantages[mask] + values[mask])
    assert abs(advantages[mask].mean().item()) > 0.05
    assert not torch.allclose(returns[mask], masked_whiten(advantages, mask)[mask] + values[mask])


@pytest.mark.parametrize("garbage", [NAN, float("inf"), 1e30, 0.0])
def test_checklist_39_padding_never_enters_gae(garbage: float) -> None:
    rewards, values, mask = random_batch()
    expected = estimate_gae(rewards, values, mask, gamma=0.9, gae_lambda=0.9)
    actual = estimate_gae(
        rewards.masked_fill(~mask, garbage),
        values.masked_fill(~mask, garbage),
        mask,
        gamma=0.9,
        gae_lambda=0.9,
    )
    assert torch.equal(actual[0], expected[0]) and torch.equal(actual[1], expected[1])


def test_more_padding_and_another_order_of_rows_change_nothing() -> None:
    rewards, values, mask = random_batch()
    expected = estimate_gae(rewards, values, mask, gamma=0.9, gae_lambda=0.9)
    order = torch.tensor([2, 0, 3, 1])
    longer = [
        torch.cat([x[order], torch.ones(4, 3, dtype=x.dtype) if x.dtype != torch.bool else torch.zeros(4, 3) > 0], 1)
        for x in (rewards, values, mask)
    ]
    actual = estimate_gae(longer[0], longer[1], longer[2], gamma=0.9, gae_lambda=0.9)
    for wide, narrow in zip(actual, expected, strict=True):
        assert torch.equal(wide[:, :7], narrow[order])
        assert torch.equal(wide[:, 7:], torch.zeros(4, 3, dtype=torch.float64))


def test_a_perfect_critic_leaves_no_advantage() -> None:
    rewards, _, mask = random_batch()
    kept = rewards.masked_fill(~mask, 0.0)
    values = kept.flip(1).cumsum(1).flip(1)  # the reward to go
    advantages, returns = estimate_gae(rewards, values, mask, gamma=1.0, gae_lambda=0.6)
    torch.testing.assert_close(advantages, torch.zeros_like(advantages))
    torch.testing.assert_close(returns, values.masked_fill(~mask, 0.0))


# --- one signature for all estimators ---

REWARDS = torch.tensor([[1.0, 2.0], [0.0, 1.0], [4.0, 50.0], [0.0, 1.0]])
TWO_OF_EACH = torch.tensor([0, 1, 0, 1])
TOKENS = torch.tensor([[True, True], [True, True], [True, False], [True, True]])


def estimate(estimator: Any, values: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Advantages and returns of the four responses to two prompts, with gamma 1/2 and lambda 1/4."""
    return estimate_advantages(REWARDS, values, TOKENS, TWO_OF_EACH, estimator=estimator, gamma=0.5, gae_lambda=0.25)


def test_estimate_advantages_by_gae() -> None:
    advantages, returns = estimate("gae", torch.full((4, 2), 2.0))
    # row 0: A_1 = 2 - 2 = 0, A_0 = 1 + 0.5 * 2 - 2 = 0; rows 1, 3: A_1 = -1, A_0 = 0 + 1 - 2 - 1/8; row 2: 4 - 2
    assert advantages.tolist() == [[0.0, 0.0], [-1.125, -1.0], [2.0, 0.0], [-1.125, -1.0]]
    assert returns is not None
    assert returns.tolist() == [[2.0, 2.0], [0.875, 1.0], [4.0, 0.0], [0.875, 1.0]]


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        # returns 3 and 4 of one prompt, 1 and 1 of the other
        ("rloo", [[-1.0, -1.0], [0.0, 0.0], [1.0, 0.0], [0.0, 0.0]]),
        # 0.5 from the mean, standard deviation sqrt(1/2): 0.5 / (0.7071068 + 0.0001)
        ("grpo", [[-0.7070068, -0.7070068], [0.0, 0.0], [0.7070068, 0.0], [0.0, 0.0]]),
        ("reinforce_plus_plus", [[2.0, 2.0], [0.5, 1.0], [4.0, 0.0], [0.5, 1.0]]),
    ],
)
def test_estimate_advantages_without_a_critic_gives_no_returns(estimator: str, expected: list[list[float]]) -> None:
    advantages, returns = estimate(estimator, None)
    torch.testing.assert_close(advantages, torch.tensor(expected))
    assert returns is None


def test_gae_without_values_is_refused() -> None:
    match = "estimator='gae' came with values=None; it needs the value of each token. Give the critic's predictions"
    with pytest.raises(ValueError, match=match):
        estimate("gae", None)


@pytest.mark.parametrize("estimator", ["rloo", "grpo", "reinforce_plus_plus"])
def test_values_that_nothing_would_use_are_refused(estimator: str) -> None:
    match = f"estimator='{estimator}' came with values, but only 'gae' has a critic. Give values=None"
    with pytest.raises(ValueError, match=match):
        estimate(estimator, torch.zeros(4, 2))


def test_an_unknown_estimator_is_refused() -> None:
    match = "estimator='ppo' is unknown; use 'gae', 'rloo', 'grpo' or 'reinforce_plus_plus'|Type-check error"
    with pytest.raises((ValueError, TypeCheckError), match=match):  # the latter under the hook
        estimate("ppo", None)
