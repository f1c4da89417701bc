"""What a step of PPO does not survive, and what it is warned of.

Knows numbers only.
"""

import logging
import math
from collections.abc import Mapping

from data.errors import StageError

logger = logging.getLogger(__name__)

_NEGATIVE_STEPS = 3
_STANDARD_ERRORS = 3.0
_LEAST_NATS = 0.1


class BadStepCounter:
    """Counts batches and updates that are not finite, and ends the stage when there are too many."""

    def __init__(self, max_bad_steps: int) -> None:
        """Start with none."""
        self._max_bad_steps = max_bad_steps
        self.count = 0

    def check(self, step: int, values: Mapping[str, float], what: str) -> bool:
        """Whether all values are finite; if not, the caller skips what they belong to.

        Args:
            step: Number of the PPO step, from 1.
            values: Figures by name.
            what: What is skipped.

        Raises:
            StageError: More than `max_bad_steps` were not.
        """
        bad = sorted(name for name, value in values.items() if not math.isfinite(value))
        if not bad:
            return True
        self.count += 1
        logger.warning("step %d: %s not finite; %s skipped", step, ", ".join(bad), what)
        if self.count > self._max_bad_steps:
            raise StageError(
                f"ppo: {self.count} batches or updates were not finite ({', '.join(bad)}), more than "
                f"ppo.max_bad_steps={self._max_bad_steps}; lower `ppo.learning_rate` or raise `ppo.kl_coef`"
            )
        return False


def check_kl(step: int, kl_per_token: float, max_kl_per_token: float | None) -> None:
    """End the stage where the policy has run away from the reference.

    Args:
        step: Number of the PPO step, from 1.
        kl_per_token: Mean k1 of the response tokens, in nats.
        max_kl_per_token: The most that is allowed; None allows all.

    Raises:
        StageError: It is more.
    """
    if max_kl_per_token is not None and kl_per_token > max_kl_per_token:
        raise StageError(
            f"ppo: step {step}: the KL of policy and reference is {kl_per_token:.2f} nats a token, more than "
            f"ppo.max_kl_per_token={max_kl_per_token:g}: the policy has left the language of its reference. Raise "
            f"`ppo.kl_coef`, lower `ppo.learning_rate` or set `ppo.max_approx_kl`; `objective/kl` in metrics.jsonl "
            f"shows since when"
        )


class NegativeKLWatch:
    """Notices a KL estimate that stays below zero, which no sampling noise explains.

    The mean of k1 over a policy's own samples estimates a divergence, which is never negative. Where it stays
    negative, the tokens were not sampled from the policy that is trained: top-p or a minimum length in
    sampling, another temperature, padding that counts, a stale adapter (TRL issues 1161 and 925).
    """

    def __init__(self) -> None:
        """Start with no step seen."""
        self.num_negative = 0

    def see(self, step: int, mean: float, standard_error: float) -> bool:
        """Take in one step's mean KL; warn once it has been negative for three steps on end.

        Args:
            step: Number of the PPO step, from 1.
            mean: Mean KL of a response, in nats.
            standard_error: Of that mean, over the responses.

        Returns:
            Whether the KL is persistently negative.
        """
        negative = mean < -max(_STANDARD_ERRORS * standard_error, _LEAST_NATS)
        self.num_negative = self.num_negative + 1 if negative else 0
        if self.num_negative == _NEGATIVE_STEPS:
            logger.warning(
                "step %d: the KL of policy and reference was negative in %d steps on end (now %.3f +- %.3f nats a "
                "response); a divergence is not: the responses are not samples of the policy that is trained. Check "
                "the rollout engine's sampling settings and `rollout/logprob_delta_rms`",
                step, _NEGATIVE_STEPS, mean, standard_error,
            )  # fmt: skip
        return self.num_negative >= _NEGATIVE_STEPS
