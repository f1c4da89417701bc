"""Ratios of two policies' probabilities, bounded, and as weights for tokens that another engine sampled.

The engine (vLLM) and the trainer give slightly different probabilities for the same weights. Importance
sampling corrects the gradient for it: each token weighs by the trainer's probability over the engine's.

Shape legend: B = rows of the batch, T = response tokens (right-padded), *dims = any shape.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""Bound on log-ratios in nats: exp(20) is 4.9e8, far beyond any ratio of use and far within float32."""


class ImportanceWeights(NamedTuple):
    """What each token weighs in the policy loss, and how many weights were cut."""

    weights: Float[Tensor, "B T"]
    """From 0 to the cap, detached; exactly 1 on padding."""
    clipped_fraction: Float[Tensor, ""]
    """Share of response tokens whose weight was above the cap; 0 if there is no response token."""


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


def importance_weights(
    old_logprobs: Float[Tensor, "B T"],
    rollout_logprobs: Float[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
    *,
    level: Literal["token", "sequence"],
    mode: Literal["truncate", "mask"],
    cap: float,
) -> ImportanceWeights:
    """Weigh each token by the ratio of the trainer's probability to that of the engine that sampled it.

        token:    w_t = exp(old_t - rollout_t)
        sequence: w_t = exp(sum over the row's response tokens of (old - rollout)), the same on all of them
        truncate: min(w, cap)
        mask:     w where w <= cap, else 0

    Truncation bounds the variance at the price of some bias (Ionides 2008,
    https://doi.org/10.1198/106186008X320456; in this use, token by token, Yao et al. 2025,
    https://fengyao.notion.site/off-policy-rl). The ratio of the whole response is the unbiased one, but the
    gaps of its tokens add up, so that it is cut more often, the more so the longer the response; and masking
    leaves out what truncation would keep at the cap (Liu, Li et al. 2025, https://richardli.xyz/rl-collapse).
    Log-ratios are bounded to +-20 nats, those of responses after their sum. Weights of 0 do not change the
    number of tokens that the policy loss divides by.

    The weights are constants of the update: no gradient flows into them.

    Args:
        old_logprobs: The trainer's log-probabilities before the update, in nats.
        rollout_logprobs: The engine's log-probabilities of the same tokens, at the same temperature, in nats.
        response_mask: True on response tokens; a row may have none.
        level: Whether each token has a weight of its own or shares that of its response.
        mode: What becomes of weights above the cap.
        cap: Largest weight, at least 1 (2 is usual), so that tokens on which the two agree keep weight 1.

    Returns:
        Weights, exactly 1 where the two agree and on padding, and the share of them that was cut.

    Raises:
        ValueError: If the cap is below 1, or if there is no level or mode of that name.

    Example:
        >>> old, rollout = torch.tensor([[-1.0, -1.0, -1.0]]), torch.tensor([[-1.0, -0.5, -4.0]])
        >>> mask = torch.ones(1, 3, dtype=torch.bool)
        >>> importance_weights(old, rollout, mask, level="token", mode="truncate", cap=2.0)
        ImportanceWeights(weights=tensor([[1.0000, 0.6065, 2.0000]]), clipped_fraction=tensor(0.3333))
        >>> importance_weights(old, rollout, mask, level="sequence", mode="mask", cap=2.0)  # exp(2.5) is above 2
        ImportanceWeights(weights=tensor([[0., 0., 0.]]), clipped_fraction=tensor(1.))
    """
    if not cap >= 1:
        raise ValueError(f"cap={cap} is below 1, so tokens with equal log-probabilities would be cut. Use 2.0, say.")
    log_ratio = (old_logprobs - rollout_logprobs).detach().masked_fill(~response_mask, 0.0)
    match level:
        case "token":
            pass
        case "sequence":
            log_ratio = log_ratio.sum(dim=1, keepdim=True).expand_as(log_ratio)
        case _:
            raise ValueError(f"level={level!r} is unknown; use 'token' or 'sequence'.")
    ratio = torch.exp(clamp_log_ratio(log_ratio))
    too_large = ratio > cap
    match mode:
        case "truncate":
            weights = ratio.clamp(max=cap)
        case "mask":
            weights = ratio.masked_fill(too_large, 0.0)
        case _:
            raise ValueError(f"mode={mode!r} is unknown; use 'truncate' or 'mask'.")
    return ImportanceWeights(
        weights=weights.masked_fill(~response_mask, 1.0),
        clipped_fraction=too_large[response_mask].sum() / response_mask.sum().clamp(min=1),
    )
