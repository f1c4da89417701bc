"""A reward model loaded apart, with a base and a tokenizer of its own: the `TextScoreModel` of `rewards.contract`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from data.chat import retokenize_episode
from data.errors import ModelError
from data.schema import Prompt
from rewards.ensemble import mean_of_members
from stages.models.scalar_head import ScoreHead
from stages.models.score_model import SharedBaseScoreModel
from stages.models.shared_base import SharedBase

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class SeparateScoreModel:
    """Scores text: prompt and response are tokenised as they were to train this reward model."""

    def __init__(
        self,
        base: SharedBase,
        heads: Mapping[str, Sequence[ScoreHead]],
        tokenizer: "PreTrainedTokenizerBase",
        *,
        batch_size: int,
    ) -> None:
        """Keep the parts.

        Args:
            base: The reward model's own base, with its adapters.
            heads: Score heads with their normalisation, by the adapter that they belong to.
            tokenizer: The reward model's own, with a pad token.
            batch_size: Rows in one forward pass.
        """
        self._base = base
        self._tokenizer = tokenizer
        self._by_ids = SharedBaseScoreModel(
            base, heads, pad_token_id=int(tokenizer.pad_token_id), batch_size=batch_size
        )

    @property
    def num_members(self) -> int:
        """How many scores an episode gets."""
        return self._by_ids.num_members

    @property
    def max_positions(self) -> int | None:
        """Longest sequence that the base knows; None where it does not say."""
        return self._base.max_positions

    def score_texts(self, prompts: Sequence[Prompt], responses: Sequence[str], finished: Sequence[bool]) -> list[float]:
        """Normalised score of each prompt with its response: the mean of the members.

        Raises:
            ModelError: An episode is longer than the base knows positions for.
        """
        return mean_of_members(self.score_texts_by_member(prompts, responses, finished))

    def score_texts_by_member(
        self, prompts: Sequence[Prompt], responses: Sequence[str], finished: Sequence[bool]
    ) -> list[list[float]]:
        """Normalised scores by member; arguments and errors as for `score_texts`."""
        encoded = [
            retokenize_episode(self._tokenizer, prompt, response, finished=ended)
            for prompt, response, ended in zip(prompts, responses, finished, strict=True)
        ]
        return self.score_members([prompt for prompt, _ in encoded], [response for _, response in encoded])

    def score(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[float]:
        """Normalised score of each prompt with its response, in ids of the reward model's own tokenizer.

        Raises:
            ModelError: An episode is longer than the base knows positions for.
        """
        return mean_of_members(self.score_members(prompts, responses))

    def score_members(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[list[float]]:
        """Normalised scores by member: one list for each, with one score an episode.

        Raises:
            ModelError: An episode is longer than the base knows positions for.
        """
        longest = max(
            (len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)), default=0
        )
        positions = self.max_positions
        if positions is not None and longest > positions:
            raise ModelError(
                f"reward_model.model: an episode has {longest} tokens in the reward model's tokenizer, but its base "
                f"knows {positions} positions. Prompt and response have to fit. Lower `max_prompt_tokens` or "
                "`max_new_tokens` of the stage, or train the reward model on a base with more positions."
            )
        return self._by_ids.score_members(prompts, responses)
