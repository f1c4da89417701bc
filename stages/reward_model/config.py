"""Settings of reward-model training. Imports pydantic only."""

from typing import Literal

from pydantic import Field

from data.strict import StrictModel
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

    unit_variance: bool = False
    """Also divide by the standard deviation on those responses, so that `kl_coef` means the same across tasks."""


class RewardModelConfig(StrictModel):
    """Bradley-Terry training on the preference pairs, from the SFT adapter."""

    learning_rate: float = Field(default=1.0e-4, gt=0)
    """Peak learning rate of AdamW."""

    lr_schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Decay after the warm-up; `linear` and `cosine` end at 0."""

    warmup_fraction: float = Field(default=0.03, ge=0, lt=1)
    """Share of the optimizer steps with a rising learning rate."""

    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay of adapter and head."""

    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this global norm."""

    epochs: float = Field(default=1.0, gt=0)
    """Passes over the pairs. More than one overfits quickly (Stiennon et al. 2020, section 3.4)."""

    max_steps: int | None = Field(default=None, ge=1)
    """Stop after this many optimizer steps, whatever `epochs` says."""

    batch_size: int = Field(default=32, ge=1)
    """Pairs in one optimizer step, over all processes."""

    microbatch_size: int = Field(default=8, ge=1)
    """Pairs in one forward pass of one process. Divides `batch_size / num_processes`."""

    max_length: int = Field(default=1024, ge=2)
    """Longest prompt and response, in tokens. Longer pairs are dropped and counted."""

    center_coefficient: float = Field(default=0.0, ge=0)
    """Weight of the mean squared sum of a pair's scores (Eisenstein et al. 2023, section 5)."""

    label_smoothing: float = Field(default=0.0, ge=0.0, lt=0.5)
    """Assumed share of turned pairs."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more time."""

    normalization: NormalizationConfig = NormalizationConfig()
