"""From sequence scores to per-token rewards, advantages and returns.

Scores come from the reward model, one a response; rewards are scores shaped by the KL, one a token. Nothing
here whitens: returns have to come from unwhitened advantages, so whitening is a separate call, after. The
estimators that need no critic are in `stages.algorithms.baselines`.

Shape legend: B = rollouts in the batch, T = response tokens (right-padded).
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stages.algorithms.baselines import estimate_grpo, estimate_reinforce_plus_plus, estimate_rloo
from stages.algorithms.masking import last_true_index


def shape_rewards(
    scores: Float[Tensor, " B"],
    token_kl: Float[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
    *,
    kl_coef: float,
) -> Float[Tensor, "B T"]:
    """Charge each response token its KL, and add the score once, at the last response token.

        r_t = -kl_coef * kl_t + (score if t is the last response token else 0)

    Ziegler et al. 2019, equation 2, https://arxiv.org/abs/1909.08593. The KL is inside the reward, token by
    token, so that credit for it is assigned where it arises; over a response the rewards add up to score -
    kl_coef * sum(kl).

    Args:
        scores: The judgement of each whole response, after normalisation and missing-EOS rules.
        token_kl: An estimate of the KL of each token, in nats; k1 for the exact objective.
        response_mask: True on response tokens, at least one a row.
        kl_coef: Price of a nat, in score units.

    Returns:
        Per-token rewards in score units; 0 on padding.

    Raises:
        ValueError: If a row has no response token.

    Example:
        >>> mask = torch.tensor([[True, True, False]])
        >>> shape_rewards(torch.tensor([1.0]), torch.tensor([[2.0, 4.0, 9.0]]), mask, kl_coef=0.05)
        tensor([[-0.1000,  0.8000,  0.0000]])
    """
    penalties = (-kl_coef * token_kl).masked_fill(~response_mask, 0.0)
    last_token = last_true_index(response_mask).unsqueeze(1)
    return penalties.scatter_add(1, last_token, scores.unsqueeze(1).to(penalties.dtype))


def estimate_gae(
    rewards: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
    *,
    gamma: float,
    gae_lambda: float,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """Estimate advantages and returns with Generalized Advantage Estimation.

        delta_t = r_t + gamma * V_{t+1} - V_t
        A_t     = delta_t + gamma * gae_lambda * A_{t+1}

    Schulman et al. 2016, section 3, https://arxiv.org/abs/1506.02438. The response ends the episode: V and A
    are 0 after its last token, also when the length limit cut it off (as in
    https://arxiv.org/abs/1909.08593).

    t + 1 is the next token *that counts*. In one response the mask is contiguous and this is the next column;
    where a response has turns that are not the policy's own (tool output), they are stepped over, with
    neither discount nor bootstrapping at their values.

    Args:
        rewards: KL-shaped token rewards, in reward-model units.
        values: V(s_t), predicted before token t is emitted, same units.
        response_mask: True on response tokens, False on padding.
        gamma: Discount per token, in [0, 1]. RLHF practice is 1.0.
        gae_lambda: 0 is one-step TD (low variance), 1 is Monte Carlo (no bias).

    Returns:
        advantages: Not whitened; 0 on padding.
        returns: `advantages + values`, the target of the value loss; 0 on padding.

    Example:
        >>> rewards = torch.tensor([[0.0, 0.0, 1.0]])
        >>> values = torch.full((1, 3), 0.5)
        >>> mask = torch.ones(1, 3, dtype=torch.bool)
        >>> estimate_gae(rewards, values, mask, gamma=1.0, gae_lambda=0.5)
        (tensor([[0.1250, 0.2500, 0.5000]]), tensor([[0.6250, 0.7500, 1.0000]]))
    """
    advantages = torch.empty_like(values)
    next_value = next_advantage = values.new_zeros(values.shape[0])
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantages[:, t] = delta + gamma * gae_lambda * next_advantage
        next_advantage = torch.where(response_mask[:, t], advantages[:, t], next_advantage)
        next_value = torch.where(response_mask[:, t], values[:, t], next_value)
    returns = advantages + values
    return advantages.masked_fill(~response_mask, 0.0), returns.masked_fill(~response_mask, 0.0)


def estimate_advantages(
    rewards: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"] | None,
    response_mask: Bool[Tensor, "B T"],
    prompt_index: Int[Tensor, " B"],
    *,
    estimator: Literal["gae", "rloo", "grpo", "reinforce_plus_plus"],
    gamma: float,
    gae_lambda: float,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"] | None]:
    """Estimate advantages by the estimator of that name, and returns where there is a critic to learn them.

    Args:
        rewards: KL-shaped token rewards, in reward-model units.
        values: The critic's predictions for `gae`; None for the others, which have no critic.
        response_mask: True on response tokens, False on padding.
        prompt_index: Which prompt each row answers; `rloo` and `grpo` compare the rows of one prompt.
        estimator: `gae`, or one of `stages.algorithms.baselines`.
        gamma: Discount per token of `gae` and `reinforce_plus_plus`; the other two do not discount.
        gae_lambda: Of `gae` alone.

    Returns:
        advantages: Not whitened; 0 on padding.
        returns: Targets of the value loss with `gae`; None with the others.

    Raises:
        ValueError: If `gae` has no values, if another estimator has some (a critic that is trained and not used
            is a mistake), if `rloo` or `grpo` has a prompt with fewer than 2 responses, or if there is no
            estimator of that name.
    """
    if estimator == "gae":
        if values is None:
            raise ValueError(
                "estimator='gae' came with values=None; it needs the value of each token. Give the critic's "
                "predictions, or use 'rloo', 'grpo' or 'reinforce_plus_plus'."
            )
        return estimate_gae(rewards, values, response_mask, gamma=gamma, gae_lambda=gae_lambda)
    if values is not None:
        raise ValueError(
            f"estimator={estimator!r} came with values, but only 'gae' has a critic. Give values=None and load no "
            "critic, or use 'gae'."
        )
    match estimator:
        case "rloo":
            return estimate_rloo(rewards, response_mask, prompt_index=prompt_index), None
        case "grpo":
            return estimate_grpo(rewards, response_mask, prompt_index=prompt_index), None
        case "reinforce_plus_plus":
            return estimate_reinforce_plus_plus(rewards, response_mask, gamma=gamma), None
        case _:
            raise ValueError(f"estimator={estimator!r} is unknown; use 'gae', 'rloo', 'grpo' or 'reinforce_plus_plus'.")
