"""The clipped losses of Proximal Policy Optimization, per token, and what corrects them for another sampler.

Every field of a result is `sum over counted tokens / num_tokens`, where `num_tokens` counts the response
tokens of the *whole minibatch*. So the results of the microbatches that a minibatch was split into add up to
those of the minibatch, and the gradients with them, whatever the split and however unequal the response
lengths. A mean taken in each microbatch would give tokens of short responses more weight (OpenRLHF issue
1249). Where an engine averages gradients over ranks, count the tokens of all ranks and divide by the number
of ranks.

This module knows no model and no optimizer. What lies outside the mask is never read. Metrics carry no
gradient.

Shape legend: B = rows of the microbatch, T = response tokens (right-padded).
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""Bound on log-ratios in nats: exp(20) is 4.9e8, far beyond any ratio of use and far within float32."""


class PolicyLoss(NamedTuple):
    """The policy loss and its metrics; each field adds up over microbatches."""

    loss: Float[Tensor, ""]
    """Clipped surrogate, to be minimised."""
    approx_kl: Float[Tensor, ""]
    """Mean of 0.5 * (logprobs - old_logprobs)^2, in nats: how far the policy has moved in this update."""
    clip_fraction: Float[Tensor, ""]
    """Share of tokens whose clipped term is the larger one, so that they have no gradient."""
    ratio: Float[Tensor, ""]
    """Mean of exp(logprobs - old_logprobs); 1 before the first step of an update."""


class ValueLoss(NamedTuple):
    """The value loss and its metric; each field adds up over microbatches."""

    loss: Float[Tensor, ""]
    """Half the clipped squared error, in squared reward units; `value_coef` is applied by the caller."""
    clip_fraction: Float[Tensor, ""]
    """Share of tokens whose clipped error is the larger one."""


def clamp_log_ratio(log_ratio: Float[Tensor, "*dims"]) -> Float[Tensor, "*dims"]:
    """Bound a difference of log-probabilities to +-20 nats, so that its exponential is finite.

    Values within the bound pass unaltered, with gradient 1; beyond it the gradient is 0. Such tokens (a
    policy e^20 times as sure as before) are numerical accidents, which must not decide an update.

    Args:
        log_ratio: Difference of two log-probabilities, in nats.

    Returns:
        The bounded difference, in nats.

    Example:
        >>> clamp_log_ratio(torch.tensor([-50.0, 0.5, 50.0]))
        tensor([-20.0000,   0.5000,  20.0000])
    """
    return log_ratio.clamp(min=-MAX_LOG_RATIO, max=MAX_LOG_RATIO)


