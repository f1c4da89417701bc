"""KL estimators by enumeration of a five-way categorical, and the coefficient's controller by hand."""

import math
from collections.abc import Callable

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor

from stages.algorithms.kl import adapt_kl_coef, estimate_kl, kl_k1, kl_k2, kl_k3

Estimator = Callable[[Tensor, Tensor], Tensor]

POLICY = [0.40, 0.25, 0.15, 0.12, 0.08]
REFERENCE = [0.20, 0.20, 0.20, 0.15, 0.25]
EXACT_KL = sum(p * math.log(p / q) for p, q in zip(POLICY, REFERENCE, strict=True))


def logs(probabilities: list[float]) -> Tensor:
    """Log-probabilities in float64."""
    return torch.tensor([math.log(p) for p in probabilities], dtype=torch.float64)


def expectation(per_token: Tensor) -> float:
    """Exact expectation over the policy's own samples."""
    return sum(p * x for p, x in zip(POLICY, per_token.tolist(), strict=True))


def test_estimators_golden() -> None:
    logprobs, ref_logprobs = torch.tensor([-1.0, -2.0]), torch.tensor([-3.0, -1.5])
    # x = 2 and -0.5
    torch.testing.assert_close(kl_k1(logprobs, ref_logprobs), torch.tensor([2.0, -0.5]))
    torch.testing.assert_close(kl_k2(logprobs, ref_logprobs), torch.tensor([2.0, 0.125]))
    # exp(-2) - 1 + 2 = 1.1353353; exp(0.5) - 1 - 0.5 = 0.1487213
    torch.testing.assert_close(kl_k3(logprobs, ref_logprobs), torch.tensor([1.1353353, 0.1487213]))


@pytest.mark.parametrize(("name", "function"), [("k1", kl_k1), ("k2", kl_k2), ("k3", kl_k3)])
def test_estimate_kl_dispatches_by_name(name: str, function: Estimator) -> None:
    logprobs, ref_logprobs = torch.tensor([-1.0, -2.0]), torch.tensor([-3.0, -1.5])
    assert torch.equal(estimate_kl(logprobs, ref_logprobs, estimator=name), function(logprobs, ref_logprobs))  # type: ignore[arg-type]


def test_estimate_kl_refuses_an_unknown_name() -> None:
    match = "estimator='k4' is unknown; use 'k1', 'k2' or 'k3'|Type-check error"  # the latter under the hook
    with pytest.raises((ValueError, TypeCheckError), match=match):
        estimate_kl(torch.zeros(1), torch.zeros(1), estimator="k4")  # type: ignore[arg-type]


def test_checklist_24_k1_and_k3_are_unbiased_and_k2_is_not() -> None:
    policy, reference = logs(POLICY), logs(REFERENCE)
    assert kl_k1(policy, reference).min() < 0
    assert kl_k2(policy, reference).min() >= 0
    assert kl_k3(policy, reference).min() >= 0
    assert expectation(kl_k1(policy, reference)) == pytest.approx(EXACT_KL, abs=1e-12)
    assert expectation(kl_k3(policy, reference)) == pytest.approx(EXACT_KL, abs=1e-12)
    assert abs(expectation(kl_k2(policy, reference)) - EXACT_KL) > 0.005


def test_checklist_24_k2_agrees_to_second_order_where_the_kl_is_small() -> None:
    direction = [0.3, -0.5, 0.1, 0.4, -0.2]
    errors = []
    for size in (1e-2, 1e-3):
        weights = [p * math.exp(size * d) for p, d in zip(POLICY, direction, strict=True)]
        reference = [w / sum(weights) for w in weights]
        exact = sum(p * math.log(p / q) for p, q in zip(POLICY, reference, strict=True))
        errors.append(abs(expectation(kl_k2(logs(POLICY), logs(reference))) - exact) / exact)
    assert errors[0] < 1e-2
    assert errors[1] == pytest.approx(errors[0] / 10, rel=0.1)  # the relative error falls with the first power


def exact_kl_gradient(logits: Tensor, reference: Tensor) -> Tensor:
    """Gradient of KL(softmax(logits) || reference) with respect to the logits: p * (x - KL)."""
    policy = logits.softmax(-1)
    log_ratio = policy.log() - reference
    return policy * (log_ratio - (policy * log_ratio).sum())


