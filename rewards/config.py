"""Which reward function judges a response. Imports pydantic only."""

from typing import Annotated, Literal

from pydantic import Field

from data.strict import StrictModel


class VaderRewardConfig(StrictModel):
    """Sentiment in [-1, 1] (Hutto and Gilbert 2014, package `vaderSentiment`)."""

    type: Literal["vader"] = "vader"

    text: Literal["response", "prompt_and_response"] = "prompt_and_response"
    """What is scored."""


class CharacterShareRewardConfig(StrictModel):
    """Share of the response's characters that are in a set, in [0, 1]. A planted target for tests."""

    type: Literal["character_share"] = "character_share"

    characters: str = Field(min_length=1)
    """The characters that count."""


class RewardEnsembleConfig(StrictModel):
    """Further reward models beside the run's own, and how their scores become one."""

    members: list[str] = Field(min_length=1)
    """Folders of trained reward models, say `outputs/RUN/reward_model`, on the shared base or one of their own."""

    combine: Literal["mean", "min", "mean_minus_std"] = "mean_minus_std"
    """`mean` averages, `min` takes the worst case, `mean_minus_std` charges what the members disagree on."""


RuleRewardConfig = Annotated[VaderRewardConfig | CharacterShareRewardConfig, Field(discriminator="type")]
