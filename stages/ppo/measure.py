"""Metrics of a PPO step, under the names of the field.

Shape legend: B = episodes, T = response tokens.
"""

import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from stages.algorithms.kl import kl_k1
from stages.algorithms.masking import masked_mean, masked_var
from stages.ppo.experience import Experience


class StepClock:
    """Seconds of the parts of one step."""

    def __init__(self) -> None:
        """Start the step's clock."""
        self._start = time.perf_counter()
        self._seconds: dict[str, float] = {}
        self.part = ""
        """The part that is measured now, or was last."""

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Add the enclosed time to a part."""
        start = time.perf_counter()
        self.part = part
        yield
        self._seconds[part] = self._seconds.get(part, 0.0) + time.perf_counter() - start

    def metrics(self, *, num_tokens: int) -> dict[str, float]:
        """`time/*_seconds`, the rate of generation and the peak of memory.

        Args:
            num_tokens: Response tokens generated in this step.
        """
        rows = {f"time/{part}_seconds": seconds for part, seconds in self._seconds.items()}
        rows["time/step_seconds"] = time.perf_counter() - self._start
        rows["rollout/tokens_per_second"] = num_tokens / max(self._seconds["generate"], 1e-9)
        rows["memory/peak_gib"] = _peak_gib()
        return rows


def step_metrics(
    experience: Experience,
    scores: Float[Tensor, " B"],
    rewards: Float[Tensor, "B T"],
    returns: Float[Tensor, "B T"] | None,
    *,
    kl_coef: float,
) -> dict[str, float]:
    """What one step's episodes look like, before the update.

    Args:
        experience: The episodes.
        scores: As the reward function gave them, before any shaping.
        rewards: KL-shaped.
        returns: Targets of the critic; None without one.
        kl_coef: The coefficient that shaped the rewards.

    Returns:
        `objective/kl` is the sum of k1 over a response, its mean over the responses, in nats;
        `objective/rewards` the sum of the shaped rewards of a response; the rest are means over tokens or
        responses.
    """
    mask = experience.response_mask
    kl = response_kl(experience)
    delta = (experience.old_logprobs - experience.rollout_logprobs)[mask]
    lengths = mask.sum(dim=1).float()
    metrics = {
        "objective/kl": kl.mean().item(),
        "objective/kl_stderr": (kl.std(correction=1) / len(kl) ** 0.5).item() if len(kl) > 1 else 0.0,
        "objective/kl_coef": kl_coef,
        "objective/scores": scores.mean().item(),
        "objective/scores_std": scores.std(correction=0).item(),
        "objective/rewards": rewards.sum(dim=1).mean().item(),
        "objective/entropy": masked_mean(experience.entropy, mask).item(),
        "rollout/response_length": lengths.mean().item(),
        "rollout/truncated_fraction": _share([not rollout.finished for rollout in experience.rollouts]),
        "rollout/logprob_delta_mean": delta.mean().item(),
        "rollout/logprob_delta_rms": delta.square().mean().sqrt().item(),
        "rollout/logprob_delta_max": delta.abs().max().item(),
    }
    if experience.values is not None and returns is not None:
        variance = masked_var(returns, mask)
        residual = masked_var(returns - experience.values, mask)
        metrics["value/explained_variance"] = (1.0 - residual / variance.clamp(min=1e-8)).item()
        metrics["value/mean"] = masked_mean(experience.values, mask).item()
    return metrics


def response_kl(experience: Experience) -> Float[Tensor, " B"]:
    """Sum of k1 over each response's tokens, in nats."""
    log_ratio = kl_k1(experience.old_logprobs, experience.ref_logprobs)
    return log_ratio.masked_fill(~experience.response_mask, 0.0).sum(dim=1)


def mean_rows(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean of each metric over the optimizer steps of one PPO step."""
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags)


def _peak_gib() -> float:
    """Largest memory so far: of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
