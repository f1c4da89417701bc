"""Advantages without a critic: the baseline comes from other responses, or from the batch.

RLOO and GRPO take the whole response for one action: its return R is the sum of the rewards of its response
tokens, and each of these tokens gets the same advantage. REINFORCE++ keeps the tokens apart. None of them
whitens; GRPO's division by the spread of a group is part of its definition.

Rewards are what `stages.algorithms.advantages.shape_rewards` gives: with the KL in the reward, R is score -
kl_coef * KL; with the KL in the loss, R is the score. Rewards outside the mask are never read. Returns and the
statistics of a group are taken in float64, so that equal responses have an advantage of 0, and not of the
rounding of their mean.

Shape legend: B = rollouts in the batch, T = response tokens (right-padded).
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

GRPO_EPSILON = 1e-4
"""Added to the standard deviation of a group, in reward units."""


def estimate_rloo(
    rewards: Float[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
    *,
    prompt_index: Int[Tensor, " B"],
) -> Float[Tensor, "B T"]:
    """Estimate advantages by REINFORCE leave-one-out.

        A_i = R_i - mean(R_j of the other responses j of the same prompt)

    Ahmadian et al. 2024, section 3, https://arxiv.org/abs/2402.14740. Leaving the response itself out keeps
    the baseline independent of it, and the gradient unbiased.

    Args:
        rewards: KL-shaped token rewards, in reward-model units.
        response_mask: True on response tokens, False on padding.
        prompt_index: Which prompt each row answers; any integers, in any order.

    Returns:
        Advantages in reward units, the same on each token of a response; 0 on padding. Those of a prompt's
        responses add up to 0.

    Raises:
        ValueError: If a prompt has fewer than 2 responses.

    Example:
        >>> rewards = torch.tensor([[0.0, 4.0], [1.0, 9.0], [0.0, 1.0]])
        >>> mask = torch.tensor([[True, True], [True, False], [True, True]])
        >>> estimate_rloo(rewards, mask, prompt_index=torch.tensor([7, 7, 7]))  # returns 4, 1 and 1
        tensor([[ 3.0000,  3.0000],
                [-1.5000,  0.0000],
                [-1.5000, -1.5000]])
    """
    centered, sizes, _ = _center_in_groups(rewards, response_mask, prompt_index)
    # R - (n * mean - R) / (n - 1) = (R - mean) * n / (n - 1)
    return _to_tokens(centered * sizes / (sizes - 1), response_mask, rewards.dtype)


def estimate_grpo(
    rewards: Float[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
    *,
    prompt_index: Int[Tensor, " B"],
) -> Float[Tensor, "B T"]:
    """Estimate advantages relative to the group of a prompt's responses.

        A_i = (R_i - mean(R of the prompt)) / (std(R of the prompt) + 1e-4)

    Shao et al. 2024, section 4.1.2 (outcome supervision), https://arxiv.org/abs/2402.03300. The paper says
    neither which standard deviation it means nor what happens where it is 0. This is the unbiased one (divided
    by n - 1) with 1e-4 added to it, as in TRL: equal returns give 0, not NaN. The paper has the KL in the loss, so
    that R is the score alone; here that is the caller's choice.

    Args:
        rewards: Token rewards, in reward-model units.
        response_mask: True on response tokens, False on padding.
        prompt_index: Which prompt each row answers; any integers, in any order.

    Returns:
        Advantages without unit, the same on each token of a response; 0 on padding.

    Raises:
        ValueError: If a prompt has fewer than 2 responses.

    Example:
        >>> rewards = torch.tensor([[0.0, 4.0], [1.0, 9.0], [0.0, 1.0]])
        >>> mask = torch.tensor([[True, True], [True, False], [True, True]])
        >>> estimate_grpo(rewards, mask, prompt_index=torch.tensor([7, 7, 7]))  # mean 2, std sqrt(3)
        tensor([[ 1.1546,  1.1546],
                [-0.5773,  0.0000],
                [-0.5773, -0.5773]])
    """
    centered, sizes, group = _center_in_groups(rewards, response_mask, prompt_index)
    deviations = (_sum_in_group(centered.square(), group) / (sizes - 1)).sqrt()
    return _to_tokens(centered / (deviations + GRPO_EPSILON), response_mask, rewards.dtype)


def estimate_reinforce_plus_plus(
    rewards: Float[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
    *,
    gamma: float,
) -> Float[Tensor, "B T"]:
    """Estimate advantages by the discounted reward to go of each token.

        A_t = r_t + gamma * A_{t+1}

    Hu 2025, section 3, https://arxiv.org/abs/2501.03262. The baseline of REINFORCE++ is the mean over the whole
    batch, by whose standard deviation it divides too: that is `masked_whiten` of the result, a call of its
    own. Without it this is plain REINFORCE.

    t + 1 is the next token *that counts*, and nothing follows the last one, as in `estimate_gae`. One response
    a prompt is enough.

    Args:
        rewards: KL-shaped token rewards, in reward-model units.
        response_mask: True on response tokens, False on padding.
        gamma: Discount per token, in [0, 1]. RLHF practice is 1.0.

    Returns:
        Advantages in reward units, not whitened; 0 on padding.

    Example:
        >>> rewards = torch.tensor([[1.0, 0.0, 4.0]])
        >>> mask = torch.ones(1, 3, dtype=torch.bool)
        >>> estimate_reinforce_plus_plus(rewards, mask, gamma=0.5)
        tensor([[2., 2., 4.]])
    """
    advantages = torch.empty_like(rewards)
    next_advantage = rewards.new_zeros(rewards.shape[0])
    for t in reversed(range(rewards.shape[1])):
        advantages[:, t] = rewards[:, t] + gamma * next_advantage
        next_advantage = torch.where(response_mask[:, t], advantages[:, t], next_advantage)
    return advantages.masked_fill(~response_mask, 0.0)


def _center_in_groups(
    rewards: Float[Tensor, "B T"], response_mask: Bool[Tensor, "B T"], prompt_index: Int[Tensor, " B"]
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"], Int[Tensor, " B"]]:
    """For each row: its return less the mean of its prompt's, the number of its prompt's rows, its group."""
    _, group = torch.unique(prompt_index, return_inverse=True)
    returns = rewards.double().masked_fill(~response_mask, 0.0).sum(dim=1)
    sizes = _sum_in_group(torch.ones_like(returns), group)
    alone = prompt_index[sizes < 2].tolist()
    if alone:
        raise ValueError(
            f"prompt_index has one row each for the prompts {alone}; a baseline of other responses needs at least "
            "2 of each prompt. Sample more responses a prompt, or use 'gae' or 'reinforce_plus_plus'."
        )
    return returns - _sum_in_group(returns, group) / sizes, sizes, group


def _sum_in_group(values: Float[Tensor, " B"], group: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
    """For each row the sum over the rows of its group; groups are numbered from 0, so B places are enough."""
    return torch.zeros_like(values).index_add(0, group, values)[group]


def _to_tokens(
    advantages: Float[Tensor, " B"], response_mask: Bool[Tensor, "B T"], dtype: torch.dtype
) -> Float[Tensor, "B T"]:
    """Give each response token its response's advantage."""
    return torch.where(response_mask, advantages.to(dtype).unsqueeze(1), 0.0)
