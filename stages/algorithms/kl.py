"""Per-token estimates of the KL divergence from the reference, and the controller of its coefficient.

The divergence is KL(policy || reference), and the tokens are the policy's own samples. The estimators are
Schulman's (http://joschu.net/blog/kl-approx.html), in terms of x = log(policy / reference) of the sampled
token:

    k1 = x                    unbiased, of either sign
    k2 = x^2 / 2              biased, never negative; agrees with the KL to second order where it is small
    k3 = exp(-x) - 1 + x      unbiased, never negative; unbounded variance where the policy left the reference

Being unbiased as a *value* is not being unbiased as a *loss*. On-policy, the gradient of the KL comes from k1
put into the reward, or from k2 as a loss term. k1 as a loss term has expected gradient zero, and k3 as a loss
term has the gradient of another divergence (https://arxiv.org/abs/2510.01555,
https://arxiv.org/abs/2512.21852).

This module knows no mask: estimates at padding are whatever the inputs give, and the caller's mask removes
them.

Shape legend: *dims = any shape, usually B T = rows of the batch and response tokens.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from stages.algorithms.importance import clamp_log_ratio

MAX_RELATIVE_ERROR = 0.2
"""Bound on the controller's relative error; Ziegler et al. 2019, section 2.2."""


def kl_k1(logprobs: Float[Tensor, "*dims"], ref_logprobs: Float[Tensor, "*dims"]) -> Float[Tensor, "*dims"]:
    """Estimate the KL by the log-ratio itself.

        k1 = logprobs - ref_logprobs

    Its expectation is the exact KL, and its sum over a response is the log-ratio of the whole response. A
    single value may be negative; a mean that stays negative means that the tokens were not sampled from this
    policy.

    Args:
        logprobs: Log-probabilities of the sampled tokens under the policy, in nats.
        ref_logprobs: The same under the reference.

    Returns:
        One estimate for each token, in nats.

    Example:
        >>> kl_k1(torch.tensor([-1.0]), torch.tensor([-3.0]))
        tensor([2.])
    """
    return logprobs - ref_logprobs


def kl_k2(logprobs: Float[Tensor, "*dims"], ref_logprobs: Float[Tensor, "*dims"]) -> Float[Tensor, "*dims"]:
    """Estimate the KL by half the squared log-ratio.

        k2 = (logprobs - ref_logprobs)^2 / 2

    Biased: its expectation agrees with the KL only to second order. Its gradient as a loss, on-policy, is
    unbiased.

    Args:
        logprobs: Log-probabilities of the sampled tokens under the policy, in nats.
        ref_logprobs: The same under the reference.

    Returns:
        One estimate for each token, in nats; never negative.

    Example:
        >>> kl_k2(torch.tensor([-1.0]), torch.tensor([-3.0]))
        tensor([2.])
    """
    return 0.5 * (logprobs - ref_logprobs).square()


def kl_k3(logprobs: Float[Tensor, "*dims"], ref_logprobs: Float[Tensor, "*dims"]) -> Float[Tensor, "*dims"]:
    """Estimate the KL by the log-ratio plus a term of expectation zero that keeps it from being negative.

        k3 = exp(-x) - 1 + x, with x = logprobs - ref_logprobs

    The log-ratio is bounded to +-20 in both places, so that the exponential is finite and the estimate never
    negative. `expm1` is used because exp(-x) - 1 loses all digits where the policies agree.

    Args:
        logprobs: Log-probabilities of the sampled tokens under the policy, in nats.
        ref_logprobs: The same under the reference.

    Returns:
        One estimate for each token, in nats; never negative.

    Example:
        >>> kl_k3(torch.tensor([-1.0]), torch.tensor([-3.0]))  # exp(-2) - 1 + 2
        tensor([1.1353])
    """
    negative_log_ratio = clamp_log_ratio(ref_logprobs - logprobs)
    return torch.expm1(negative_log_ratio) - negative_log_ratio


def estimate_kl(
    logprobs: Float[Tensor, "*dims"],
    ref_logprobs: Float[Tensor, "*dims"],
    *,
    estimator: Literal["k1", "k2", "k3"],
) -> Float[Tensor, "*dims"]:
    """Estimate the KL of each token by the estimator of that name.

    Args:
        logprobs: Log-probabilities of the sampled tokens under the policy, in nats.
        ref_logprobs: The same under the reference.
        estimator: `k1`, `k2` or `k3`; the module's header says what each is good for.

    Returns:
        One estimate for each token, in nats.

    Raises:
        ValueError: If there is no estimator of that name.
    """
    match estimator:
        case "k1":
            return kl_k1(logprobs, ref_logprobs)
        case "k2":
            return kl_k2(logprobs, ref_logprobs)
        case "k3":
            return kl_k3(logprobs, ref_logprobs)
        case _:
            raise ValueError(f"estimator={estimator!r} is unknown; use 'k1', 'k2' or 'k3'.")


def adapt_kl_coef(
    kl_coef: float, *, measured_kl: float, target_kl: float, horizon: int | float, num_episodes: int
) -> float:
    """Move the KL coefficient towards the value at which the measured KL is the target.

        error   = clip(measured_kl / target_kl - 1, -0.2, 0.2)
        kl_coef = kl_coef * (1 + error * num_episodes / horizon)

    The proportional controller in log space of Ziegler et al. 2019, section 2.2,
    https://arxiv.org/abs/1909.08593, with K_beta = num_episodes / horizon as in OpenAI's code. Episodes, not
    optimizer steps: so the speed does not depend on the batch size. The result is state that decides the
    future: a checkpoint has to hold it.

    Args:
        kl_coef: The coefficient used in the step just done.
        measured_kl: The KL of that step: sum over a response's tokens, mean over responses, in nats.
        target_kl: What it should be, in the same unit; above 0.
        horizon: Episodes over which a full error changes the coefficient by 20 %; 10000 is usual.
        num_episodes: Responses in the step just done.

    Returns:
        The coefficient for the next step.

    Raises:
        ValueError: If the target or the horizon is not above 0, or if a step has 5 horizons of episodes or
            more (the coefficient would become 0 or negative).

    Example:
        >>> adapt_kl_coef(1.0, measured_kl=12.0, target_kl=6.0, horizon=1000, num_episodes=500)  # 1 + 0.2 / 2
        1.1
    """
    if not target_kl > 0:
        raise ValueError(f"target_kl={target_kl} is not above 0; the error is relative to it. Use 6.0, say.")
    if not horizon > 0:
        raise ValueError(f"horizon={horizon} is not above 0; it is a number of episodes. Use 10000, say.")
    gain = num_episodes / horizon
    if gain * MAX_RELATIVE_ERROR >= 1:
        raise ValueError(
            f"num_episodes={num_episodes} is 5 times horizon={horizon} or more, so one step could make the "
            "coefficient 0 or negative; use a longer horizon."
        )
    error = min(max(measured_kl / target_kl - 1, -MAX_RELATIVE_ERROR), MAX_RELATIVE_ERROR)
    return kl_coef * (1 + error * gain)
