"""Settings of preference collection. Imports pydantic only."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from data.strict import Contradiction, Flag, Section, StrictModel
from rewards.config import RuleRewardConfig, VaderRewardConfig
from stages.rollouts.config import RolloutConfig


class SimulatedLabelerConfig(StrictModel):
    """Ranks responses by a reward function, as a stand-in for people (Ziegler et al. 2019, section 3.1)."""

    type: Literal["simulated"] = "simulated"

    reward: RuleRewardConfig = VaderRewardConfig()
    """The scorer that the labeler believes in."""

    label_noise: float = Field(default=0.0, ge=0.0, le=0.5)
    """Probability that a pair is turned around."""


class PreferencesConfig(Section):
    """Sample K responses a prompt from the SFT policy and let a labeler rank them."""

    labeler: SimulatedLabelerConfig = SimulatedLabelerConfig()

    responses_per_prompt: int = Field(default=4, ge=2)
    """K."""

    pairs_per_prompt: int | None = Field(default=None, ge=1)
    """Keep at most this many of the K (K - 1) / 2 pairs of a prompt, those with the largest gap in rank first."""

    only_finished: Flag = True
    """Leave responses that the length limit cut off out of the pairs: a labeler cannot judge half a sentence, and
    a reward model that sees them learns to prefer length."""

    num_prompts: int | None = Field(default=None, ge=1)
    """Use this many of the training prompts. Default: all."""

    num_held_out_prompts: int = Field(default=64, ge=0)
    """Held-out prompts, at most, whose pairs validate the reward model."""

    rollout: RolloutConfig = RolloutConfig()

    batch_size: int = Field(default=64, ge=1)
    """Responses generated in one call."""

    max_prompt_tokens: int = Field(default=512, ge=1)
    """Longer prompts are dropped and counted."""

    def contradictions(self) -> Iterator[Contradiction]:
        """More pairs than the responses make."""
        pairs = self.responses_per_prompt * (self.responses_per_prompt - 1) // 2
        if self.pairs_per_prompt is not None and self.pairs_per_prompt > pairs:
            yield Contradiction(
                ("pairs_per_prompt", "responses_per_prompt"),
                f"pairs_per_prompt={self.pairs_per_prompt}, but responses_per_prompt={self.responses_per_prompt} make "
                f"{pairs} {'pair' if pairs == 1 else 'pairs'}; use pairs_per_prompt={pairs} or less, or more responses",
            )
