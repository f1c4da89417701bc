"""What a reward function is. Knows nothing of training.

Shape legend: B = episodes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from data.schema import Prompt


@dataclass(frozen=True)
class Episode:
    """One prompt and one response to it.

    Attributes:
        prompt_text: The prompt as text; with a chat template, as the policy's template renders it.
        response_text: The response without special tokens.
        prompt_ids: The prompt as the policy saw it.
        response_ids: The response as the policy wrote it, EOS included where it ended by itself.
        prompt: The prompt as the data has it, for judges with a chat template of their own.
        finished: Whether the response ended by itself; False where the length limit cut it off.
        reference: The right answer to the prompt, where the data has one.
    """

    prompt_text: str
    response_text: str
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    prompt: Prompt
    finished: bool
    reference: str | None = None


class RewardFunction(Protocol):
    """Judges episodes; higher is better."""

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        """One score an episode, in their order."""
        ...


class EnsembleRewardFunction(RewardFunction, Protocol):
    """A reward function of one member or more; called, it gives their mean."""

    @property
    def num_members(self) -> int:
        """How many there are."""
        ...

    def by_member(self, episodes: Sequence[Episode]) -> list[list[float]]:
        """One list a member, with one score an episode."""
        ...


class ScoreModel(Protocol):
    """A model that scores token sequences. `stages.models` implements it on the shared base."""

    @property
    def num_members(self) -> int:
        """Scores that an episode gets: one, or those of the members of an ensemble."""
        ...

    def score_members(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[list[float]]:
        """Normalised scores by member: one list for each, with one score an episode."""
        ...


class TextScoreModel(Protocol):
    """A model with a tokenizer of its own, which scores text. `stages.models` implements it on another base."""

    @property
    def num_members(self) -> int:
        """Scores that an episode gets: one, or those of the members of an ensemble."""
        ...

    def score_texts_by_member(
        self, prompts: Sequence[Prompt], responses: Sequence[str], finished: Sequence[bool]
    ) -> list[list[float]]:
        """Normalised scores by member: one list for each, with one score an episode.

        Args:
            prompts: As the data has them.
            responses: Without special tokens.
            finished: Whether each response ended by itself.
        """
        ...
