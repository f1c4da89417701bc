"""A language model as a judge. Imports pydantic only."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from data.endpoint_config import ChatEndpointConfig
from data.strict import Contradiction, PathText, StrictModel
from rewards.component_config import ComponentConfig


class PairJudgeConfig(StrictModel):
    """A model that says which of two responses is better, asked in both orders."""

    endpoint: ChatEndpointConfig

    template: PathText | None = None
    """Text file of what is asked, with `{prompt}`, `{first}` and `{second}`; it has to ask for `[[A]]`, `[[B]]` or
    `[[C]]` (a tie). Default: a general question for the more helpful, honest and harmless answer."""


class JudgeRewardConfig(ComponentConfig):
    """A model's grade of each response, from 0 (the lowest) to 1 (the highest)."""

    type: Literal["judge"] = "judge"

    endpoint: ChatEndpointConfig

    template: PathText | None = None
    """Text file of what is asked, with `{prompt}` and `{response}`; it has to ask for a grade as `[[7]]`. Default: a
    general question for a helpful, honest and harmless answer."""

    lowest: int = Field(default=1)
    """Lowest grade."""

    highest: int = Field(default=10)
    """Highest grade; above the lowest."""

    def contradictions(self) -> Iterator[Contradiction]:
        """A scale without room."""
        yield from super().contradictions()
        if self.lowest >= self.highest:
            yield Contradiction(
                ("lowest", "highest"),
                f"lowest={self.lowest} is not below highest={self.highest}; a scale of two grades or more is needed; "
                f"lower the one or raise the other",
            )
