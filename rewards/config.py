"""Rules that score a text by themselves, for evaluations, labelers and rewards. Imports pydantic only."""

from typing import Annotated, Literal

from pydantic import Field

from data.strict import StrictModel


class SentimentFields(StrictModel):
    """What VADER reads."""

    text: Literal["response", "prompt_and_response"] = "prompt_and_response"
    """What is scored."""


class VaderRewardConfig(SentimentFields):
    """Sentiment in [-1, 1] (Hutto and Gilbert 2014, package `vaderSentiment`)."""

    type: Literal["vader"] = "vader"


class CharacterShareRewardConfig(StrictModel):
    """Share of the response's characters that are in a set, in [0, 1]. A planted target for tests."""

    type: Literal["character_share"] = "character_share"

    characters: str = Field(min_length=1)
    """The characters that count."""


RuleRewardConfig = Annotated[VaderRewardConfig | CharacterShareRewardConfig, Field(discriminator="type")]
