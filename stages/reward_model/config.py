"""Settings of reward-model training. Imports pydantic only."""

from pydantic import Field

from data.strict import Flag, StrictModel
from stages.learning import LearningConfig
from stages.models.config import ModelConfig
from stages.rollouts.config import SamplingConfig


class NormalizationConfig(StrictModel):
    """Shift (and scale) of the scores, measured on responses of the SFT policy."""

    num_prompts: int = Field(default=128, ge=2)
    """Prompts on which the SFT policy is sampled."""

    sampling: SamplingConfig = SamplingConfig()

    batch_size: int = Field(default=32, ge=1)
    """Responses generated and scored at once."""

    max_prompt_tokens: int = Field(default=512, ge=1)
    """Longer prompts are not used."""

    unit_variance: Flag = False
    """Also divide by the standard deviation on those responses, so that `kl_coef` means the same across tasks."""


class RewardModelConfig(LearningConfig):
    """Bradley-Terry training on the preference pairs."""

    model: ModelConfig | None = None
    """Another base for the reward model, with its own tuning. Default: the shared `model` section, on which it starts
    from the SFT adapter."""

    learning_rate: float = Field(default=1.0e-4, gt=0, le=1)
    """Peak learning rate of AdamW. One epoch is the rule: more overfit quickly (Stiennon et al. 2020, section 3.4)."""

    center_coefficient: float = Field(default=0.0, ge=0)
    """Weight of the mean squared sum of a pair's scores (Eisenstein et al. 2023, section 5)."""

    label_smoothing: float = Field(default=0.0, ge=0.0, lt=0.5)
    """Assumed share of turned pairs."""

    normalization: NormalizationConfig = NormalizationConfig()
