"""Settings of preference collection. Imports pydantic only."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from data.strict import Contradiction, Flag, PathText, Section, StrictModel, Text, differs
from rewards.config import RuleRewardConfig, VaderRewardConfig
from rewards.judge_config import PairJudgeConfig
from stages.rollouts.config import RolloutConfig


class SimulatedLabelerConfig(StrictModel):
    """Ranks responses by a reward function, as a stand-in for people (Ziegler et al. 2019, section 3.1)."""

    type: Literal["simulated"] = "simulated"

    reward: RuleRewardConfig = VaderRewardConfig()
    """The scorer that the labeler believes in."""

    label_noise: float = Field(default=0.0, ge=0.0, le=0.5)
    """Probability that a pair is turned around."""


class HumanLabelerConfig(Section):
    """People rank the responses on the page that `rlhf label RUN` serves; the run waits for them."""

    type: Literal["human"] = "human"

    annotators: Literal["any"] | Annotated[list[Annotated[Text, Field(max_length=64)]], Field(min_length=1)] = "any"
    """Names of the people whose labels count; `any` takes whoever labels."""

    labels_per_prompt: int = Field(default=1, ge=1)
    """How many people judge a prompt. A skip counts here, too: else a prompt that nobody can judge would be waited
    for without end."""

    min_prompts: int | None = Field(default=None, ge=1)
    """The run goes on when this many prompts are judged. Default: `min_share` of them."""

    min_share: float = Field(default=1.0, gt=0.0, le=1.0)
    """The run goes on when this share of the prompts is judged."""

    timeout_hours: float | None = Field(default=None, gt=0)
    """End the run, which can be resumed, after waiting this long. Default: wait without end."""

    def contradictions(self) -> Iterator[Contradiction]:
        """Names that are given twice, more labels than people, two ends."""
        if self.annotators != "any":
            names = self.annotators
            if twice := sorted({name for name in names if names.count(name) > 1}):
                yield Contradiction(
                    ("annotators",),
                    f"annotators names {', '.join(twice)} more than once, but a person judges a prompt once; "
                    f"name each person once",
                )
            if self.labels_per_prompt > len(set(names)):
                yield Contradiction(
                    ("labels_per_prompt", "annotators"),
                    f"labels_per_prompt={self.labels_per_prompt}, but annotators names {len(set(names))}, and each "
                    f"judges a prompt once; use labels_per_prompt={len(set(names))} or less, or name more people",
                )
        if self.min_prompts is not None and differs(self, "min_share"):
            yield Contradiction(
                ("min_prompts", "min_share"),
                f"min_prompts={self.min_prompts} and min_share={self.min_share} both say when the run goes on; "
                f"drop one of the two",
            )


class JudgeLabelerConfig(StrictModel):
    """A language model behind an endpoint compares the responses, two at a time and in both orders."""

    type: Literal["judge"] = "judge"

    judge: PairJudgeConfig
    """Which model, and what it is asked."""

    comparisons_per_prompt: int | None = Field(default=None, ge=1)
    """At most this many of the K (K - 1) / 2 pairs of a prompt are compared, chosen by the run's seed. A response's
    value is the share of its comparisons that it won. Default: all."""

    agreement_with: RuleRewardConfig | None = None
    """A rule that is asked, too; `judge/agreement` is how often both prefer the same response."""


LabelerConfig = Annotated[SimulatedLabelerConfig | HumanLabelerConfig | JudgeLabelerConfig, Field(discriminator="type")]
"""Who judges. `stages.preferences.labelers` makes the labeler of each."""


class RandomSelectionConfig(StrictModel):
    """Prompts come up in an order drawn from the run's seed."""

    type: Literal["random"] = "random"


class DisagreementSelectionConfig(Section):
    """What reward models disagree on comes first (`stages.preferences.disagreement` has the formula)."""

    type: Literal["ensemble_disagreement"] = "ensemble_disagreement"

    reward_models: Annotated[list[PathText], Field(min_length=1)]
    """Folders of reward models trained apart, say `outputs/RUN/reward_model`, on the shared base or their own. One that
    was trained as an ensemble (`reward_model.ensemble`) brings all its members."""

    batch_size: int = Field(default=16, ge=1)
    """Responses in one forward pass of a reward model."""

    def contradictions(self) -> Iterator[Contradiction]:
        """A model that would agree with itself."""
        if twice := sorted({name for name in self.reward_models if self.reward_models.count(name) > 1}):
            yield Contradiction(
                ("reward_models",),
                f"reward_models names {', '.join(twice)} more than once, but a model never disagrees with itself; "
                f"name each folder once",
            )


SelectionConfig = Annotated[RandomSelectionConfig | DisagreementSelectionConfig, Field(discriminator="type")]


class PreferencesConfig(Section):
    """Sample K responses a prompt from a policy and let a labeler rank them."""

    policy: PathText = "sft"
    """Whose responses are judged: `sft` is this run's SFT stage; else the folder of a policy on the same base, say
    `outputs/RUN/ppo` of an earlier run."""

    labeler: LabelerConfig = SimulatedLabelerConfig()
    """Who judges: `simulated` is a reward function in place of people, `human` are people, `judge` is a model."""

    responses_per_prompt: int = Field(default=4, ge=2)
    """K."""

    selection: SelectionConfig = RandomSelectionConfig()
    """Which prompts people see first, and which pairs `pairs_per_prompt` keeps."""

    pairs_per_prompt: int | None = Field(default=None, ge=1)
    """Keep at most this many of the K (K - 1) / 2 pairs of a prompt: those with the largest gap in rank, or those that
    `selection` puts first."""

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