def truncated_importance_weights(
    old_logprobs: Float[Tensor, "B T"],
    rollout_logprobs: Float[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
    *,
    cap: float,
) -> Float[Tensor, "B T"]:
    """Weigh each token by the ratio of the trainer's probability to that of the engine that sampled it.

        weight = min(exp(old_logprobs - rollout_logprobs), cap)

    The engine (vLLM) and the trainer give slightly different probabilities for the same weights; this
    corrects the gradient for it, with variance bounded by the cap at the price of some bias (Ionides 2008,
    https://doi.org/10.1198/106186008X320456; in this use https://fengyao.notion.site/off-policy-rl). Per
    token, not per response. It is a constant of the update: no gradient flows into it.

    Args:
        old_logprobs: The trainer's log-probabilities before the update, in nats.
        rollout_logprobs: The engine's log-probabilities of the same tokens, at the same temperature, in nats.
        response_mask: True on response tokens.
        cap: Largest weight, at least 1 (2 is usual), so that tokens on which the two agree keep weight 1.

    Returns:
        Weights in [0, cap], detached; exactly 1 where the two agree, and on padding.

    Raises:
        ValueError: If the cap is below 1.

    Example:
        >>> old, rollout = torch.tensor([[-1.0, -1.0, -1.0]]), torch.tensor([[-1.0, -0.5, -4.0]])
        >>> truncated_importance_weights(old, rollout, torch.ones(1, 3, dtype=torch.bool), cap=2.0)
        tensor([[1.0000, 0.6065, 2.0000]])
    """
    if cap < 1:
        raise ValueError(f"cap={cap} is below 1, so tokens with equal log-probabilities would be cut. Use 2.0, say.")
    log_ratio = (old_logprobs - rollout_logprobs).masked_fill(~response_mask, 0.0)
    return clamp_log_ratio(log_ratio).exp().clamp(max=cap).detach()


def ppo_policy_loss(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
    *,
    clip_range: float,
    num_tokens: int | float,
    importance_weights: Float[Tensor, "B T"] | None,
) -> PolicyLoss:
    """Compute PPO's clipped surrogate loss over the response tokens.

        ratio = exp(logprobs - old_logprobs)
        loss  = sum(weight * max(-A * ratio, -A * clip(ratio, 1 - clip_range, 1 + clip_range))) / num_tokens

    Schulman et al. 2017, equation 7, https://arxiv.org/abs/1707.06347, negated to be minimised. The maximum
    makes the bound pessimistic: a token loses its gradient only where it already moved the way its advantage
    asks. `approx_kl` is 0.5 * mean(log_ratio^2), as in the reference recipe
    (https://arxiv.org/abs/2403.17031), and not the k3 form: it is what published curves show. Neither
    `approx_kl`, `clip_fraction` nor `ratio` is weighted by `importance_weights`.

    Args:
        logprobs: Log-probabilities under the policy that is trained, in nats.
        old_logprobs: The same before the update; a constant.
        advantages: One for each token, usually whitened; constants.
        response_mask: True on response tokens.
        clip_range: How far the ratio may move from 1 in either direction; 0.2 is usual.
        num_tokens: Response tokens of the whole minibatch, over all its microbatches (see the module's
            header).
        importance_weights: From `truncated_importance_weights`; None where the trainer itself sampled.

    Returns:
        The loss, with gradient into `logprobs` alone, and its metrics.

    Example:
        >>> new, old, advantages = torch.tensor([[[0.0, 0.0]], [[-1.0, 0.0]], [[1.0, 3.0]]])
        >>> mask = torch.ones(1, 2, dtype=torch.bool)
        >>> result = ppo_policy_loss(
        ...     new, old, advantages, mask, clip_range=0.2, num_tokens=2, importance_weights=None
        ... )
        >>> result.loss  # the first ratio, e, is clipped: -(1.2 * 1 + 1 * 3) / 2
        tensor(-2.1000)
        >>> result.clip_fraction
        tensor(0.5000)
    """
    # Selecting, unlike multiplying by 0, keeps NaN in padding out, and sums the same whatever the padding.
    log_ratio = clamp_log_ratio((logprobs - old_logprobs.detach())[response_mask])
    ratio = log_ratio.exp()
    advantage = advantages.detach()[response_mask]
    unclipped = -advantage * ratio
    clipped = -advantage * ratio.clamp(min=1 - clip_range, max=1 + clip_range)
    losses = torch.maximum(unclipped, clipped)
    if importance_weights is not None:
        losses = losses * importance_weights.detach()[response_mask]
    return PolicyLoss(
        loss=losses.sum() / num_tokens,
        approx_kl=0.5 * log_ratio.detach().square().sum() / num_tokens,
        clip_fraction=(clipped > unclipped).to(losses.dtype).sum() / num_tokens,
        ratio=ratio.detach().sum() / num_tokens,
    )


def ppo_value_loss(
    values: Float[Tensor, "B T"],
    old_values: Float[Tensor, "B T"],
    returns: Float[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
    *,
    value_clip_range: float,
    num_tokens: int | float,
) -> ValueLoss:
    """Compute PPO's clipped value loss over the response tokens.

        clipped = old_values + clip(values - old_values, -value_clip_range, value_clip_range)
        loss    = 0.5 * sum(max((values - returns)^2, (clipped - returns)^2)) / num_tokens

    From OpenAI's code, not from the PPO paper; detail 9 of
    https://iclr-blog-track.github.io/2022/03/25/ppo-implementation-details/. The maximum is pessimistic as in
    the policy loss: a value that already moved further than the range towards its return has no gradient.

    Args:
        values: The critic's predictions now, in reward units.
        old_values: Its predictions before the update; constants.
        returns: Targets, `advantages + old_values` before whitening; constants.
        response_mask: True on response tokens.
        value_clip_range: How far a value may move in one update, in reward units; 0.2 is usual.
        num_tokens: Response tokens of the whole minibatch, over all its microbatches (see the module's
            header).

    Returns:
        The loss, with gradient into `values` alone, and its metric.

    Example:
        >>> values, old, returns = torch.tensor([[[1.0]], [[0.0]], [[2.0]]])
        >>> mask = torch.ones(1, 1, dtype=torch.bool)
        >>> ppo_value_loss(values, old, returns, mask, value_clip_range=0.2, num_tokens=1)  # (0.2 - 2)^2 / 2
        ValueLoss(loss=tensor(1.6200), clip_fraction=tensor(1.))
    """
    value, old_value, target = values[response_mask], old_values[response_mask], returns[response_mask]
    old_value, target = old_value.detach(), target.detach()
    clipped_value = old_value + (value - old_value).clamp(min=-value_clip_range, max=value_clip_range)
    unclipped = (value - target).square()
    clipped = (clipped_value - target).square()
    return ValueLoss(
        loss=0.5 * torch.maximum(unclipped, clipped).sum() / num_tokens,
        clip_fraction=(clipped > unclipped).to(value.dtype).sum() / num_tokens,
    )