def expected_loss_gradient(estimator: Estimator, logits: Tensor, reference: Tensor) -> Tensor:
    """Sum of p(token) * gradient of estimator(token): the sampling itself is not differentiated."""
    total = torch.zeros_like(logits)
    probabilities = logits.softmax(-1)
    for token in range(5):
        leaf = logits.clone().requires_grad_()
        logprob = leaf.log_softmax(-1)[token]
        estimator(logprob, reference[token]).backward()
        assert leaf.grad is not None
        total += probabilities[token] * leaf.grad
    return total


def expected_reward_gradient(estimator: Estimator, logits: Tensor, reference: Tensor) -> Tensor:
    """Policy gradient of the expected penalty: sum of p(token) * penalty(token) * gradient of log p."""
    total = torch.zeros_like(logits)
    probabilities = logits.softmax(-1)
    for token in range(5):
        leaf = logits.clone().requires_grad_()
        logprob = leaf.log_softmax(-1)[token]
        penalty = estimator(logprob, reference[token]).detach()
        (penalty * logprob).backward()
        assert leaf.grad is not None
        total += probabilities[token] * leaf.grad
    return total


def test_checklist_28_k1_in_reward_and_k2_in_loss_give_the_gradient_of_the_kl() -> None:
    logits, reference = logs(POLICY), logs(REFERENCE)
    exact = exact_kl_gradient(logits, reference)
    assert exact.abs().max() > 0.05
    tight = {"rtol": 0.0, "atol": 1e-10}
    torch.testing.assert_close(expected_reward_gradient(kl_k1, logits, reference), exact, **tight)
    torch.testing.assert_close(expected_loss_gradient(kl_k2, logits, reference), exact, **tight)


def test_checklist_28_k1_in_loss_has_no_gradient_and_k3_in_loss_a_biased_one() -> None:
    logits, reference = logs(POLICY), logs(REFERENCE)
    exact = exact_kl_gradient(logits, reference)
    k1_in_loss = expected_loss_gradient(kl_k1, logits, reference)
    torch.testing.assert_close(k1_in_loss, torch.zeros_like(exact), rtol=0.0, atol=1e-12)
    k3_in_loss = expected_loss_gradient(kl_k3, logits, reference)
    assert (k3_in_loss - exact).abs().max() > 0.01
    # It is the gradient of KL(reference || policy): policy - reference.
    torch.testing.assert_close(k3_in_loss, logits.exp() - reference.exp(), rtol=0.0, atol=1e-10)


@pytest.mark.parametrize("function", [kl_k1, kl_k2, kl_k3])
def test_equal_policies_have_kl_exactly_zero(function: Estimator) -> None:
    logprobs = torch.tensor([[-0.1, -3.0], [-20.0, -1e-6]])
    assert torch.equal(function(logprobs, logprobs.clone()), torch.zeros(2, 2))


def test_k3_is_not_negative_and_keeps_its_digits_where_the_policies_nearly_agree() -> None:
    x = torch.logspace(-7, 1, 200)
    for log_ratio in (x, -x):
        assert kl_k3(log_ratio, torch.zeros(200)).min() >= 0
    # k3(x) = x^2 / 2 - x^3 / 6 + ...: 5e-9 at x = 1e-4, of which exp(-x) - 1 + x keeps nothing in float32
    torch.testing.assert_close(kl_k3(torch.tensor([1e-4]), torch.zeros(1)), torch.tensor([5e-9]), rtol=1e-2, atol=0.0)


