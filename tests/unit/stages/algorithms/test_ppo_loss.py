"""PPO losses against numbers worked out by hand and a Python loop, with signs, clips, masks and gradients."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from stages.algorithms.logprobs import entropy_from_logits, gather_logprobs
from stages.algorithms.masking import masked_mean
from stages.algorithms.ppo_loss import (
    PolicyLoss,
    ValueLoss,
    entropy_bonus,
    nll_loss,
    ppo_policy_loss,
    ppo_value_loss,
)

NAN = float("nan")
MASK = torch.arange(6).unsqueeze(0) < torch.tensor([[2], [6], [1], [4]])  # 13 tokens


def random_batch(num: int, seed: int = 0) -> list[Tensor]:
    """As many float64 tensors [4, 6] as asked for."""
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(num, 4, 6, generator=generator, dtype=torch.float64).unbind(0))


def policy_loss(*tensors: Tensor, weights: Tensor | None = None, dual_clip: float | None = None) -> PolicyLoss:
    """The policy loss of log-probabilities, old ones and advantages under MASK."""
    return ppo_policy_loss(
        *tensors, MASK, clip_range=0.2, dual_clip=dual_clip, num_tokens=13, importance_weights=weights
    )


def policy_loss_of(
    ratios: list[float], advantages: list[float], *, clip_range: float = 0.2, dual_clip: float | None = None
) -> PolicyLoss:
    """The policy loss of one unpadded row with the given ratios."""
    logprobs = torch.tensor([ratios], dtype=torch.float64).log()
    return ppo_policy_loss(
        logprobs,
        torch.zeros_like(logprobs),
        torch.tensor([advantages], dtype=torch.float64),
        torch.ones(1, len(ratios), dtype=torch.bool),
        clip_range=clip_range,
        dual_clip=dual_clip,
        num_tokens=len(ratios),
        importance_weights=None,
    )


# --- policy loss ---


@pytest.mark.parametrize(("logprob", "ratio"), [(-100.0, math.exp(-20)), (100.0, math.exp(20)), (3.0, math.exp(3))])
def test_checklist_45_policy_loss_stays_finite_however_far_the_policy_moved(logprob: float, ratio: float) -> None:
    logprobs = torch.tensor([[logprob]], requires_grad=True)
    old, advantages, mask = torch.zeros(1, 1), torch.tensor([[-1.0]]), torch.ones(1, 1) > 0
    result = ppo_policy_loss(
        logprobs, old, advantages, mask, clip_range=0.2, dual_clip=None, num_tokens=1, importance_weights=None
    )
    result.loss.backward()
    assert logprobs.grad is not None and logprobs.grad.isfinite().all()
    assert result.ratio.item() == pytest.approx(ratio, rel=1e-6)
    assert result.loss.item() == pytest.approx(max(ratio, 0.8), rel=1e-6)  # advantage -1: max(ratio, clipped ratio)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.5, 2.0, -2.4, 1.0),  # max(-3, -1.2 * 2)
        (0.5, 2.0, -1.0, 0.0),  # max(-1, -0.8 * 2): moved against its advantage, not clipped
        (1.5, -2.0, 3.0, 0.0),  # max(3, 2.4)
        (0.5, -2.0, 1.6, 1.0),  # max(1, 1.6)
        (1.1, 2.0, -2.2, 0.0),  # inside the range
        (0.9, -2.0, 1.8, 0.0),
        (1.0, 2.0, -2.0, 0.0),
        (1.5, 0.0, 0.0, 0.0),
    ],
)
def test_policy_loss_golden(ratio: float, advantage: float, loss: float, clipped: float) -> None:
    result = policy_loss_of([ratio], [advantage])
    assert result.loss.item() == pytest.approx(loss, abs=1e-12)
    assert result.clip_fraction.item() == clipped
    assert result.ratio.item() == pytest.approx(ratio, abs=1e-12)
    assert result.approx_kl.item() == pytest.approx(0.5 * math.log(ratio) ** 2, abs=1e-12)


@pytest.mark.parametrize("clip_range", [0.1, 0.3])
def test_policy_loss_clips_at_the_range_given(clip_range: float) -> None:
    assert policy_loss_of([1.5], [1.0], clip_range=clip_range).loss.item() == pytest.approx(-1 - clip_range)
    assert policy_loss_of([0.5], [-1.0], clip_range=clip_range).loss.item() == pytest.approx(1 - clip_range)


def test_policy_loss_equals_a_python_loop() -> None:
    logprobs, old, advantages, weights = random_batch(4)
    weights = weights.abs()
    result = ppo_policy_loss(
        logprobs, old, advantages, MASK, clip_range=0.2, dual_clip=1.5, num_tokens=20, importance_weights=weights
    )
    loss = approx_kl = clips = dual_clips = ratios = 0.0
    for b in range(4):
        for t in range(6):
            if not MASK[b, t]:
                continue
            log_ratio, advantage = (logprobs[b, t] - old[b, t]).item(), advantages[b, t].item()
            ratio = math.exp(log_ratio)
            surrogate = min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)
            objective = max(surrogate, 1.5 * advantage) if advantage < 0 else surrogate
            loss -= weights[b, t].item() * objective / 20
            approx_kl += 0.5 * log_ratio**2 / 20
            clips += (surrogate < ratio * advantage) / 20
            dual_clips += (objective > surrogate) / 20
            ratios += ratio / 20
    assert [x.item() for x in result] == pytest.approx([loss, approx_kl, clips, dual_clips, ratios], abs=1e-12)
    assert 0 < clips < 13 / 20 and 0 < dual_clips < 13 / 20


def test_checklist_40_before_the_first_step_ratio_is_one_and_nothing_moved_or_clipped() -> None:
    logprobs, advantages = random_batch(2)
    result = policy_loss(logprobs, logprobs.clone(), advantages)
    assert result.ratio.item() == 1.0
    assert result.approx_kl.item() == 0.0
    assert result.clip_fraction.item() == 0.0
    assert result.loss.item() == pytest.approx(-sum(advantages[MASK].tolist()) / 13, abs=1e-12)


def test_checklist_40_clip_range_zero_still_clips_nothing_before_the_first_step() -> None:
    assert policy_loss_of([1.0, 1.0], [1.0, -1.0], clip_range=0.0).clip_fraction.item() == 0.0


@pytest.mark.parametrize(
    ("ratio", "advantage", "gradient"),
    [
        (1.5, 2.0, 0.0),
        (0.5, -2.0, 0.0),
        (1.5, -2.0, 3.0),  # -A * ratio: going down lowers the loss
        (0.5, 2.0, -1.0),
        (1.1, 2.0, -2.2),
    ],
)
def test_policy_gradient_is_zero_where_clipped_and_signed_where_not(
    ratio: float, advantage: float, gradient: float
) -> None:
    logprobs = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    old, advantages = torch.tensor([[[0.0]], [[advantage]]], dtype=torch.float64)
    ppo_policy_loss(
        logprobs,
        old,
        advantages,
        torch.ones(1, 1) > 0,
        clip_range=0.2,
        dual_clip=None,
        num_tokens=1,
        importance_weights=None,
    ).loss.backward()
    assert logprobs.grad is not None
    assert logprobs.grad.item() == pytest.approx(gradient, abs=1e-12)


def test_policy_loss_has_gradient_into_logprobs_alone_and_its_metrics_none() -> None:
    leaves = [x.requires_grad_() for x in random_batch(4)]
    result = policy_loss(leaves[0], leaves[1], leaves[2], weights=leaves[3])
    assert not any(metric.requires_grad for metric in result[1:])
    result.loss.backward()
    assert leaves[0].grad is not None and leaves[0].grad.abs().sum() > 0
    assert all(leaf.grad is None for leaf in leaves[1:])


def test_gradient_of_the_policy_loss() -> None:
    logprobs, old, advantages, weights = random_batch(4, seed=4)
    assert torch.autograd.gradcheck(
        lambda x: policy_loss(x, old, advantages, weights=weights, dual_clip=1.5).loss,
        (logprobs.requires_grad_(),),
    )


# --- dual clip ---


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "dual_clipped"),
    [
        (4.0, -2.0, 6.0, 0.0, 1.0),  # max(8, 2.4) = 8, held at 3 * 2
        (3.5, -0.5, 1.5, 0.0, 1.0),
        (2.5, -2.0, 5.0, 5.0, 0.0),  # below the bound
        (0.5, -2.0, 1.6, 0.0, 0.0),  # the ordinary clip
        (1.0, -2.0, 2.0, 2.0, 0.0),
        (4.0, 2.0, -2.4, 0.0, 0.0),  # positive advantages have the ordinary clip alone
        (0.1, 2.0, -0.2, -0.2, 0.0),
        (4.0, 0.0, 0.0, 0.0, 0.0),
    ],
)
def test_dual_clip_golden(ratio: float, advantage: float, loss: float, gradient: float, dual_clipped: float) -> None:
    logprobs = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    old, advantages = torch.tensor([[[0.0]], [[advantage]]], dtype=torch.float64)
    result = ppo_policy_loss(
        logprobs, old, advantages, torch.ones(1, 1) > 0,
        clip_range=0.2, dual_clip=3.0, num_tokens=1, importance_weights=None,
    )  # fmt: skip
    result.loss.backward()
    assert result.loss.item() == pytest.approx(loss, abs=1e-12)
    assert result.dual_clip_fraction.item() == dual_clipped
    assert logprobs.grad is not None
    assert logprobs.grad.item() == pytest.approx(gradient, abs=1e-12)


@pytest.mark.parametrize("dual_clip", [1.5, 2.0, 8.0])
def test_dual_clip_bounds_at_the_value_given(dual_clip: float) -> None:
    result = policy_loss_of([10.0, 1.1], [-0.5, -3.0], dual_clip=dual_clip)
    assert result.loss.item() == pytest.approx((0.5 * dual_clip + 1.1 * 3.0) / 2, abs=1e-12)
    assert result.dual_clip_fraction.item() == 0.5
    assert result.clip_fraction.item() == 0.0


def test_without_a_dual_clip_or_with_a_wide_one_nothing_is_bounded() -> None:
    tensors = random_batch(3)
    unbounded, wide = policy_loss(*tensors), policy_loss(*tensors, dual_clip=1e9)
    assert [x.item() for x in wide] == [x.item() for x in unbounded]
    assert unbounded.dual_clip_fraction.item() == 0.0
    assert policy_loss(*tensors, dual_clip=1.5).loss < unbounded.loss


def test_importance_weights_apply_after_the_dual_clip_and_do_not_count_as_one() -> None:
    logprobs = torch.tensor([[4.0, 1.0]], dtype=torch.float64).log()
    old, advantages, mask = torch.zeros_like(logprobs), torch.full_like(logprobs, -1.0), torch.ones(1, 2) > 0
    result = ppo_policy_loss(
        logprobs, old, advantages, mask, clip_range=0.2, dual_clip=3.0, num_tokens=1,
        importance_weights=torch.tensor([[2.0, 0.5]], dtype=torch.float64),
    )  # fmt: skip
    assert result.loss.item() == pytest.approx(2.0 * 3.0 + 0.5 * 1.0, abs=1e-12)
    assert result.dual_clip_fraction.item() == 1.0


@pytest.mark.parametrize("dual_clip", [1.0, 0.5, -2.0, NAN])
def test_a_dual_clip_not_above_one_is_refused(dual_clip: float) -> None:
    with pytest.raises(ValueError, match=rf"dual_clip={dual_clip} is not above 1, so tokens of the unchanged policy"):
        policy_loss_of([1.0], [1.0], dual_clip=dual_clip)


def test_weights_of_one_change_nothing() -> None:
    tensors = random_batch(3)
    weighted, plain = policy_loss(*tensors, weights=torch.ones(4, 6, dtype=torch.float64)), policy_loss(*tensors)
    assert [x.item() for x in weighted] == [x.item() for x in plain]


# --- microbatches, metrics, padding ---


@pytest.mark.parametrize("sizes", [[1, 1, 1, 1], [2, 2], [3, 1], [1, 3]])
def test_checklist_43_microbatches_add_up_to_the_minibatch(sizes: list[int]) -> None:
    tensors = random_batch(7)
    weights = tensors[6].abs()

    def run(sizes: list[int]) -> tuple[list[list[float]], Tensor, Tensor]:
        logprobs, values = (x.clone().requires_grad_() for x in (tensors[0], tensors[3]))
        totals: list[list[float]] = []
        for rows in torch.arange(4).split(sizes):  # type: ignore[no-untyped-call]
            policy = ppo_policy_loss(
                logprobs[rows],
                tensors[1][rows],
                tensors[2][rows],
                MASK[rows],
                clip_range=0.2,
                dual_clip=1.5,
                num_tokens=13,
                importance_weights=weights[rows],
            )
            value = ppo_value_loss(
                values[rows],
                tensors[4][rows],
                tensors[5][rows],
                MASK[rows],
                value_clip_range=0.2,
                num_tokens=13,
            )
            (policy.loss + value.loss).backward()
            totals.append([x.item() for x in (*policy, *value)])
        assert logprobs.grad is not None and values.grad is not None
        return totals, logprobs.grad, values.grad

    (whole,), policy_gradient, value_gradient = run([4])
    parts, *gradients = run(sizes)
    assert [sum(part) for part in zip(*parts, strict=True)] == pytest.approx(whole, abs=1e-12)
    torch.testing.assert_close(gradients[0], policy_gradient, rtol=0.0, atol=1e-15)
    torch.testing.assert_close(gradients[1], value_gradient, rtol=0.0, atol=1e-15)


def test_checklist_44_metrics_are_masked_means() -> None:
    logprobs, old, advantages, values, old_values, returns = random_batch(6)
    policy = policy_loss(logprobs, old, advantages, dual_clip=1.5)
    value = ppo_value_loss(values, old_values, returns, MASK, value_clip_range=0.2, num_tokens=13)
    alone = [
        policy_loss_of([math.exp((logprobs - old)[b, t].item())], [advantages[b, t].item()], dual_clip=1.5)
        for b, t in MASK.nonzero().tolist()
    ]
    assert 0 < policy.dual_clip_fraction < 1
    for field in ("loss", "approx_kl", "clip_fraction", "dual_clip_fraction", "ratio"):
        expected = sum(getattr(token, field).item() for token in alone) / 13
        assert getattr(policy, field).item() == pytest.approx(expected, abs=1e-12)
    clipped = 0
    for b, t in MASK.nonzero().tolist():
        v, old_v, target = values[b, t].item(), old_values[b, t].item(), returns[b, t].item()
        clipped += (old_v + min(max(v - old_v, -0.2), 0.2) - target) ** 2 > (v - target) ** 2
    assert value.clip_fraction.item() == pytest.approx(clipped / 13, abs=1e-12)
    assert 0 < clipped < 13


def test_checklist_44_entropy_is_a_masked_mean() -> None:
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    entropy = entropy_from_logits(logits, temperature=0.7)
    expected = [
        -sum(p * math.log(p) for p in (logits[b, t] / 0.7).softmax(-1).tolist()) for b, t in mask.nonzero().tolist()
    ]
    garbage = entropy.masked_fill(~mask, NAN)
    assert masked_mean(garbage, mask).item() == pytest.approx(sum(expected) / 3, abs=1e-12)


@pytest.mark.parametrize("garbage", [NAN, math.inf, -math.inf, 1e30, 0.0])
def test_garbage_in_padding_changes_neither_losses_nor_gradients(garbage: float) -> None:
    clean = random_batch(7)
    results = []
    for fill in (False, True):
        tensors = [x.masked_fill(~MASK, garbage) if fill else x.clone() for x in clean]
        logprobs, values = tensors[0].requires_grad_(), tensors[3].requires_grad_()
        policy = policy_loss(logprobs, tensors[1], tensors[2], weights=tensors[6], dual_clip=1.5)
        value = ppo_value_loss(values, tensors[4], tensors[5], MASK, value_clip_range=0.2, num_tokens=13)
        (policy.loss + value.loss).backward()
        assert logprobs.grad is not None and values.grad is not None
        results.append([*policy, *value, logprobs.grad, values.grad])
        assert torch.equal(logprobs.grad[~MASK], torch.zeros(11, dtype=torch.float64))
        assert torch.equal(values.grad[~MASK], torch.zeros(11, dtype=torch.float64))
    for expected, actual in zip(*results, strict=True):
        assert torch.equal(actual, expected)


def test_order_of_rows_does_not_matter() -> None:
    tensors, order = random_batch(3), torch.tensor([3, 1, 0, 2])
    permuted = ppo_policy_loss(
        *(x[order] for x in tensors), MASK[order], clip_range=0.2, dual_clip=3.0, num_tokens=13, importance_weights=None
    )
    assert [x.item() for x in permuted] == pytest.approx(
        [x.item() for x in policy_loss(*tensors, dual_clip=3.0)], abs=1e-14
    )


def test_enumerated_policy_gradient_is_that_of_the_expected_score() -> None:
    """Weighted by probability, over all five tokens: minus the gradient of the expected score."""
    logits = torch.tensor([0.2, -0.4, 1.0, 0.0, 0.3], dtype=torch.float64)
    scores = torch.tensor([[1.0, -2.0, 0.5, 3.0, 0.0]], dtype=torch.float64)
    leaf = logits.clone().requires_grad_()
    logprobs = gather_logprobs(leaf.expand(1, 5, 5), torch.arange(5).unsqueeze(0), temperature=1.0)
    ppo_policy_loss(
        logprobs,
        logprobs.detach(),
        scores,
        torch.ones(1, 5, dtype=torch.bool),
        clip_range=0.2,
        dual_clip=None,
        num_tokens=1,
        importance_weights=logprobs.detach().exp(),
    ).loss.backward()
    probabilities = logits.softmax(-1)
    expected = -probabilities * (scores[0] - (probabilities * scores[0]).sum())
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, expected, rtol=0.0, atol=1e-12)


# --- value loss ---


@pytest.mark.parametrize(
    ("value", "old_value", "target", "loss", "gradient", "clipped"),
    [
        (1.0, 0.0, 2.0, 1.62, 0.0, 1.0),  # 0.5 * max((1-2)^2, (0.2-2)^2)
        (-1.0, 0.0, 2.0, 4.5, -3.0, 0.0),  # 0.5 * max((-1-2)^2, (-0.2-2)^2)
        (0.1, 0.0, 2.0, 1.805, -1.9, 0.0),  # inside the range: 0.5 * 1.9^2
        (3.0, 4.0, 2.0, 1.62, 0.0, 1.0),  # 0.5 * max(1, (3.8-2)^2)
        (5.0, 4.0, 2.0, 4.5, 3.0, 0.0),  # 0.5 * max(9, (4.2-2)^2)
        (1.0, 1.0, 1.0, 0.0, 0.0, 0.0),
    ],
)
def test_checklist_36_value_loss_golden(
    value: float, old_value: float, target: float, loss: float, gradient: float, clipped: float
) -> None:
    values = torch.tensor([[value]], dtype=torch.float64, requires_grad=True)
    old_values, returns = torch.tensor([[[old_value]], [[target]]], dtype=torch.float64)
    result = ppo_value_loss(values, old_values, returns, torch.ones(1, 1) > 0, value_clip_range=0.2, num_tokens=1)
    result.loss.backward()
    assert isinstance(result, ValueLoss)
    assert result.loss.item() == pytest.approx(loss, abs=1e-12)
    assert result.clip_fraction.item() == clipped
    assert values.grad is not None
    assert values.grad.item() == pytest.approx(gradient, abs=1e-12)


def test_checklist_36_value_loss_equals_a_python_loop() -> None:
    values, old_values, returns = random_batch(3)
    result = ppo_value_loss(values, old_values, returns, MASK, value_clip_range=0.5, num_tokens=20)
    loss = 0.0
    for b, t in MASK.nonzero().tolist():
        v, old, target = values[b, t].item(), old_values[b, t].item(), returns[b, t].item()
        clipped = old + min(max(v - old, -0.5), 0.5)
        loss += 0.5 * max((v - target) ** 2, (clipped - target) ** 2) / 20
    assert result.loss.item() == pytest.approx(loss, abs=1e-12)


def test_checklist_39_padded_values_never_enter_the_value_loss() -> None:
    values, old_values, returns = random_batch(3)
    expected = ppo_value_loss(values, old_values, returns, MASK, value_clip_range=0.2, num_tokens=13)
    for garbage in (NAN, 1e30):
        padded = (x.masked_fill(~MASK, garbage) for x in (values, old_values, returns))
        actual = ppo_value_loss(*padded, MASK, value_clip_range=0.2, num_tokens=13)
        assert torch.equal(actual.loss, expected.loss)
        assert torch.equal(actual.clip_fraction, expected.clip_fraction)


def test_value_loss_has_gradient_into_values_alone() -> None:
    leaves = [x.requires_grad_() for x in random_batch(3)]
    result = ppo_value_loss(*leaves, MASK, value_clip_range=0.2, num_tokens=13)
    assert not result.clip_fraction.requires_grad
    result.loss.backward()
    assert leaves[0].grad is not None and leaves[0].grad.abs().sum() > 0
    assert leaves[1].grad is None and leaves[2].grad is None


def test_gradient_of_the_value_loss() -> None:
    values, old, returns = random_batch(3, seed=2)
    assert torch.autograd.gradcheck(
        lambda x: ppo_value_loss(x, old, returns, MASK, value_clip_range=0.2, num_tokens=13).loss,
        (values.requires_grad_(),),
    )


# --- the two terms that may be added ---


def test_entropy_bonus_and_nll_loss_golden() -> None:
    values = torch.tensor([[1.0, 2.0, 50.0], [4.0, 50.0, 50.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert entropy_bonus(values, mask, num_tokens=14).item() == 0.5  # (1 + 2 + 4) / 14
    assert nll_loss(-values, mask, num_tokens=14).item() == 0.5
    assert nll_loss(values, mask, num_tokens=3.5).item() == -2.0


@pytest.mark.parametrize(("term", "sign"), [(entropy_bonus, 1.0), (nll_loss, -1.0)])
@pytest.mark.parametrize("garbage", [NAN, math.inf, -math.inf])
def test_added_terms_have_the_same_gradient_on_each_token_and_none_on_padding(
    term: Callable[..., Tensor], sign: float, garbage: float
) -> None:
    (values,) = random_batch(1)
    leaf = values.masked_fill(~MASK, garbage).requires_grad_()
    result = term(leaf, MASK, num_tokens=26)
    result.backward()
    assert result.item() == pytest.approx(sign * math.fsum(values[MASK].tolist()) / 26, abs=1e-12)
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, sign * MASK.double() / 26)


@pytest.mark.parametrize("term", [entropy_bonus, nll_loss])
def test_added_terms_add_up_over_microbatches_and_a_batch_without_tokens_gives_zero(
    term: Callable[..., Tensor],
) -> None:
    (values,) = random_batch(1)
    parts = [term(values[row : row + 1], MASK[row : row + 1], num_tokens=13) for row in range(4)]
    assert sum(part.item() for part in parts) == pytest.approx(term(values, MASK, num_tokens=13).item(), abs=1e-12)
    assert term(values, torch.zeros_like(MASK), num_tokens=13).item() == 0.0
