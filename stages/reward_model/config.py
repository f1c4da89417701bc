"""Settings of reward-model training. Imports pydantic only."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from data.strict import Contradiction, Flag, Section, StrictModel, differs
from stages.learning import LearningConfig
from stages.models.classifier_config import ClassifierConfig
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


class EnsembleConfig(StrictModel):
    """Several reward models on one base, whose mean is the score.

    Coste et al. 2023, section 3, https://arxiv.org/abs/2310.02743.
    """

    members: int = Field(ge=2, le=64)
    """How many. Each starts from another head, drawn from the run's seed and its number; the first one is what would be
    trained without an ensemble."""

    of: Literal["adapters", "heads"] = "adapters"
    """`adapters` trains one after the other on the same base, each in an order of its own. `heads` share one adapter
    and one pass: they cost next to nothing, and may disagree less for it."""


class RewardModelConfig(LearningConfig, Section):
    """Training on the preference pairs, or on the rankings that they come from."""

    model: ModelConfig | None = None
    """Another base for the reward model, with its own tuning. Default: the shared `model` section, on which it starts
    from the SFT adapter."""

    pretrained: ClassifierConfig | None = None
    """A ready reward model: any sequence classifier of transformers. It is measured on held-out pairs, where there are
    any, and its scores are normalised; nothing is trained."""

    learning_rate: float = Field(default=1.0e-4, gt=0, le=1)
    """Peak learning rate of AdamW. One epoch is the rule: more overfit quickly (Stiennon et al. 2020, section 3.4)."""

    center_coefficient: float = Field(default=0.0, ge=0)
    """Weight of the mean squared sum of a pair's scores (Eisenstein et al. 2023, section 5)."""

    label_smoothing: float = Field(default=0.0, ge=0.0, lt=0.5)
    """Assumed share of turned pairs."""

    loss: Literal["bradley_terry", "plackett_luce"] = "bradley_terry"
    """`bradley_terry` on pairs: those of one ranking share the weight of one. `plackett_luce` on whole rankings, whose
    pairs pass together: `batch_size` and `microbatch_size` count rankings, and stated margins are not used."""

    ensemble: EnsembleConfig | None = None
    """Train an ensemble. PPO's component `learned` scores by its mean; `ensemble` combines the members otherwise."""

    normalization: NormalizationConfig = NormalizationConfig()

    def contradictions(self) -> Iterator[Contradiction]:
        """A setting of the other loss, or of training where nothing is trained."""
        if self.pretrained is not None:
            for name in type(self).model_fields:
                if name not in ("pretrained", "normalization") and differs(self, name):
                    yield Contradiction(
                        (name, "pretrained"),
                        f"{name} is set, and `pretrained` names a ready reward model, which is not trained; remove "
                        f"one of the two",
                    )
        if self.loss == "plackett_luce" and self.label_smoothing > 0:
            yield Contradiction(
                ("label_smoothing", "loss"),
                f"label_smoothing={self.label_smoothing:g} is the share of turned pairs, and loss=plackett_luce is "
                f"learned from whole rankings; use label_smoothing=0, or loss=bradley_terry",
            )

    @property
    def own_base(self) -> ModelConfig | None:
        """The reward model's base where it does not share the policy's."""
        return self.model if self.pretrained is None else self.pretrained.as_model()