def test_checklist_45_k3_bounds_the_log_ratio_and_leaves_normal_values() -> None:
    far = kl_k3(torch.tensor([-100.0, 100.0, math.inf]), torch.zeros(3))
    # log-ratios 20, -20 and -20 of reference to policy: exp(20) - 1 - 20 and exp(-20) - 1 + 20
    torch.testing.assert_close(far, torch.tensor([485165174.41, 19.0, 19.0]))
    near = kl_k3(torch.tensor([-19.5, 19.5], dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    expected = [math.exp(19.5) - 20.5, math.exp(-19.5) + 18.5]
    torch.testing.assert_close(near, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("function", [kl_k1, kl_k2, kl_k3])
def test_gradients_of_estimators(function: Estimator) -> None:
    logprobs = torch.tensor([-1.0, -2.5, -0.2], dtype=torch.float64, requires_grad=True)
    ref_logprobs = torch.tensor([-1.5, -0.5, -0.3], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (logprobs, ref_logprobs))


# --- controller ---


@pytest.mark.parametrize(
    ("measured_kl", "expected"),
    [
        (6.0, 0.1),  # on target
        (6.6, 0.102),  # error 0.1: 0.1 * (1 + 0.1 * 200 / 1000)
        (5.4, 0.098),  # error -0.1
        (7.2, 0.104),  # error 0.2, the bound
        (60.0, 0.104),  # error 9, cut to 0.2
        (0.0, 0.096),  # error -1, cut to -0.2
        (-3.0, 0.096),
    ],
)
def test_checklist_30_controller_moves_the_coefficient_by_the_clipped_error(
    measured_kl: float, expected: float
) -> None:
    new = adapt_kl_coef(0.1, measured_kl=measured_kl, target_kl=6.0, horizon=1000, num_episodes=200)
    assert new == pytest.approx(expected, rel=1e-12)


def test_checklist_30_controller_counts_episodes_and_not_steps() -> None:
    one_step = adapt_kl_coef(0.1, measured_kl=9.0, target_kl=6.0, horizon=10_000, num_episodes=64)
    two_steps = 0.1
    for _ in range(2):
        two_steps = adapt_kl_coef(two_steps, measured_kl=9.0, target_kl=6.0, horizon=10_000, num_episodes=32)
    assert one_step == pytest.approx(two_steps, rel=1e-5)  # equal but for (0.2 * 32 / 10000)^2 = 4e-7
    assert one_step == pytest.approx(0.1 * 1.00128, rel=1e-12)  # 1 + 0.2 * 64 / 10000


def test_checklist_30_controller_is_a_pure_function_of_its_state() -> None:
    arguments = {"measured_kl": 9.0, "target_kl": 6.0, "horizon": 1000, "num_episodes": 100}
    uninterrupted = [0.05]
    for _ in range(6):
        uninterrupted.append(adapt_kl_coef(uninterrupted[-1], **arguments))  # type: ignore[arg-type]
    saved = float(repr(uninterrupted[3]))
    resumed = [saved]
    for _ in range(3):
        resumed.append(adapt_kl_coef(resumed[-1], **arguments))  # type: ignore[arg-type]
    assert resumed == uninterrupted[3:]
    assert uninterrupted == sorted(uninterrupted) and uninterrupted[0] < uninterrupted[-1]


@pytest.mark.parametrize("target_kl", [0.0, -1.0, math.nan])
def test_a_target_not_above_zero_is_refused(target_kl: float) -> None:
    with pytest.raises(ValueError, match=rf"target_kl={target_kl} is not above 0; the error is relative to it"):
        adapt_kl_coef(0.1, measured_kl=1.0, target_kl=target_kl, horizon=1000, num_episodes=1)


@pytest.mark.parametrize("horizon", [0, -5])
def test_a_horizon_not_above_zero_is_refused(horizon: int) -> None:
    with pytest.raises(ValueError, match=rf"horizon={horizon} is not above 0; it is a number of episodes"):
        adapt_kl_coef(0.1, measured_kl=1.0, target_kl=6.0, horizon=horizon, num_episodes=1)


@pytest.mark.parametrize("num_episodes", [500, 501])
def test_a_step_of_five_horizons_is_refused(num_episodes: int) -> None:
    with pytest.raises(ValueError, match=rf"num_episodes={num_episodes} is 5 times horizon=100 or more"):
        adapt_kl_coef(0.1, measured_kl=1.0, target_kl=6.0, horizon=100, num_episodes=num_episodes)


def test_small_targets_and_horizons_and_nearly_five_horizons_are_taken() -> None:
    assert adapt_kl_coef(1.0, measured_kl=0.0, target_kl=0.5, horizon=0.5, num_episodes=2) == pytest.approx(0.2)
    assert adapt_kl_coef(1.0, measured_kl=0.0, target_kl=6.0, horizon=100, num_episodes=499) > 0
