"""What a reward is made of. Imports pydantic only.

A reward is a list of components (`rewards.component_config`): the reward model and rules on the text
(`rewards.rule_config`), functions and servers. `rewards.composite` adds them up.
"""

import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, field_validator

from data.strict import Contradiction, EnvironmentName, Flag, PathText, Printable, ShortNames
from rewards.component_config import ComponentConfig
from rewards.judge_config import JudgeRewardConfig
from rewards.rule_config import (
    CharacterShareComponentConfig,
    ExactMatchRewardConfig,
    FormatRewardConfig,
    LengthRewardConfig,
    MathRewardConfig,
    RegexRewardConfig,
    RepetitionRewardConfig,
    SentimentRewardConfig,
    WordListRewardConfig,
)


class LearnedRewardConfig(ComponentConfig):
    """A trained reward model, of any tokenizer; its normalised score."""

    type: Literal["learned"] = "learned"

    path: PathText | None = None
    """Folder of another reward model, say `outputs/RUN/reward_model`, on the shared base or one of its own. Default:
    the run's own."""


class EnsembleRewardConfig(ComponentConfig):
    """Several reward models as one (Coste et al. 2023, https://arxiv.org/abs/2310.02743).

    A reward model that was trained as an ensemble (`reward_model.ensemble`) brings all its members.
    """

    type: Literal["ensemble"] = "ensemble"

    members: list[PathText] = []
    """Folders of trained reward models, say `outputs/RUN/reward_model`, on the shared base or one of their own."""

    with_own: Flag = True
    """Whether the run's own reward model is a member, too."""

    combine: Literal["mean", "min", "mean_minus_std"] = "mean_minus_std"
    """`mean` averages, `min` takes the worst case, `mean_minus_std` charges what the members disagree on."""

    def contradictions(self) -> Iterator[Contradiction]:
        """A member that would count twice, or none."""
        yield from super().contradictions()
        if twice := sorted({name for name in self.members if self.members.count(name) > 1}):
            yield Contradiction(
                ("members",),
                f"members names {', '.join(twice)} more than once, but what a model says twice is no second opinion; "
                f"name each folder once",
            )
        if not self.with_own and not self.members:
            yield Contradiction(
                ("members", "with_own"),
                "with_own=false leaves no member; name reward models, or drop `with_own`",
            )


class PythonRewardConfig(ComponentConfig):
    """A Python function of the user's own: `def score(prompts: list[str], responses: list[str]) -> list[float]`."""

    type: Literal["python"] = "python"

    source: ShortNames
    """`path/to/file.py:name`, relative to the configuration file or the working directory, or `package.module:name`.
    The bytes of that one file count for whether a stored result fits; what it imports does not. A function with a
    parameter `references` gets the prompts' references there."""

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
_PATH = re.compile(r"/[^@?#\s]*")


class RemoteRewardConfig(ComponentConfig):
    """A reward server: POST of `{"prompts": [...], "responses": [...]}`, answer `{"scores": [...]}`."""

    type: Literal["remote"] = "remote"

    address: Printable
    """Where the requests go, say `http://127.0.0.1:8080/score`. It counts for whether a stored result fits."""

    token_env: EnvironmentName | None = None
    """Environment variable that holds a bearer token. The token itself never enters a configuration."""

    batch_size: int | None = Field(default=None, ge=1)
    """Episodes in one request, at most. Default: all of a step (and rank)."""

    health: Printable | None = None
    """Where a GET is answered with 200 while the server is well: `/health` on the same host, or a whole address. Asked
    once before training starts, with the same patience. Default: nothing is asked."""

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

    @field_validator("health")
    @classmethod
    def _is_address_or_path(cls, health: str | None) -> str | None:
        if health is not None and not _ADDRESS.fullmatch(health) and not _PATH.fullmatch(health):
            raise ValueError(
                f"found {health!r}, must be a path on the same host or an address without a key in it; write it as "
                f"/health or http://host:8080/health"
            )
        return health


RewardConfig = Annotated[
    LearnedRewardConfig
    | EnsembleRewardConfig
    | LengthRewardConfig
    | RegexRewardConfig
    | FormatRewardConfig
    | RepetitionRewardConfig
    | ExactMatchRewardConfig
    | MathRewardConfig
    | SentimentRewardConfig
    | WordListRewardConfig
    | PythonRewardConfig
    | RemoteRewardConfig
    | JudgeRewardConfig
    | CharacterShareComponentConfig,
    Field(discriminator="type"),
]
"""One component."""
