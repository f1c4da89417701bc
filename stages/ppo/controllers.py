"""State that PPO carries from step to step beside the weights: KL coefficient and moments of the scores.

Shape legend: B = episodes.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stages.algorithms.kl import adapt_kl_coef
from stages.ppo.config import AdaptiveKLConfig, KLControllerConfig, PPOConfig


class KLController:
    """The weight of the KL penalty: fixed, or following a target (Ziegler et al. 2019, section 2.2)."""

    def __init__(self, config: KLControllerConfig, kl_coef: float) -> None:
        """Start at `kl_coef`."""
        self._config = config
        self.value = kl_coef

    def update(self, measured_kl: float, *, num_episodes: int) -> None:
        """Adapt to the KL of the last step.

        Args:
            measured_kl: Mean KL of a response, in nats.
            num_episodes: Episodes since the last update.
        """
        if isinstance(self._config, AdaptiveKLConfig):
            self.value = adapt_kl_coef(
                self.value,
                measured_kl=measured_kl,
                target_kl=self._config.target,
                horizon=self._config.horizon,
                num_episodes=num_episodes,
            )


class ScoreShaper:
    """From the reward function's scores to those that enter the rewards.

    In this order: division by the running standard deviation of all scores seen (Welford's recurrence, in
    float64), clipping, and what a missing EOS costs.
    """

    def __init__(self, config: PPOConfig) -> None:
        """Start with no score seen."""
        self._config = config
        self.num_scores = 0
        self.mean = 0.0
        self.sum_of_squares = 0.0

    def __call__(self, scores: Float[Tensor, " B"], finished: Bool[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Shape the scores of one step.

        Args:
            scores: As the reward function gave them.
            finished: Whether the response ended with EOS.
        """
        config = self._config
        shaped = scores.clone()
        if config.normalize_scores:
            self._see(scores)
            shaped = shaped / self.standard_deviation()
        if config.score_clip is not None:
            shaped = shaped.clamp(-config.score_clip, config.score_clip)
        if config.missing_eos_score is not None:
            shaped = torch.where(finished, shaped, torch.full_like(shaped, config.missing_eos_score))
        if config.missing_eos_penalty is not None:
            shaped = shaped - config.missing_eos_penalty * (~finished)
        return shaped

    def standard_deviation(self) -> float:
        """Of all scores seen; 1 until two different ones are known."""
        if self.num_scores < 2 or self.sum_of_squares == 0.0:
            return 1.0
        return float((self.sum_of_squares / self.num_scores) ** 0.5)

    def _see(self, scores: Float[Tensor, " B"]) -> None:
        for score in scores.double().tolist():
            self.num_scores += 1
            delta = score - self.mean
            self.mean += delta / self.num_scores
            self.sum_of_squares += delta * (score - self.mean)
