"""Settings of the evaluation. Imports pydantic only."""

from collections.abc import Iterator

from pydantic import Field

from data.strict import Contradiction, Section, differs
from rewards.config import RuleRewardConfig
from stages.rollouts.config import RolloutConfig


class EvaluationConfig(Section):
    """SFT against PPO on the held-out prompts."""

    num_prompts: int = Field(default=128, ge=2)
    """Held-out prompts, at most."""

    gold: RuleRewardConfig | None = None
    """An independent scorer that neither the reward model nor PPO has seen at work."""

    rollout: RolloutConfig = RolloutConfig()

    batch_size: int = Field(default=32, ge=1)
    """Responses generated and scored at once."""

    max_prompt_tokens: int = Field(default=512, ge=1)
    """Longer prompts are dropped and counted."""

    bootstrap_samples: int = Field(default=2000, ge=100)
    """Resamples of the prompts for the 95 % intervals."""

    num_examples: int = Field(default=8, ge=1)
    """Samples shown side by side."""

    def contradictions(self) -> Iterator[Contradiction]:
        """More samples to show than there are."""
        if differs(self, "num_examples") and self.num_examples > self.num_prompts:
            yield Contradiction(
                ("num_examples", "num_prompts"),
                f"num_examples={self.num_examples} samples are to be shown, but num_prompts={self.num_prompts} gives "
                f"no more than that; use num_examples={self.num_prompts} or less",
            )
