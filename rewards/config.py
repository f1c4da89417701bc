"""Which reward function judges a response. Imports pydantic only."""

import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, field_validator

from data.strict import Contradiction, EnvironmentName, PathText, Printable, Section, ShortNames, StrictModel


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


class RewardEnsembleConfig(Section):
    """Further reward models beside the run's own, and how their scores become one."""

    members: list[PathText] = Field(min_length=1)
    """Folders of trained reward models, say `outputs/RUN/reward_model`, on the shared base or one of their own."""

    combine: Literal["mean", "min", "mean_minus_std"] = "mean_minus_std"
    """`mean` averages, `min` takes the worst case, `mean_minus_std` charges what the members disagree on."""

    def contradictions(self) -> Iterator[Contradiction]:
        """A member that would count twice."""
        if twice := sorted({name for name in self.members if self.members.count(name) > 1}):
            yield Contradiction(
                ("members",),
                f"members names {', '.join(twice)} more than once, but what a model says twice is no second opinion; "
                f"name each folder once",
            )


RuleRewardConfig = Annotated[VaderRewardConfig | CharacterShareRewardConfig, Field(discriminator="type")]


class FunctionRewardConfig(StrictModel):
    """A Python function of the user's own: `def score(prompts: list[str], responses: list[str]) -> list[float]`."""

    type: Literal["function"] = "function"

    source: ShortNames
    """`path/to/file.py:name`, relative to the configuration file or the working directory, or `package.module:name`.
    The bytes of that one file count for whether a stored result fits; what it imports does not."""

    timeout_seconds: float = Field(default=300.0, gt=0)
    """How long one call may take. It judges all responses of a step."""

    @field_validator("source")
    @classmethod
    def _is_function(cls, source: str) -> str:
        if not re.fullmatch(r".+:[A-Za-z_]\w*", source):
            raise ValueError(
                f"found {source!r}, must name a file or module and a function in it; write it as "
                f"path/to/file.py:name or package.module:name"
            )
        return source


_ADDRESS = re.compile(r"https?://[^/@?#\s]+(/[^@?#\s]*)?")


class RemoteRewardConfig(StrictModel):
    """A reward server: POST of `{"prompts": [...], "responses": [...]}`, answer `{"scores": [...]}`."""

    type: Literal["remote"] = "remote"

    address: Printable
    """Where the requests go, say `http://127.0.0.1:8080/score`. It counts for whether a stored result fits."""

    token_env: EnvironmentName | None = None
    """Environment variable that holds a bearer token. The token itself never enters a configuration."""

    timeout_seconds: float = Field(default=60.0, gt=0)
    """How long one answer may take, from the first byte sent to the last one read."""

    max_retries: int = Field(default=6, ge=0)
    """How often a request that failed is sent again: after 1, 2, 4, 8, 16 seconds and then each 30, or as the server
    says by `Retry-After`. Refusals (4xx) and answers that cannot be used are not sent again."""

    @field_validator("address")
    @classmethod
    def _is_address(cls, address: str) -> str:
        if not _ADDRESS.fullmatch(address):
            raise ValueError(
                f"found {address!r}, must be an address without a key in it; write it as http://host:8080/score"
            )
        return address


RewardConfig = Annotated[
    FunctionRewardConfig | RemoteRewardConfig | VaderRewardConfig | CharacterShareRewardConfig,
    Field(discriminator="type"),
]
