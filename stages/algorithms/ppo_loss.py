"""The losses of Proximal Policy Optimization, per token: policy, value, and the two terms that may be added.

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

from stages.algorithms.importance import clamp_log_ratio


class PolicyLoss(NamedTuple):
    """The policy loss and its metrics; each field adds up over microbatches."""

    loss: Float[Tensor, ""]
    """Clipped surrogate, to be minimised."""
    approx_kl: Float[Tensor, ""]
    """Mean of 0.5 * (logprobs - old_logprobs)^2, in nats: how far the policy has moved in this update."""
    clip_fraction: Float[Tensor, ""]
    """Share of tokens whose clipped term is the larger one, so that they have no gradient."""
    dual_clip_fraction: Float[Tensor, ""]
    """Share of tokens that the bound of the dual clip holds, so that they have no gradient; 0 without it."""
    ratio: Float[Tensor, ""]
    """Mean of exp(logprobs - old_logprobs); 1 before the first step of an update."""


class ValueLoss(NamedTuple):
    """The value loss and its metric; each field adds up over microbatches."""

    loss: Float[Tensor, ""]
    """Half the clipped squared error, in squared reward units; `value_coef` is applied by the caller."""
    clip_fraction: Float[Tensor, ""]
    """Share of tokens whose clipped error is the larger one."""


def ppo_policy_loss(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
    *,
    clip_range: float,
    dual_clip: float | None,
    num_tokens: int | float,
    importance_weights: Float[Tensor, "B T"] | None,
) -> PolicyLoss:
    """Compute PPO's clipped surrogate loss over the response tokens.

        ratio = exp(logprobs - old_logprobs)
        term  = max(-A * ratio, -A * clip(ratio, 1 - clip_range, 1 + clip_range))
        term  = min(term, -A * dual_clip) where A < 0, with a dual clip
        loss  = sum(weight * term) / num_tokens

    Schulman et al. 2017, equation 7, https://arxiv.org/abs/1707.06347, negated to be minimised. The maximum
    makes the bound pessimistic: a token loses its gradient only where it already moved the way its advantage
    asks. So the term of a token with a negative advantage grows with its ratio without limit; the dual clip
    (Ye et al. 2020, "dual-clip PPO", https://arxiv.org/abs/1912.09729) bounds it, and takes such a token's
    gradient away. `approx_kl` is 0.5 * mean(log_ratio^2), as in the reference recipe
    (https://arxiv.org/abs/2403.17031), and not the k3 form: it is what published curves show. No
    metric is weighted by `importance_weights`.

    Args:
        logprobs: Log-probabilities under the policy that is trained, in nats.
        old_logprobs: The same before the update; a constant.
        advantages: One for each token, usually whitened; constants.
        response_mask: True on response tokens.
        clip_range: How far the ratio may move from 1 in either direction; 0.2 is usual.
        dual_clip: Largest ratio that counts where the advantage is negative, above 1; 3 is usual, None is no
            bound.
        num_tokens: Response tokens of the whole minibatch, over all its microbatches (see the module's
            header).
        importance_weights: From `stages.algorithms.importance`; None where the trainer itself sampled.

    Returns:
        The loss, with gradient into `logprobs` alone, and its metrics.

    Raises:
        ValueError: If the dual clip is not above 1.

    Example:
        >>> new, old, advantages = torch.tensor([[[0.0, 0.0]], [[-1.0, 0.0]], [[1.0, 3.0]]])
        >>> mask = torch.ones(1, 2, dtype=torch.bool)
        >>> result = ppo_policy_loss(
        ...     new, old, advantages, mask, clip_range=0.2, dual_clip=None, num_tokens=2, importance_weights=None
        ... )
        >>> result.loss  # the first ratio, e, is clipped: -(1.2 * 1 + 1 * 3) / 2
        tensor(-2.1000)
        >>> result.clip_fraction
        tensor(0.5000)
    """
    if dual_clip is not None and not dual_clip > 1:
        raise ValueError(
            f"dual_clip={dual_clip} is not above 1, so tokens of the unchanged policy would lose their gradient. "
            "Use 3.0, say, or None for no bound."
        )
    # Selecting, unlike multiplying by 0, keeps NaN in padding out, and sums the same whatever the padding.
    log_ratio = clamp_log_ratio((logprobs - old_logprobs.detach())[response_mask])
    ratio = log_ratio.exp()
    advantage = advantages.detach()[response_mask]
    unclipped = -advantage * ratio
    clipped = -advantage * ratio.clamp(min=1 - clip_range, max=1 + clip_range)
    pessimistic = torch.maximum(unclipped, clipped)
    # Where the advantage is positive, the term is negative and the bound is not: it never holds there.
    losses = pessimistic if dual_clip is None else torch.minimum(pessimistic, dual_clip * advantage.abs())
    dual_clipped = losses < pessimistic
    if importance_weights is not None:
        losses = losses * importance_weights.detach()[response_mask]
    return PolicyLoss(
        loss=losses.sum() / num_tokens,
        approx_kl=0.5 * log_ratio.detach().square().sum() / num_tokens,
        clip_fraction=(clipped > unclipped).to(losses.dtype).sum() / num_tokens,
        dual_clip_fraction=dual_clipped.to(losses.dtype).sum() / num_tokens,
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


def entropy_bonus(
    entropy: Float[Tensor, "B T"], response_mask: Bool[Tensor, "B T"], *, num_tokens: int | float
) -> Float[Tensor, ""]:
    """Sum the entropy of the response tokens' distributions, in the unit of the policy loss.

        bonus = sum(entropy) / num_tokens

    The term S of Schulman et al. 2017, equation 9, https://arxiv.org/abs/1707.06347. It is to be maximised:
    the caller subtracts it, times its coefficient, from the loss.

    Args:
        entropy: Of the distribution that each token was drawn from, in nats.
        response_mask: True on response tokens.
        num_tokens: Response tokens of the whole minibatch, over all its microbatches (see the module's
            header).

    Returns:
        The bonus in nats, with gradient into `entropy`.

    Example:
        >>> entropy_bonus(torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[True, True, False]]), num_tokens=4)
        tensor(0.7500)
    """
    return entropy[response_mask].sum() / num_tokens


def nll_loss(
    logprobs: Float[Tensor, "B T"], response_mask: Bool[Tensor, "B T"], *, num_tokens: int | float
) -> Float[Tensor, ""]:
    """Compute the negative log-likelihood of demonstrations, to be mixed into the policy loss.

        loss = -sum(logprobs) / num_tokens

    The last term of Ouyang et al. 2022, equation 2, https://arxiv.org/abs/2203.02155 (PPO-ptx), per token and
    negated to be minimised. The paper takes it on pretraining text; demonstrations serve the same end.

    Args:
        logprobs: Log-probabilities of the demonstrations' response tokens under the policy that is trained, at
            temperature 1, in nats.
        response_mask: True on these tokens.
        num_tokens: As many as the demonstrations of the whole minibatch have, over all its microbatches; not
            the number of sampled tokens.

    Returns:
        The loss in nats, with gradient into `logprobs`.

    Example:
        >>> nll_loss(torch.tensor([[-1.0, -2.0, -9.0]]), torch.tensor([[True, True, False]]), num_tokens=4)
        tensor(0.7500)
    """
    return -logprobs[response_mask].sum() / num_tokens
